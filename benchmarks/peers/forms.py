"""The network as engines get it: BatchNorm folded, the head convolving each stream at its own resolution, ONNX files."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import Job
from hrnet_fast.bench.contenders import fold_batchnorm
from hrnet_fast.nn import PlainSegmentationHead

OPSET = 18


class CommutedHead(nn.Module):
    """A V2 head with BatchNorm folded, whose 1x1 convolution runs before the upsampling, in standard operators."""

    def __init__(self, head: PlainSegmentationHead):
        super().__init__()
        conv = head[0]
        self.convs = nn.ModuleList()
        for k, weight in enumerate(conv.weight.detach().split(head.channels, dim=1)):
            part = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=k == 0)  # one bias for the sum
            part.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            self.convs.append(part)
        self.convs[0].bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.classifier, self.align_corners = head[3], head.align_corners

    def forward(self, streams: list[Tensor]) -> Tensor:  # [N, C_j, H_j, W_j] -> [N, classes, H_0, W_0]
        size = streams[0].shape[2:]
        y = self.convs[0](streams[0])
        for conv, x in zip(self.convs[1:], streams[1:], strict=True):
            y = y + F.interpolate(conv(x), size, mode="bilinear", align_corners=self.align_corners)
        return self.classifier(y.relu())


def folded(network: nn.Module) -> nn.Module:
    """BatchNorm folded."""
    return fold_batchnorm(network)


def commuted(network: nn.Module) -> nn.Module:
    """BatchNorm folded, and the V2 head, where there is one, commuted.

    It is the fastest form of every engine: measured with w48 at 512x512 in float32 it takes ONNX Runtime 11 % less time
    than the head of the official code, OpenVINO 7 %, torch.compile 5 %; with w18 1 to 2 %.
    """
    network = fold_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, PlainSegmentationHead) and child.combine == "concat":
                setattr(parent, name, CommutedHead(child))
    return network


@contextlib.contextmanager
def onnx_file(job: Job) -> Iterator[Path]:
    """The network as an ONNX file with the job's shapes, in a temporary folder: float32, standard operators.

    The two exporters of torch give the same speed in both runtimes; this one needs nothing beyond torch and onnx.
    """
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "network.onnx"
        network = commuted(job.plain)
        with quiet():  # of the exporter that it has a successor
            torch.onnx.export(network, (job.image,), str(path), opset_version=OPSET, dynamo=False)
        yield path


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings of loggers, and without what is printed: NNCF draws bars of progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def calibration_batches(job: Job) -> Iterator[Tensor]:  # [N, 3, H, W] each
    """The images for calibration in pieces as large as the job's batch, which is the one that files are written for."""
    return (part.contiguous() for part in job.calibration.split(len(job.image)) if len(part) == len(job.image))
