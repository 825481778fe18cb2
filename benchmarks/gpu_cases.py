"""What the GPU benchmark measures: each case its plain PyTorch form, with BatchNorm folded, and the same weights fast."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.bench import contenders
from hrnet_fast.nn.exchange_unit import PlainExchangeUnit
from hrnet_fast.nn.prepared_conv import PreparedConv
from hrnet_fast.nn.segmentation_head import PlainSegmentationHead

WIDTHS = {"w18": 18, "w32": 32, "w48": 48}
SIZES = {"512x1024": (128, 256), "1024x2048": (256, 512)}  # of the image, and of stream 0
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
EAGER, FAST = "eager folded", "hrnet_fast"
BACKEND, EPILOGUE = "HRNET_FAST_BACKEND", "HRNET_FAST_CUDNN_EPILOGUE"
CLASSES = 19


@dataclass(frozen=True)
class Forms:
    """One thing to measure, in several forms."""

    plain: nn.Module  # eager, and what torch.compile gets
    fast: nn.Module
    settings: dict[str, dict[str, str]]  # further forms of ``fast``: name -> environment
    operator: bool  # held to the tolerances of the operator, else to those of whole networks


@dataclass(frozen=True)
class GpuCase:
    """One row of the results."""

    part: str
    width: str
    size: str
    dtype: str
    variant: str = ""

    @property
    def name(self) -> str:
        """Such as "head-classifier-w48-1024x2048-float16"."""
        return "-".join(filter(None, (self.part, self.variant, self.width, self.size, self.dtype)))

    def forms(self) -> Forms:
        """Its modules, on the CPU, in float32 or in the case's dtype."""
        return _BUILD[self.part](self)

    def inputs(self, device: str) -> list[Tensor]:
        """Random inputs, channels_last: streams of stage 4, of one width where they have no weights, or an image."""
        c, (h, w), dtype = WIDTHS[self.width], SIZES[self.size], DTYPES[self.dtype]
        if self.part == "model":
            shapes = [(3, 4 * h, 4 * w)]
        elif self.part == "conv":
            k = int(self.variant.removeprefix("stream"))
            shapes = [(c << k, h >> k, w >> k)]
        else:
            shapes = [(c if self.part == "train" else c << k, h >> k, w >> k) for k in range(4)]
        return [torch.randn(1, *shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
                for shape in shapes]  # fmt: skip


class OutputZero(nn.Module):
    """Output 0 of an exchange of stage 4 with BatchNorm folded, in plain PyTorch."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels << k, channels, 1) for k in (1, 2, 3))

    def forward(self, streams: list[Tensor]) -> Tensor:
        y = streams[0]
        for conv, x in zip(self.convs, streams[1:]):
            y = y + F.interpolate(conv(x), streams[0].shape[2:], mode="bilinear", align_corners=False)
        return F.relu(y)


class FusedOutputZero(nn.Module):
    """The same weights through the operator."""

    def __init__(self, plain: OutputZero):
        super().__init__()
        self.weights = nn.ParameterList(conv.weight.detach() for conv in plain.convs).requires_grad_(False)
        bias = sum(conv.bias.detach().float() for conv in plain.convs)
        self.bias = nn.Parameter(bias.to(plain.convs[0].bias.dtype), requires_grad=False)

    def forward(self, streams: list[Tensor]) -> Tensor:
        return hf.exchange(streams, [None, *self.weights], self.bias)


class Training(nn.Module):
    """Forward and backward of an exchange without weights, fused or plain."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            x = [t.detach().requires_grad_() for t in streams]
            y = hf.exchange(x) if self.fused else F.relu(sum(
                F.interpolate(t, x[0].shape[2:], mode="bilinear", align_corners=False) if k else t
                for k, t in enumerate(x)))  # fmt: skip
            return list(torch.autograd.grad(y, x, torch.ones_like(y)))


class WithoutClassifier(nn.Module):
    """A V2 head up to its ReLU: the 15 C channels are the result."""

    def __init__(self, head: PlainSegmentationHead):
        super().__init__()
        self.head = head

    def forward(self, streams: list[Tensor]) -> Tensor:
        size = streams[0].shape[2:]
        x = [streams[0], *(F.interpolate(t, size, mode="bilinear", align_corners=False) for t in streams[1:])]
        return self.head[2](self.head[1](self.head[0](torch.cat(x, 1))))


class FusedWithoutClassifier(nn.Module):
    """The same weights, split along their input channels, through the operator."""

    def __init__(self, plain: WithoutClassifier, channels: list[int]):
        super().__init__()
        conv = plain.head[0]
        self.weights = nn.ParameterList(w.detach().contiguous() for w in conv.weight.split(channels, dim=1))
        self.bias = nn.Parameter(conv.bias.detach())
        self.requires_grad_(False)

    def forward(self, streams: list[Tensor]) -> Tensor:
        return hf.exchange(streams, list(self.weights), self.bias, size=tuple(streams[0].shape[2:]))


class BasicBlock(nn.Module):
    """The two convolutions of a residual block with BatchNorm folded: ReLU behind the first, sum and ReLU behind both."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: list[Tensor]) -> Tensor:
        return F.relu(self.convs[1](F.relu(self.convs[0](x[0]))) + x[0])


class FusedBasicBlock(nn.Module):
    """The same weights as two PreparedConv."""

    def __init__(self, plain: BasicBlock):
        super().__init__()
        self.convs = plain.convs
        self._folded: list[PreparedConv] = []

    def forward(self, x: list[Tensor]) -> Tensor:
        if not self._folded:
            geometry = (1, 1), (1, 1), (1, 1), 1
            self._folded = [PreparedConv(c.weight.detach(), c.bias.detach(), *geometry, relu)
                            for c, relu in zip(self.convs, (0, None))]  # fmt: skip
        first, second = self._folded
        return second.add_relu(first(x[0]), x[0])


class OnImage(nn.Module):
    """A network that takes its image as a list of one."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: list[Tensor]) -> Tensor:
        return self.network(x[0])


def _channels(case: GpuCase) -> list[int]:
    return [WIDTHS[case.width] << k for k in range(4)]


def _named(*names: str) -> dict[str, dict[str, str]]:
    return {f"{FAST} {name}": {BACKEND: name} for name in names}


def _operator(case: GpuCase) -> Forms:
    plain = OutputZero(WIDTHS[case.width]).to(DTYPES[case.dtype])
    return Forms(plain, FusedOutputZero(plain), _named("triton", "cuda"), True)


def _unit(case: GpuCase) -> Forms:
    plain, fast = PlainExchangeUnit(_channels(case)).eval(), hf.ExchangeUnit(_channels(case)).eval()
    fast.load_state_dict(plain.state_dict())
    return Forms(contenders.fold_batchnorm(plain), fast, _named("triton", "cuda"), True)


def _head(case: GpuCase) -> Forms:
    plain = PlainSegmentationHead(_channels(case), CLASSES).eval()
    if case.variant == "classifier":
        fast = hf.SegmentationHead(_channels(case), CLASSES).eval()
        fast.load_state_dict(plain.state_dict())
        return Forms(contenders.fold_batchnorm(plain), fast, _named("triton", "cuda"), True)
    without = WithoutClassifier(contenders.fold_batchnorm(plain)).to(DTYPES[case.dtype])
    return Forms(without, FusedWithoutClassifier(without, _channels(case)), _named("triton", "cuda"), True)


def _conv(case: GpuCase) -> Forms:
    plain = BasicBlock(WIDTHS[case.width] << int(case.variant.removeprefix("stream"))).to(DTYPES[case.dtype])
    settings = {f"{FAST} conv2d": {EPILOGUE: "0"}, f"{FAST} cuDNN epilogue": {EPILOGUE: "1"}}
    return Forms(plain, FusedBasicBlock(plain), settings, False)


def _model(case: GpuCase) -> Forms:
    plain, fast = (hf.create_model(f"hrnet_{case.width}", num_classes=CLASSES, fast=fast).eval()
                   for fast in (False, True))  # fmt: skip
    fast.load_state_dict(plain.state_dict())
    settings = {f"{FAST} conv2d": {EPILOGUE: "0"}, f"{FAST} cuDNN epilogue": {EPILOGUE: "1"}}
    return Forms(OnImage(contenders.fold_batchnorm(plain)), OnImage(fast), settings, False)


def _train(case: GpuCase) -> Forms:
    return Forms(Training(False), Training(True), _named("triton", "cuda"), True)


_BUILD: dict[str, Callable[[GpuCase], Forms]] = {
    "op": _operator, "unit": _unit, "head": _head, "conv": _conv, "model": _model, "train": _train,
}  # fmt: skip
PARTS = tuple(_BUILD)


def cases(part: str) -> list[GpuCase]:
    """All cases of a part."""
    variants, sizes, widths = [""], list(SIZES), list(WIDTHS)
    if part == "head":
        variants = ["classifier", ""]
    if part == "conv":
        variants, widths = [f"stream{k}" for k in range(4)], ["w48", "w18"]
    if part == "model":
        widths = ["w48", "w18"]
    return [GpuCase(part, width, size, dtype, variant)
            for size, width, dtype, variant in product(sizes, widths, DTYPES, variants)]  # fmt: skip
