"""HRNet against the networks it was published against: ``python -m benchmarks.rivals``.

UNet++, DeepLabV3, DeepLabV3+ and PSPNet with ResNet-101 come from segmentation-models-pytorch. Every network runs
channels_last with BatchNorm folded where torch can, HRNet besides in hrnet_fast's forms; each form is compared with
float64 on a small image, then all take turns. Memory is that of a process with one network alone (on a GPU that of its
tensors, weights aside). A published mIoU stands beside a network only where it has the published parameters and GFLOPs.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import contenders, rival_report
from benchmarks.cases import DTYPES, SLACK
from benchmarks.rival_networks import COUNTED_SIZE, NETWORKS, Network, count, why_not
from hrnet_fast.bench import BadInput, images, machine, memory, networks, report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, FAST, OPTIMIZED, FirstCallPrepares, Problem
from hrnet_fast.bench.harness import Contender, Progress, attempt, check, looped, may_be_timed, silent, take_turns
from hrnet_fast.bench.record import Entry, Record, Report, finish
from hrnet_fast.models import randomize
from hrnet_fast.tolerances import MODEL

RESULTS = Path(__file__).parent / "results"
CHECKED_SIZE = (64, 128)  # of the comparison with float64
OURS = (FAST, OPTIMIZED)


def problem(network: Network, image: Tensor, dtype: torch.dtype) -> Problem:
    """The network with random weights, on an image [1, 3, H, W] and its device."""
    plain = randomize(network.make()).to(image.device)
    return Problem(plain, (image,), dtype, networks.same_weights, fold_eager=True)


def measure(chosen: Sequence[Network], size: tuple[int, int], dtype_name: str, device: str, budget: float,
            compiled: bool = False, with_memory: bool = True, progress: Progress = silent) -> list[Record]:  # fmt: skip
    """Every network: counts, errors, times in turns, memory. One record for each, named rivals-<network>.

    Args:
        chosen: rows of NETWORKS.
        size: (height, width) of the image; a photograph.
        dtype_name: a key of DTYPES.
        device: "cpu" or "cuda".
        budget: seconds of timing for all of them together.
        compiled: torch.compile of every network too.
        with_memory: measure memory.
        progress: called with what is going on and the share of the timing that is done.
    """
    dtype, image = DTYPES[dtype_name], images.load(size=size).to(device)
    found: dict[str, list[Entry]] = {}
    calls: list[tuple[str, Entry, FirstCallPrepares]] = []
    memory.keep_freed_memory()
    if compiled:
        torch._dynamo.reset()
    with torch.inference_mode():
        for network in chosen:
            progress(f"checking {network.title}", 0.0)
            forms = [CHANNELS_LAST, *([COMPILED] if compiled else []), *(OURS if network.is_hrnet else ())]
            reason = why_not(network)
            if reason is not None:
                found[network.name] = [Entry(form, failure=reason) for form in forms]
                continue
            made = _checked(network, forms, image, dtype)
            found[network.name] = [entry for entry, _ in made]
            calls += [(network.name, entry, call) for entry, call in made if call is not None]
        timers = [(attempt(entry, functools.partial(looped, call, entry)), entry) for _, entry, call in calls]
        neighbours = machine.Neighbours()
        take_turns([(timer, entry) for timer, entry in timers if timer is not None], budget, progress)
        busy = neighbours.share()
    for name, entry, call in calls if with_memory else ():
        progress(f"memory of {name}: {entry.name}", 1.0)
        if device == "cuda":
            entry.peak_memory_bytes = memory.peak_bytes(call, device)
        else:
            entry.resident_peak_bytes = memory.alone(alone, name, entry.name, size, dtype_name, torch.get_num_threads())
    return [_record(network, finish(found[network.name]), size, dtype_name, busy) for network in chosen]


def _checked(network: Network, forms: Sequence[str], image: Tensor,
             dtype: torch.dtype) -> list[tuple[Entry, FirstCallPrepares | None]]:  # fmt: skip
    """The error of each form on a small image, and a call on the image of those that may be timed."""
    generator = torch.Generator().manual_seed(0)
    small = problem(network, torch.randn(1, 3, *CHECKED_SIZE, generator=generator).to(image.device), dtype)
    large, reference, made = dataclasses.replace(small, inputs=(image,)), small.reference(), []
    for name in forms:
        form = contenders.TABLE[name]
        contender = Contender(name, FirstCallPrepares(form.prepare, small), SLACK)
        entry = check(contender, reference, MODEL[dtype])
        timed = may_be_timed(contender, entry, MODEL[dtype])
        made.append((entry, FirstCallPrepares(form.prepare, large) if timed else None))
    return made


def _record(
    network: Network, entries: list[Entry], size: tuple[int, int], dtype_name: str, busy: float | None
) -> Record:
    counted = None
    if why_not(network) is None:
        counted, executed = count(network, COUNTED_SIZE), count(network, size).multiply_adds
        for entry in entries:
            entry.gflops = executed / 2**30
    return Record(
        name=f"rivals-{network.name}", description=f"{network.title}, {size[0]}x{size[1]}, {dtype_name}",
        dtype=dtype_name, tolerance=MODEL[DTYPES[dtype_name]], entries=entries, params=counted and counted.params,
        gflops_published=counted and counted.multiply_adds / 2**30, neighbours=busy,
    )  # fmt: skip


def alone(name: str, form: str, size: tuple[int, int], dtype_name: str, threads: int) -> int | None:
    """Bytes that this process needs at most in a forward pass of a network in a form."""
    torch.set_num_threads(threads)
    (network,) = (network for network in NETWORKS if network.name == name)
    call = FirstCallPrepares(
        contenders.TABLE[form].prepare, problem(network, images.load(size=size), DTYPES[dtype_name])
    )
    with torch.inference_mode():
        call()
    return memory.resident_peak(call)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes rivals.json and rivals.png; 1 if a form of ours is off, 2 for wrong arguments."""
    names = [network.name for network in NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="default: all of them")
    parser.add_argument("--size", default="512x1024", help="HEIGHTxWIDTH of the image (default: 512x1024)")
    parser.add_argument("--dtype", choices=[name for name in DTYPES if name != "int8"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of timing for all (default: 120)")
    parser.add_argument("--threads", type=int, default=None, help="threads for torch (default: torch's own choice)")
    parser.add_argument("--compile", action="store_true", help="torch.compile of every network too; takes minutes more")
    parser.add_argument("--no-memory", action="store_true", help="leave the measurement of memory out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    given = parser.parse_args(argv)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: expected at least 1, got {given.threads}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no NVIDIA GPU here")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    chosen = [network for network in NETWORKS if network.name in given.networks]
    try:
        size = images.parse_size(given.size)
        if any(side % 32 for side in size):
            raise BadInput(f"size {given.size}: the networks of segmentation-models-pytorch take multiples of 32")
        with report.progress_bar() as progress:
            records = measure(chosen, size, given.dtype, given.device, given.budget, given.compile, not given.no_memory,
                              progress)  # fmt: skip
    except BadInput as error:
        parser.error(str(error))
    stored = Report(records)
    stored.save(given.results / "rivals.json")
    rival_report.plot(stored, given.results / "rivals.png")
    print(rival_report.table(records).text(), *rival_report.notes(records), machine.summary(stored.machine), sep="\n")
    return int(any(entry.off for record in records for entry in record.entries if entry.name in OURS))


if __name__ == "__main__":
    sys.exit(main())
