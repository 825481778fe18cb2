"""HRNet against the networks it was published against: ``python -m benchmarks.rivals``.

UNet++, DeepLabV3, DeepLabV3+ and PSPNet with ResNet-101 come from segmentation-models-pytorch. Every network runs
channels_last with BatchNorm folded where torch can, HRNet besides in hrnet_fast's forms; each form is compared with
float64 on a small image, then all take turns. Memory is that of a process with one network alone (on a GPU that of its
tensors, weights aside). A published mIoU stands beside a network only where it has the published parameters and GFLOPs.
"""

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks import rival_report
from benchmarks.common import DTYPES
from benchmarks.peers import fast, optimized
from benchmarks.rival_networks import COUNTED_SIZE, NETWORKS, Network, count, why_not
from hrnet_fast.bench import BadInput, images, machine, memory, report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED, compile_on_first_call, fold_batchnorm
from hrnet_fast.bench.harness import Result, take_turns, worst_error
from hrnet_fast.models import randomize
from hrnet_fast.tolerances import MODEL

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CHECKED_SIZE = (64, 128)  # of the comparison with float64
SLACK = 2.0  # times the tolerance: in half precision plain networks may miss it by rounding, and are timed


def forms(network: Network, compiled: bool = False) -> list[str]:
    """The forms in which a network is measured."""
    ours = [fast.NAME, optimized.NAME] if network.is_hrnet else []
    return [CHANNELS_LAST, *([COMPILED] if compiled else []), *ours]


def prepare(form: str, plain: nn.Module, image: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A form of a network in float32 as a callable on an image [N, 3, H, W] float32, whose device it runs on.

    Raises:
        BadInput: this version of hrnet_fast does not have the form.
    """
    image = image.to(dtype).contiguous(memory_format=torch.channels_last)
    if form == optimized.NAME:
        reason = optimized.why_not(dtype)
        if reason is not None:
            raise BadInput(reason)
        network = hf.optimize(fast.same_weights(plain).to(image.device), image, dtype=dtype)
        return lambda: network(image)
    network = fast.same_weights(plain) if form == fast.NAME else fold_batchnorm(plain)
    network = network.to(image.device, dtype).to(memory_format=torch.channels_last)
    return compile_on_first_call(network, image) if form == COMPILED else lambda: network(image)


def create(network: Network, dtype: torch.dtype) -> nn.Module:
    """The network in plain PyTorch with random weights that ``dtype`` holds exactly, in float32 on the CPU."""
    return randomize(network.make()).requires_grad_(False).to(dtype).float()


def measure(networks: Sequence[Network], size: tuple[int, int], dtype_name: str, device: str, budget: float,
            compiled: bool = False, with_memory: bool = True,
            progress: Callable[[str, float], None] | None = None) -> list[report.Case]:  # fmt: skip
    """Every network: counts, errors, times in turns, memory. One case for each, named rivals-<network>.

    Args:
        networks: rows of NETWORKS.
        size: (height, width) of the image; a photograph.
        dtype_name: a key of DTYPES.
        device: "cpu" or "cuda".
        budget: seconds of timing for all of them together.
        compiled: torch.compile of every network too.
        with_memory: measure memory.
        progress: called with what is going on and the share of the timing that is done.
    """
    progress = progress or (lambda doing, done: None)
    dtype, image = DTYPES[dtype_name], images.load(size=size).to(device)
    calls: dict[tuple[str, str], Callable] = {}
    results: dict[tuple[str, str], Result] = {}
    memory.keep_freed_memory()
    with torch.inference_mode():
        for network in networks:
            reason = why_not(network)
            progress(f"creating {network.title}", 0.0)
            plain = None if reason else create(network, dtype)
            for form in forms(network, compiled):
                progress(f"checking {network.title}: {form}", 0.0)
                key = (network.name, form)
                results[key] = _absent(form, dtype, reason) if reason else _check(form, plain, image, dtype)
                if results[key].failure is None and results[key].error <= SLACK * results[key].tolerance:
                    calls[key] = prepare(form, plain, image, dtype)
        neighbours = machine.Neighbours()
        take_turns([(call, results[key]) for key, call in calls.items()], budget, progress)
        busy = neighbours.share()
    peaks = {}
    for key, call in calls.items() if with_memory else ():
        progress(f"memory of {key[0]}: {key[1]}", 1.0)
        peaks[key] = memory.peak_bytes(call, device) if device == "cuda" else memory_alone(*key, size, dtype_name)
    cases = [_case(network, results, size, dtype_name, busy) for network in networks]
    for network, case in zip(networks, cases, strict=True):
        for entry in case.entries:
            peak = peaks.get((network.name, entry.name))
            if device == "cuda":
                entry.peak_memory_bytes = peak
            else:
                entry.resident_peak_bytes = peak
    return cases


def _absent(form: str, dtype: torch.dtype, reason: str) -> Result:
    return Result(form, float("inf"), MODEL[dtype], failure=reason)


def _check(form: str, plain: nn.Module, image: Tensor, dtype: torch.dtype) -> Result:
    """The error of a form on a small image; nothing is timed yet."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(1, 3, *CHECKED_SIZE, generator=generator).to(dtype).float()
    try:
        output = prepare(form, plain, small.to(image.device), dtype)()
    except Exception as error:  # the other forms go on
        lines = str(error).splitlines()
        return _absent(form, dtype, lines[0] if lines else type(error).__name__)
    reference = copy.deepcopy(plain).double()(small.double())
    return Result(form, worst_error(output.cpu(), reference), MODEL[dtype])


def _case(network: Network, results: dict, size: tuple[int, int], dtype_name: str, busy: float | None) -> report.Case:
    own = [results[key] for key in results if key[0] == network.name]
    entries, counted = report.entries(own), None
    if why_not(network) is None:
        counted, executed = count(network, COUNTED_SIZE), count(network, size).multiply_adds
        for entry in entries:
            entry.gflops = executed / 2**30
    return report.Case(
        name=f"rivals-{network.name}", description=f"{network.title}, {size[0]}x{size[1]}, {dtype_name}",
        dtype=dtype_name, tolerance=MODEL[DTYPES[dtype_name]], entries=entries, params=counted and counted.params,
        gflops_published=counted and counted.multiply_adds / 2**30, neighbours=busy,
    )  # fmt: skip


def memory_alone(name: str, form: str, size: tuple[int, int], dtype_name: str) -> int | None:
    """Bytes that a new process with this network alone needs at most in a forward pass; None: it does not tell."""
    command = [sys.executable, "-m", "benchmarks.rivals", "--alone", form, "--networks", name, "--dtype", dtype_name,
               "--size", f"{size[0]}x{size[1]}", "--threads", str(torch.get_num_threads())]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])["resident_peak_bytes"] if done.returncode == 0 else None


