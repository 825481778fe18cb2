"""BatchNorm folded into convolutions, and the cache that keeps folds until something they were made of changes."""

import operator
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

from hrnet_fast.nn.module_fingerprint import Structure, Watch, altered
from hrnet_fast.ops.transforms import ordinary

_BATCHNORM_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_version = operator.attrgetter("_version")


def _raise_versions(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Of what torch's fused optimizers have written, which do not raise ``_version`` themselves, as all others do."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            increment_version([p for p in group["params"] if p.grad is not None and not p.is_inference()])


register_optimizer_step_post_hook(_raise_versions)


def fold(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The convolution that equals a convolution followed by BatchNorm with fixed statistics.

    ``gamma * (W x + b - mean) / sqrt(var + eps) + beta``; computed in float32 or wider and rounded once, at the end,
    in half precision so that the rounding errors of an output channel add up to nothing. A norm that uses another scale
    hands that in as gamma (InPlaceABN: ``abs(weight) + eps``).

    Args:
        weight: [O, I, kh, kw] (or with any other trailing dimensions).
        bias: [O] or None.
        mean: running mean [O].
        var: running variance [O].
        gamma: scale [O], or None where the norm has none.
        beta: shift [O], or None where the norm has none.
        eps: added to the variance.

    Returns:
        The weight [O, I, kh, kw] and the bias [O], both new tensors in the dtype of ``weight``.
    """
    wide = torch.promote_types(torch.promote_types(weight.dtype, var.dtype), torch.float32)
    scale = torch.rsqrt(var.to(wide) + eps)
    if gamma is not None:
        scale = scale * gamma.to(wide)
    shift = -mean.to(wide) if bias is None else bias.to(wide) - mean.to(wide)
    shift = shift * scale
    if beta is not None:
        shift = shift + beta.to(wide)
    # a product in float32 is as good as the network's own: only what is rounded to less must be wider before
    factor = scale.to(torch.promote_types(weight.dtype, torch.float32)).reshape(-1, *[1] * (weight.dim() - 1))
    return rounded(weight.to(factor.dtype) * factor, weight.dtype), shift.to(weight.dtype)


def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [O, ...] in another dtype; in half precision with errors that cancel in each output channel.

    What comes in follows a ReLU and has a mean above 0, which multiplies the sum of the errors. So of the weights that
    lie almost in the middle between two numbers, as many are rounded the other way as bring that sum near 0. The error
    of whole networks in bfloat16 falls by 8 %, to almost that of the unfolded ones, whose weights were exact.
    """
    nearest = weight.to(dtype)
    if dtype not in (torch.bfloat16, torch.float16) or torch.compiler.is_compiling():  # a graph would do it every time
        return nearest
    q, exact = nearest.flatten(1), weight.flatten(1)
    error = q.to(exact.dtype) - exact
    total = error.sum(1, keepdim=True)
    # the next number towards the exact one; as integers the numbers of one sign are in the order of their magnitude
    other = (q.contiguous().view(torch.int16) + torch.where((error > 0) == (q > 0), -1, 1).to(torch.int16)).view(dtype)
    step = (other.to(exact.dtype) - q.to(exact.dtype)).abs()
    useful = (error.sign() == total.sign()) & (q != 0) & torch.isfinite(step)
    cost, order = torch.where(useful, step * (step - 2 * error.abs()), torch.inf).sort(dim=1)  # in squared error
    gained = torch.where(useful, step, 0).gather(1, order)
    turned = (gained.cumsum(1) - gained / 2 <= total.abs()) & torch.isfinite(cost)
    return torch.where(torch.zeros_like(turned).scatter(1, order, turned), other, q).view(weight.shape)


def fold_modules(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``fold`` of a convolution module and the BatchNorm (or InPlaceABN) module behind it."""
    gamma = norm.weight
    if gamma is not None and _is_inplace_abn(norm):
        gamma = gamma.abs() + norm.eps
    return fold(conv.weight, conv.bias, norm.running_mean, norm.running_var, gamma, norm.bias, norm.eps)


def why_not_foldable(conv: nn.Module, norm: nn.Module) -> str | None:
    """Why a convolution and the norm behind it can never become one convolution; None where they can in evaluation."""
    if type(conv) is not nn.Conv2d:  # a subclass or a parametrization may compute something else
        return f"the convolution is a {type(conv).__name__}"
    # a subclass of BatchNorm may add an activation, or compute something else
    known = getattr(type(norm), "forward", None) in _BATCHNORM_FORWARDS
    if not known and not _is_inplace_abn(norm) and not _is_synchronized(norm):
        return f"the norm is a {type(norm).__name__}"
    if conv.padding_mode != "zeros":
        return f"the convolution pads with {conv.padding_mode!r}"
    return None


def why_not_fold(conv: nn.Module, norm: nn.Module) -> str | None:
    """Why a convolution and the norm behind it cannot become one convolution now; None where they can."""
    reason = why_not_foldable(conv, norm)
    if reason is None and (norm.training or norm.running_mean is None or norm.running_var is None):
        return "the norm uses the statistics of the batch"
    tensors = [] if reason else [conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    if not ordinary(tensors):
        return "a tensor is of somebody's own class, which may compute something else"
    if (
        reason is None
        and _is_synchronized(norm)
        and (torch.compiler.is_compiling() or not _evaluates_as_batchnorm(norm))
    ):
        return f"the norm, a {type(norm).__name__}, computes something else than BatchNorm, or cannot be asked"
    return reason


def _is_inplace_abn(norm: nn.Module) -> bool:
    """Whether this is a norm of mapillary's inplace_abn without activation; it scales by abs(weight) + eps."""
    kinds = {"InPlaceABN", "InPlaceABNSync"}
    return getattr(norm, "activation", None) in ("none", "identity") and any(
        k.__name__ in kinds for k in type(norm).__mro__
    )


def _is_synchronized(norm: nn.Module) -> bool:
    """Whether its name is that of the Synchronized-BatchNorm of which many repositories have a copy, CSAIL's first.

    It has a forward of its own, which in training adds up the statistics of replicas.
    """
    return isinstance(norm, _BatchNorm) and any(k.__name__ == "_SynchronizedBatchNorm" for k in type(norm).__mro__)


def _evaluates_as_batchnorm(norm: _BatchNorm) -> bool:
    """Whether the forward of a norm, which is in evaluation mode, gives what torch's own gives."""
    mean, var = norm.running_mean, norm.running_var
    x = (mean + var.sqrt() * torch.linspace(-3, 3, 4).to(mean)[:, None])[:, :, None, None]  # [4, C, 1, 1]
    x = x if norm.weight is None else x.to(norm.weight.dtype)
    expected = F.batch_norm(x, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)
    return torch.allclose(norm(x), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


class FoldCache:
    """One value that was computed from a module's tensors, kept until one of them changes.

    What is compared, for every module below the owner: each parameter and buffer by identity, ``_version`` and address
    (the cache keeps the memory alive, so that a tensor moved to another dtype or device has another address); and what
    the module is (``Watch``). So optimizer steps, fused ones too, load_state_dict, ``.to()``, ``.half()``, swapped
    parameters, modules and settings, and train() and back all end a value. Tensors made under inference_mode have no
    version and are compared by the rest. Writes through ``.data`` (and in-place writes to inference tensors) leave no
    trace: ``hrnet_fast.refold(model)`` drops every cache.

    num_batches_tracked is compared too, because it alone tells that BatchNorm has updated its running statistics: that
    kernel writes them without raising their version. A cache never enters a state dict, a deepcopy or a pickle.
    """

    def __init__(self):
        self._state: tuple | None = None  # replaced whole, so that threads never see half of one
        self.structure = Structure()  # of the same modules, for training
        self.tried = Structure()  # whether a module still is what its fast form was made for

    def get(self, owner: nn.Module, watched: bool = False) -> Any | None:
        """The kept value; None where there is none, or it is stale. ``watched``: ``tried`` was asked just before."""
        state = self._state
        if state is None:
            return None
        owner_ref, value, watch, (holders, names, known), tensors, tracked, fingerprint, _ = state
        # A replica of DataParallel shares this object with the module it was copied from.
        if owner_ref() is not owner or not ((watched and watch is self.tried.watch) or watch.unchanged()):
            return None
        if not all(map(operator.is_, map(dict.get, holders, names), known)):
            return None
        return value if _fingerprint(tensors, tracked) == fingerprint else None

    def put(self, owner: nn.Module, value: Any, beside: Iterable[nn.Module] = ()) -> None:
        """Keep ``value``, which was just computed from the modules below ``owner``; those ``beside`` are watched, too.

        Does nothing where the tensors have no memory of their own (fake, meta or batched tensors).
        """
        slots, tensors = [], []
        for module in owner.modules():
            for holder in (module._parameters, module._buffers):
                slots += [(holder, name, tensor) for name, tensor in holder.items()]
                tensors += [tensor for tensor in holder.values() if tensor is not None]
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_meta for t in tensors):
            return
        tracked = [t for t in tensors if not t.is_inference()]
        try:
            fingerprint = _fingerprint(tensors, tracked)
        except RuntimeError:  # tensors inside torch.func transforms have no storage
            return
        # Aliases keep the memory of now alive, so that no later tensor can come to lie at the same address.
        aliases = [t.detach() for t in tensors]
        columns = tuple(zip(*slots, strict=True))  # holders, names, values
        watch, modules = self.tried.watch, [*owner.modules(), *beside]
        if watch is None or not watch.covers(modules):
            watch = Watch(modules, owner)
        self._state = (weakref.ref(owner), value, watch, columns, tensors, tracked, fingerprint, aliases)

    def get_or_put(self, owner: nn.Module, build: Callable[[], Any], beside: Iterable[nn.Module] = ()) -> Any:
        """The kept value, or else what ``build`` returns, computed without autograd and outside of inference mode."""
        value = self.get(owner)
        if value is None:
            # Inference tensors could not be used by a later call that needs gradients for its inputs.
            with torch.inference_mode(False), torch.no_grad():
                value = build()
            self.put(owner, value, beside)
        return value

    def current(
        self,
        owner: nn.Module,
        foldable: Callable[[], bool],
        build: Callable[[], Any],
        beside: Iterable[nn.Module] = (),
        watched: bool = False,
    ) -> Any | None:
        """What ``build`` makes of the modules below ``owner``, kept or made now; None where they must run unfolded.

        That is so in training mode, where the parameters need gradients, where modules below ``owner`` or ``beside`` it
        have hooks or a forward of their own, and where ``foldable()`` is False. Under torch.compile nothing is kept:
        folding becomes a part of the graph.
        """
        compiling = torch.compiler.is_compiling()
        value = None if compiling or owner.training else self.get(owner, watched)
        if owner.training or needs_grad(owner, None if value is None else self):
            return None
        if value is None:
            if altered([*(m for m in owner.modules() if m is not owner), *beside]) or not foldable():
                return None
            value = build() if compiling else self.get_or_put(owner, build, beside)
        return value

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers that the kept value was computed from."""
        return [] if self._state is None else self._state[4]

    def drop(self) -> None:
        """Forget the value and the memory it holds."""
        self._state = None

    def __deepcopy__(self, memo: dict) -> "FoldCache":
        return type(self)()

    def __reduce__(self):
        return type(self), ()


def _fingerprint(tensors: list[Tensor], tracked: list[Tensor]) -> tuple:
    # map over C functions: half the cost of a loop, and an exchange unit has about a hundred tensors
    return list(map(_version, tracked)), list(map(Tensor.data_ptr, tensors))


def needs_grad(owner: nn.Module, current: FoldCache | None) -> bool:
    """Whether autograd wants gradients of what is below ``owner``; ``current``: a cache just seen to hold that."""
    if not torch.is_grad_enabled():
        return False
    tensors = (*owner.parameters(), *owner.buffers()) if current is None else current.tensors()
    return any(t.requires_grad for t in tensors)


def refold(model: nn.Module) -> nn.Module:
    """Drop every folded weight below ``model``, so that the next call folds anew; returns ``model``.

    Only needed after writes that PyTorch itself does not notice: ``parameter.data.copy_(...)``, or in-place changes of
    parameters that were made under inference_mode.
    """
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, FoldCache):
                value.drop()
    return model
