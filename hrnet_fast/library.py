"""The operators in torch's dispatcher: schemas, fakes, autocast, autograd and FLOP counts.

Schemas and CPU kernels come from the compiled extension ``hrnet_fast._C``. Where it is missing, the same schemas are
defined here with the reference as their implementation, so that programs that name the operators still run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hrnet_fast.backends import reference
from hrnet_fast.call import ExchangeCall, output_memory_format
from hrnet_fast.on_import import on_import

# weights holds those that there are; bit j of weighted is set where inputs[j] goes through the next of them
SCHEMA = (
    "(Tensor[] inputs, Tensor[] weights, int weighted, Tensor? bias, Tensor? projection, Tensor? projection_bias, "
    "SymInt height, SymInt width, str mode, bool align_corners, bool relu, bool allow_tf32) -> Tensor"
)
OPERATORS = ("exchange", "exchange_fwd")  # the same function; only the first carries a derivative

extension_error: str | None = None  # why the compiled CPU kernels are not there
try:
    import hrnet_fast._C  # noqa: F401
except ImportError as error:
    extension_error = f"the compiled extension hrnet_fast._C is not there ({error})"

if extension_error is not None:
    _definitions = torch.library.Library("hrnet_fast", "DEF")
    for _name in OPERATORS:
        _definitions.define(_name + SCHEMA)
        _definitions.impl(
            _name, lambda *args: reference.run(ExchangeCall.from_arguments(*args)), "CompositeExplicitAutograd"
        )
_registrations = torch.library.Library("hrnet_fast", "FRAGMENT")


def _fake(inputs, weights, weighted, bias, projection, projection_bias, height, width, *settings):
    channels = (weights[0].shape[0] if weights else inputs[0].shape[1]) if projection is None else projection.shape[0]
    shape = (inputs[0].shape[0], channels, height, width)
    return inputs[0].new_empty(shape).contiguous(memory_format=output_memory_format(inputs, height, width))


def _autocast_kernel(name: str, device: str):
    """A kernel that casts to the autocast dtype of the moment (torch.library.register_autocast knows only fixed ones)."""
    op = getattr(torch.ops.hrnet_fast, name).default
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device.upper()}"))

    def kernel(inputs, weights, weighted, bias, projection, projection_bias, *rest):
        dtype = torch.get_autocast_dtype(device)

        def cast(t: Tensor | None) -> Tensor | None:
            return None if t is None or t.dtype == torch.float64 else t.to(dtype)

        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op([cast(x) for x in inputs], [cast(w) for w in weights], weighted, cast(bias),
                      cast(projection), cast(projection_bias), *rest)  # fmt: skip

    return kernel


def _flops(inputs, weights, weighted, bias, projection, projection_bias, height, width, *args, **kwargs) -> int:
    """Multiply-adds, times two, that are really executed: each convolution at its own input's resolution.

    The shapes of the tensors arrive in their place, as torch.utils.flop_counter hands them to formulas.
    """
    through = [x for j, x in enumerate(inputs) if weighted >> j & 1]
    macs = sum(w[0] * x[0] * x[1] * x[2] * x[3] for x, w in zip(through, weights, strict=True))
    if projection is not None:
        macs += inputs[0][0] * projection[0] * projection[1] * height * width
    return 2 * macs


def _save(ctx, inputs, output) -> None:
    tensors, weights, weighted, bias, projection, projection_bias, *ctx.settings = inputs
    ctx.counts, ctx.weighted = (len(tensors), len(weights)), weighted
    ctx.save_for_backward(*tensors, *weights, bias, projection, projection_bias, output)


def _backward(ctx, grad: Tensor):
    """The derivative in standard operators: the reference's own steps transposed, each differentiable again."""
    n, m = ctx.counts
    *saved, output = ctx.saved_tensors
    call = ExchangeCall.from_arguments(saved[:n], saved[n : n + m], ctx.weighted, *saved[n + m :], *ctx.settings)
    wide = torch.promote_types(grad.dtype, torch.float32)
    g = grad.to(wide)
    d_projection = d_projection_bias = None
    if call.projection is not None:
        output = torch.ops.hrnet_fast.exchange(*call._replace(projection=None, projection_bias=None).arguments())
        projection = call.projection.to(wide).flatten(1)
        d_projection = torch.einsum("nphw,nchw->pc", g, output.to(wide)).reshape_as(call.projection)
        d_projection_bias = None if call.projection_bias is None else g.sum((0, 2, 3))
        g = torch.einsum("nphw,pc->nchw", g, projection)
    if call.relu:  # a select, not a product: torch lets gradients pass where the output is NaN
        g = torch.where(output <= 0, torch.zeros_like(g), g)
    d_inputs, d_weights = [], []
    for x, weight in zip(call.inputs, call.weights, strict=True):
        dz = _upsample_backward(g, call, x)
        if weight is None:
            d_inputs.append(dz.to(x.dtype))
        else:
            d_inputs.append(torch.einsum("nohw,oc->nchw", dz, weight.to(wide).flatten(1)).to(x.dtype))
            d_weights.append(torch.einsum("nohw,nchw->oc", dz, x.to(wide)).reshape_as(weight).to(weight.dtype))
    d_bias = None if call.bias is None else g.sum((0, 2, 3)).to(call.bias.dtype)
    if d_projection is not None:
        d_projection = d_projection.to(call.projection.dtype)
    if d_projection_bias is not None:
        d_projection_bias = d_projection_bias.to(call.projection_bias.dtype)
    return d_inputs, d_weights, None, d_bias, d_projection, d_projection_bias, *[None] * len(ctx.settings)


def _upsample_backward(g: Tensor, call: ExchangeCall, x: Tensor) -> Tensor:
    """The transpose of the interpolation from x's size, applied to g [N, C_out, H, W]."""
    size, source = (call.height, call.width), (g.shape[0], g.shape[1], x.shape[2], x.shape[3])
    if source[2:] == size:
        return g
    if call.mode == "nearest":
        return torch.ops.aten.upsample_nearest2d_backward(g, size, source)
    if not any(isinstance(s, torch.SymInt) for s in (*size, *source)):
        return torch.ops.aten.upsample_bilinear2d_backward(g, size, source, call.align_corners)
    # That operator refuses symbolic sizes (torch 2.13), so that compiled code multiplies with the interpolation itself.
    rows, columns = (_interpolation(g, n, m, call.align_corners) for n, m in zip(source[2:], size, strict=True))
    return torch.einsum("nchw,ih,jw->ncij", g, rows, columns)


def _interpolation(like: Tensor, n: int, m: int, align_corners: bool) -> Tensor:  # [n, m]
    """Row i: what pixel i alone contributes to each of m pixels."""
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    return F.interpolate(eye.unsqueeze(0), m, mode="linear", align_corners=align_corners).squeeze(0)


for _name in OPERATORS:
    torch.library.register_fake(f"hrnet_fast::{_name}", _fake)
    for _device in ("cpu", "cuda"):
        _registrations.impl(_name, _autocast_kernel(_name, _device), f"Autocast{_device.upper()}")
torch.library.register_autograd("hrnet_fast::exchange", _backward, setup_context=_save)


def _register_flops(flop_counter) -> None:
    for name in OPERATORS:
        flop_counter.register_flop_formula(getattr(torch.ops.hrnet_fast, name))(_flops)


# torch's counter imports triton on CUDA builds: 100 ms and more that only those who count should pay
on_import("torch.utils.flop_counter", _register_flops)
