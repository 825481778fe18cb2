"""Whether a module and its fast form compute the same function: tried with weights and inputs drawn at random.

A network fresh from its initialization hides what its parts do: norms with a scale of 0, weights of a thousandth, gates
that are closed. What is accepted must hold for the weights that are loaded later.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hrnet_fast.nn.folds import FoldCache
from hrnet_fast.tolerances import relative_error

# In float32 on small inputs: more than rounding makes, on GPUs with TF32 as well, and far less than another formula.
TOLERANCE = 5e-3
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Example = Callable[[nn.Module, Callable[..., Tensor]], tuple[dict[str, nn.Module], tuple]]


def why_not_equal(module: nn.Module, example: Example, make_fast: Callable[[nn.Module], None]) -> str | None:
    """What twins of a module, one of them made fast, compute differently; None where nothing is.

    Compared are results and the lists of the caller, in evaluation for all inputs together and for each stream alone; in training also gradients and
    running statistics. Neither the module nor its hooks notice.

    Args:
        module: stays as it is.
        example: children to be replaced, and the arguments, of tensors that it is given a function to draw with.
        make_fast: changes a twin in place.
    """
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device, dtype)

    devices = [like.device] if like.is_cuda else []
    try:
        with (
            torch.inference_mode(False),
            torch.autocast(like.device.type, enabled=False),
            torch.random.fork_rng(devices),
        ):
            children, args = example(module, random)
            weights = _random_weights(module, random)

            def twins(training: bool) -> list[nn.Module]:
                made = [_twin(module, training, weights, {}, {}) for _ in range(2)]
                for twin in made:
                    twin._modules.update(children)
                make_fast(made[1])
                return made

            for given in _parts_of(args):
                with torch.no_grad():
                    (plain, after), (fast, fast_after) = (_called(twin, given) for twin in twins(False))
                reason = _why_different(plain, fast) or _why_different(after, fast_after)
                if reason is not None:
                    return reason
            plain, fast = (_trained(twin, args) for twin in twins(True))
            reason = _why_different(plain, fast)
            return None if reason is None else f"in training {reason}"
    except Exception as error:  # whatever a module that only looks like an HRNet's makes of a small input
        lines = str(error).splitlines() or [""]
        return f"it cannot be tried on a small input ({type(error).__name__}: {lines[0]})"


def _parts_of(args: tuple) -> Iterator[tuple]:
    """The arguments, and where there are several streams each of them alone."""
    yield args
    if isinstance(args[0], list):
        for k in range(len(args[0])):
            yield ([x if j == k else torch.zeros_like(x) for j, x in enumerate(args[0])], *args[1:])


def _called(twin: nn.Module, args: tuple) -> tuple[Any, list[Tensor]]:
    """The results, and what the caller's lists hold afterwards."""
    torch.manual_seed(0)  # of dropout
    given = [[x.clone() for x in a] if isinstance(a, list) else a.clone() for a in args]
    result = twin.forward(*given)
    return result, [x for a in given if isinstance(a, list) for x in a]


def _trained(twin: nn.Module, args: tuple) -> list[Tensor]:
    """Results, gradients of the inputs and of all parameters together, and the buffers after one call."""
    leaves = [x.requires_grad_() for a in args for x in (a if isinstance(a, list) else [a])]
    with torch.enable_grad():
        results = _tensors(_called(twin, args)[0])
        loss = sum((y * torch.linspace(0.5, 1.5, y.numel()).to(y).view(y.shape)).sum() for y in results)
    parameters = list(twin.parameters())
    found = torch.autograd.grad(loss, [*leaves, *parameters], allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip((*leaves, *parameters), found)]
    together = torch.cat([g.flatten() for g in grads[len(leaves) :]]) if parameters else loss.new_zeros(1)
    return [*results, *grads[: len(leaves)], together, *(b.to(loss) for b in twin.buffers())]


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _why_different(plain: Any, fast: Any) -> str | None:
    if type(plain) is not type(fast) or len(plain) != len(fast):
        return "its forward returns something else than it does in any HRNet that is known"
    pairs = zip(_tensors(plain), _tensors(fast), strict=True)
    error = max((relative_error(b.detach(), a.detach()) for a, b in pairs), default=0.0)
    if not error <= TOLERANCE:
        return f"its forward computes something else than its structure says (relative difference {error:.1g})"
    return None


def _random_weights(module: nn.Module, random: Callable[..., Tensor]) -> dict[int, Tensor]:
    """For each parameter and buffer, by id, one of the same shape with values that show what the module does."""
    found: dict[int, Tensor] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        last = name.rpartition(".")[2]
        if not tensor.is_floating_point():
            found[id(tensor)] = tensor.detach()
            continue
        value = random(*tensor.shape)
        if tensor.dim() > 1:
            value = value * (2 / max(1, tensor[0].numel())) ** 0.5
        elif "var" in last or last == "weight":  # away from 0
            value = value.abs().clamp(max=1) + 0.5 if "var" in last else value.sign() * (value.abs().clamp(max=1) + 0.5)
        found[id(tensor)] = value
    return found


def _twin(
    module: nn.Module, training: bool, weights: dict[int, Tensor], memo: dict[nn.Module, nn.Module], own: dict[int, Any]
) -> nn.Module:
    """The module with other tensors and without hooks; the module itself is not touched."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    if module not in memo:
        memo[module] = twin = object.__new__(type(module))
        vars(twin).update(vars(module), training=training, **{name: OrderedDict() for name in _HOOKS})
        vars(twin).update({name: FoldCache() for name, value in vars(module).items() if isinstance(value, FoldCache)})

        def of(tensor: Tensor | None) -> Tensor | None:
            if tensor is not None and id(tensor) not in own:
                value = weights[id(tensor)].clone()
                own[id(tensor)] = nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value
            return None if tensor is None else own[id(tensor)]

        twin._parameters = {name: of(p) for name, p in module._parameters.items()}
        twin._buffers = {name: of(b) for name, b in module._buffers.items()}
        twin._modules = {k: None if m is None else _twin(m, training, weights, memo, own)
                         for k, m in module._modules.items()}  # fmt: skip
    return memo[module]