def alone(network: Network, form: str, size: tuple[int, int], dtype: torch.dtype) -> dict:
    """What ``memory_alone`` asks for, in this process."""
    with torch.inference_mode():
        call = prepare(form, create(network, dtype), images.load(size=size), dtype)
    return {"network": network.name, "form": form, "resident_peak_bytes": memory.resident_peak(call)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and writes rivals.json and rivals.png; 1 if a form of ours is off, 2 for wrong arguments."""
    names = [network.name for network in NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=names, default=names, help="default: all of them")
    parser.add_argument("--size", default="512x1024", help="HEIGHTxWIDTH of the image (default: 512x1024)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of timing for all (default: 120)")
    parser.add_argument("--threads", type=int, default=None, help="threads for torch (default: torch's own choice)")
    parser.add_argument("--compile", action="store_true", help="torch.compile of every network too; takes minutes more")
    parser.add_argument("--no-memory", action="store_true", help="leave the measurement of memory out")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder (default: benchmarks/results)")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: expected at least 1, got {given.threads}")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no NVIDIA GPU here")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    networks = [network for network in NETWORKS if network.name in given.networks]
    try:
        size = images.parse_size(given.size)
        if any(side % 32 for side in size):
            raise BadInput(f"size {given.size}: the networks of segmentation-models-pytorch take multiples of 32")
        if given.alone:
            print(json.dumps(alone(networks[0], given.alone, size, DTYPES[given.dtype])))
            return 0
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=1.0)
            cases = measure(networks, size, given.dtype, given.device, given.budget, given.compile, not given.no_memory,
                            lambda doing, done: progress.update(task, description=doing, completed=done))  # fmt: skip
    except BadInput as error:
        parser.error(str(error))
    stored = report.Report(cases)
    stored.save(given.results / "rivals.json")
    rival_report.plot(stored, given.results / "rivals.png")
    console = report.console()
    console.print(rival_report.table(cases), *rival_report.notes(cases), sep="\n")
    console.print(machine.summary(stored.machine))
    ours = [entry for case in cases for entry in case.entries if entry.name in (fast.NAME, optimized.NAME)]
    return 0 if all(entry.agrees for entry in ours if entry.failure is None) else 1


if __name__ == "__main__":
    sys.exit(main())
