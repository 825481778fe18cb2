"""The one way to measure a case: its problem, its contenders, their errors and their times in turns, a record."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hrnet_fast.bench import machine, memory
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, TABLE, FirstCallPrepares, Form, Problem
from hrnet_fast.bench.harness import Contender, Output, Progress, compare, silent, tensors
from hrnet_fast.bench.plain_forms import cast
from hrnet_fast.bench.record import Entry, Record
from hrnet_fast.bench.shares import shares
from hrnet_fast.bench.variation import variation
from hrnet_fast.tolerances import MODEL


@dataclass(frozen=True)
class Case:
    """One thing to measure. It can be pickled where ``make`` can, so that a process of its own can make it again."""

    name: str
    description: str
    dtype: torch.dtype
    make: Callable[[torch.device | str], Problem]
    contenders: Sequence[str]
    baseline: str = CHANNELS_LAST  # of the speedups that a table shows
    tolerances: Mapping[torch.dtype, float] = field(default_factory=lambda: MODEL)
    slack: float = 1.0  # of contenders that are not ours: harness.Contender
    memory: bool = False  # memory.peak_bytes
    alone: Callable[["Case", str, int], int | None] | None = None  # memory of a process of its own, with its threads
    classes: Callable[[Output], Tensor] | None = None  # the class [N, H, W] of every pixel
    groups: Mapping[str, tuple[type[nn.Module], ...]] = field(default_factory=dict)  # whose shares of the time are told

    @property
    def tolerance(self) -> float:
        """Of the case's dtype."""
        return self.tolerances[self.dtype]

    def contender(self, name: str, problem: Problem, table: Mapping[str, Form] = TABLE) -> Contender:
        """A contender that its first call prepares."""
        form = table.get(name)
        if name in problem.own:
            return Contender(name, FirstCallPrepares(problem.own[name]))
        call, slack = FirstCallPrepares(form.prepare, problem), 1.0 if form.ours else self.slack
        if form.dtype is None:
            return Contender(name, call, slack)
        return Contender(name, call, slack, self.tolerances[form.dtype], _name(form.dtype))

    def record(self, entries: list[Entry], **more) -> Record:
        """The record of these entries."""
        return Record(self.name, self.description, _name(self.dtype), self.tolerance, entries, **more)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def measure(
    case: Case,
    *,
    budget: float,
    without: Collection[str] = (),
    table: Mapping[str, Form] = TABLE,
    with_memory: bool = True,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
) -> Record:
    """Measures one case: a record with one entry per contender.

    Args:
        case: what to measure.
        budget: seconds for the timing; the float64 reference and the checks come on top.
        without: contenders to leave out.
        table: the contenders by their names.
        with_memory: measure memory, where the case asks for it.
        progress: called with what is going on and the share of the timing that is done.
        device: to measure on.

    Raises:
        BadInput: the case cannot be made.
    """
    progress("creating the network", 0.0)
    problem = case.make(device)
    progress("computing the float64 reference", 0.0)
    reference, agreement = problem.reference(), {}
    expected = None if case.classes is None else case.classes(reference)

    def observe(contender: str, output: Output) -> None:
        if expected is not None:
            agreement[contender] = float((case.classes(output) == expected).double().mean())

    names = [name for name in case.contenders if name not in without]
    reasons = {name: None if name in problem.own else table[name].unsupported_reason(problem.dtype) for name in names}
    runnable = [case.contender(name, problem, table) for name in names if not reasons[name]]
    if any(COMPILED in name for name in names):
        torch._dynamo.reset()  # what was compiled for earlier cases is forgotten
    neighbours = machine.Neighbours()
    compared = compare(runnable, reference, case.tolerance, budget=budget, progress=progress, observe=observe)
    busy = neighbours.share()
    counts = None if problem.count is None else problem.count()
    ran = {entry.name: (entry, contender.call) for entry, contender in zip(compared, runnable, strict=True)}
    for name, (entry, call) in ran.items():
        entry.argmax_agreement, entry.first_result_seconds = agreement.get(name), call.first_result_seconds
        entry.engine, entry.engine_reason = call.engine or (None, None)
        if with_memory and entry.seconds is not None:
            progress(f"memory of {name}", 1.0)
            if case.memory:
                entry.peak_memory_bytes = memory.peak_bytes(call, device)
            if case.alone is not None:
                entry.resident_peak_bytes = memory.alone(case.alone, case, name, torch.get_num_threads())
        is_ours = name not in problem.own and table[name].ours
        entry.gflops = problem.batch * counts[is_ours] if counts else gflops(problem, name, call, is_ours)
    entries = [ran[name][0] if name in ran else Entry(name, failure=reasons[name]) for name in names]
    progress("share of exchange units and head", 1.0)
    return case.record(
        entries, batch=problem.batch, params=sum(p.numel() for p in problem.plain.parameters()), neighbours=busy,
        gflops_published=counts and counts[0], shares=_shares(problem, case.groups),
        variation=None if problem.around else variation([y[:1] for y in tensors(reference)]),
    )  # fmt: skip


def resident_peak(case: Case, contender: str, table: Mapping[str, Form] = TABLE) -> int | None:
    """Bytes that this process needs at most in a forward pass; nothing of the other contenders is made."""
    call = case.contender(contender, case.make("cpu"), table).call
    with torch.inference_mode():
        call()
    return memory.resident_peak(call)


def gflops(problem: Problem, name: str, call: FirstCallPrepares, ours: bool) -> float | None:
    """What a contender executes, counted by running it once; multiply-adds / 2^30. None where that is not told."""
    if problem.around is not None or call.call is None:
        return None
    module = getattr(call.call, "module", None) if name in problem.own else None
    if name in problem.own and not isinstance(module, nn.Module):
        return None
    if module is None:  # not the compiled one, which runs no operators that could be counted
        module = problem.fast(copy.deepcopy(problem.plain)) if ours else problem.plain
    return counted(cast(copy.deepcopy(module), torch.float32), problem.at(torch.float32))


def counted(module: Callable, inputs: tuple) -> float:
    """GFLOPs of a call: multiply-adds / 2^30, as HRNet's papers count them."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2 / 2**30


def _shares(problem: Problem, groups: Mapping[str, tuple[type[nn.Module], ...]]) -> dict[str, float]:
    there = {
        name: kinds for name, kinds in groups.items() if any(isinstance(m, kinds) for m in problem.plain.modules())
    }
    if not there or problem.dtype == torch.int8:
        return {}
    network = cast(copy.deepcopy(problem.plain), problem.dtype, torch.channels_last)
    return shares(network, problem.at(layout=torch.channels_last)[0], there)
