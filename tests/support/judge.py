"""What becomes of a model that ``hf.optimize`` takes: is it right, refused, wrong, or is the model damaged?

A twin, built in the same way, says what is right: it is called with the same arguments, one call after the other, and
computes as PyTorch does. The one that is optimized must give the same, raise what the twin raises and nothing else, leave
its arguments as the twin does, and be itself as it was before.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import hrnet_fast as hf
from hrnet_fast.tolerances import MODEL, relative_error
from support.snapshot import differences, snapshot, strangers

# What a reason must never be: an error of our own code, or of torch's about fakes, that nobody has looked at.
INTERNAL = re.compile(
    r"(Key|Attribute|Recursion|Index|Assertion|Name|UnboundLocal|ZeroDivision|Type|Lookup|Overflow)Error\b|StopIteration"
    r"|DynamicOutputShape|DataDependentOutput|FakeTensor|Traceback|NoneType|object has no attribute|__torch_dispatch__"
)


@dataclasses.dataclass
class Verdict:
    """``kind``: 'right', 'refused', or what is at fault: 'wrong', 'error', 'damaged', 'reason'."""

    kind: str
    detail: str = ""
    engine: str = ""

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("right", "refused")


def optimized(model: nn.Module, args: tuple, kwargs: dict[str, Any], **settings: Any) -> Any:
    """``hf.optimize`` with an example call: a single tensor as it is, other arguments as a tuple and ``kwargs``."""
    example = args[0] if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else args
    return hf.optimize(model, example, **({"kwargs": kwargs} if kwargs else {}), **settings)


def judge(
    make: Callable[[], nn.Module],
    arguments: Callable[[nn.Module, tuple], tuple[tuple, dict]],
    sizes: Iterable[tuple],
    optimize: Callable[..., Any] = optimized,
    refusals: tuple[type[Exception], ...] = (ValueError,),
) -> Verdict:
    """Optimizes ``make()`` for the first of ``sizes`` and calls it with ``arguments(model, size)`` of each.

    ``optimize(model, args, kwargs)`` may raise one of ``refusals``, or return something with a ``reason``; then the model
    is refused, and whatever runs in its place is tried all the same.
    """
    model, twin, sizes = make(), make(), list(sizes)
    args, kwargs = arguments(model, sizes[0])
    before = snapshot(model)
    try:
        fast = optimize(model, args, kwargs)
    except refusals as error:
        fast, reason = None, str(error)
    except Exception as error:
        return Verdict("error", f"from optimize: {_text(error)}")
    else:
        reason = getattr(fast, "reason", None)
    engine = getattr(fast, "engine", "")
    if damage := differences(before, snapshot(model)):
        return Verdict("damaged", "; ".join(damage[:4]), engine)
    if leaves_differ((args, kwargs), arguments(twin, sizes[0]), exact=True):
        return Verdict("damaged", "the example", engine)
    if reason is not None and (not reason.strip() or INTERNAL.search(reason)):
        return Verdict("reason", reason or "an empty reason", engine)
    if fast is not None and (fault := _compared(fast, model, twin, arguments, sizes)):
        return dataclasses.replace(fault, engine=engine)
    return Verdict("right" if reason is None else "refused", reason or "", engine)


def _compared(fast: Any, model: nn.Module, twin: nn.Module, arguments: Callable, sizes: list[tuple]) -> Verdict | None:
    results = []
    for size in sizes:
        theirs, ours = arguments(twin, size), arguments(twin, size)
        expected, error = called(twin, *theirs)
        got, own = called(fast, *ours)
        if error is not None or own is not None:
            if type(error) is not type(own):
                return Verdict("error", f"{size}: {_text(own)}, the model: {_text(error)}")
            continue
        if difference := leaves_differ(ours, theirs):
            return Verdict("wrong", f"{size}: its arguments afterwards: {difference}")
        if difference := leaves_differ(got, expected):
            return Verdict("wrong", f"{size}: {difference}")
        results.append((size, got, expected))
    for size, got, expected in results:  # they belong to the caller: no later call has written over them
        if difference := leaves_differ(got, expected):
            return Verdict("wrong", f"{size}, after other calls: {difference}")
    if left := strangers(model):
        return Verdict("damaged", f"{left[0]} is a tensor of a recording")
    return None


def called(call: Callable, args: tuple, kwargs: dict) -> tuple[Any, Exception | None]:
    """What a call returns, without gradients and with the same random numbers; or the error."""
    torch.default_generator.manual_seed(5)
    try:
        with torch.no_grad():
            return call(*args, **kwargs), None
    except Exception as error:
        return None, error.with_traceback(None)


def leaves(tree: Any, path: str = "result") -> list[tuple[str, Any]]:
    """Every leaf with its place; the classes of the containers are leaves too."""
    if isinstance(tree, dict):
        parts = [(f"[{key!r}]", value) for key, value in tree.items()]
    elif isinstance(tree, (list, tuple)):
        parts = [(f"[{k}]", value) for k, value in enumerate(tree)]
    elif dataclasses.is_dataclass(tree):
        parts = [(f".{field.name}", getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    else:
        return [(path, tree)]
    return [(path, type(tree)), *(leaf for key, value in parts for leaf in leaves(value, path + key))]


def leaves_differ(got: Any, expected: Any, exact: bool = False, tolerance: float | None = None) -> str:
    """Where and how two results differ; empty if they do not.

    Floating tensors may differ as far as hrnet_fast/tolerances.py lets a model in float32: float64 is made of that here.
    """
    ours, theirs = leaves(got), leaves(expected)
    if [path for path, _ in ours] != [path for path, _ in theirs]:
        return f"{[path for path, _ in ours]} in place of {[path for path, _ in theirs]}"
    for (path, y), (_, reference) in zip(ours, theirs, strict=True):
        if type(y) is not type(reference) and not (isinstance(y, Tensor) and isinstance(reference, nn.Parameter)):
            return f"{path} is a {type(y).__name__}, not a {type(reference).__name__}"
        if not isinstance(y, Tensor):
            if y != reference:
                return f"{path} is {y!r}, not {reference!r}"
        elif y.dtype != reference.dtype or y.shape != reference.shape:
            return f"{path} is {y.dtype} {list(y.shape)}, not {reference.dtype} {list(reference.shape)}"
        elif exact or not y.is_floating_point():
            if not torch.equal(y, reference):
                return f"{path} has other values"
        else:
            error = relative_error(y, reference)
            if error > (max(MODEL[y.dtype], MODEL[torch.float32]) if tolerance is None else tolerance):
                return f"{path} is off by {error:.2g}"
    return ""


def _text(error: Exception | None) -> str:
    return "no error" if error is None else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def told(verdicts: dict[Any, Verdict]) -> str:
    """The faults, a line each."""
    return "\n".join(f"{name}: {v.kind}: {v.detail} ({v.engine})" for name, v in verdicts.items() if v.is_fault)
