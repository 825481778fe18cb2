"""Whole networks against other inference engines: ``python -m benchmarks.engines [--cases PATTERN ...]``.

Every engine of benchmarks/peers gets the same weights and the same photograph, is compared with float64, and takes turns
with the others. One that cannot run is listed with its reason. Each contender's memory is that of a process of its own. In
bfloat16 some engines miss the tolerance by a little, which is rounding and no mistake: up to SLACK times the tolerance
others are timed, and the table has their error; ours are not. In int8 every engine takes its scales from the same
images, which are other views of the photograph.
Results go to benchmarks/results/engines/<instruction set>/engines-<case>.json: those of several machines lie side by side.
"""

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from benchmarks import engines_table, peers
from hrnet_fast.bench import BadInput, images, machine, memory, report
from hrnet_fast.bench.contenders import CHANNELS_LAST, COMPILED
from hrnet_fast.bench.harness import Contender, Prepared, compare
from hrnet_fast.tolerances import MODEL

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "engines"
SLACK = 2.0
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
CALIBRATION_IMAGES = 16


@dataclass(frozen=True)
class Case:
    """A network, the size of its image, and the dtype to compute in."""

    width: str
    task: str
    size: tuple[int, int]
    dtype: str

    @property
    def name(self) -> str:
        """Such as w48-segmentation-512x512-bfloat16."""
        return f"{self.width}-{self.task}-{self.size[0]}x{self.size[1]}-{self.dtype}"

    @property
    def description(self) -> str:
        """The case in words."""
        return f"HRNet-{self.width.upper()} {self.task}, {self.size[0]}x{self.size[1]}, {self.dtype}"

    def job(self, threads: int) -> peers.Job:
        """The network with its weights, the photograph, and in int8 others to calibrate with."""
        image, dtype = images.load(size=self.size), DTYPES[self.dtype]
        calibration = images.variants(CALIBRATION_IMAGES, self.size) if dtype == torch.int8 else None
        return peers.Job.create(f"hrnet_{self.width}", self.task, image, dtype, threads, calibration=calibration)


NETWORKS = (
    ("w48", "segmentation", (512, 512)),
    ("w18", "segmentation", (512, 512)),
    ("w18", "classification", (224, 224)),  # timm's hrnet_w18
    ("w32", "pose", (256, 192)),
)
CASES = tuple(Case(*network, dtype) for network in NETWORKS for dtype in DTYPES)


def select(patterns: Sequence[str]) -> list[Case]:
    """The cases whose names match one of the patterns, as in a shell."""
    return [case for case in CASES if any(fnmatch.fnmatchcase(case.name, pattern) for pattern in patterns)]


class FirstCallPrepares:
    """A contender's callable. Its first call makes it, so that one that fails does not end the others."""

    def __init__(self, prepare: Callable[[peers.Job], Callable[[], Tensor]], job: peers.Job):
        self._prepare, self._job = prepare, job
        self._call: Callable[[], Tensor] | None = None
        self.first_result_seconds: float | None = None

    def __call__(self) -> Tensor:
        if self._call is not None:
            return self._call()
        start = time.perf_counter()
        call = self._prepare(self._job)
        output = call()
        self.first_result_seconds = time.perf_counter() - start
        self._call, self._job = call, None
        return output


def measure(case: Case, budget: float, threads: int, left_out: Sequence[str] = (), with_memory: bool = True,
            progress: Callable[[str, float], None] | None = None) -> report.Case:  # fmt: skip
    """One case with all contenders but those of ``left_out``; ``budget`` in seconds of timing."""
    progress = progress or (lambda doing, done: None)
    progress("computing the float64 reference", 0.0)
    job = case.job(threads)
    tolerance = MODEL[job.dtype]
    modules = {name: module for name, module in peers.table().items() if name not in left_out}
    reasons = {name: module.why_not(job.dtype) for name, module in modules.items()}
    calls = {name: FirstCallPrepares(modules[name].prepare, job) for name, reason in reasons.items() if not reason}
    contenders = [Contender(name, call, 1.0 if name in peers.ours() else SLACK) for name, call in calls.items()]
    prepared = Prepared(contenders, job.reference(), tolerance)
    neighbours = machine.Neighbours()
    results = compare(prepared, budget=budget, progress=progress)
    busy = neighbours.share()
    ran = {entry.name: entry for entry in report.entries(results)}
    for name, entry in ran.items():
        entry.first_result_seconds = calls[name].first_result_seconds
        if with_memory and entry.seconds is not None:
            progress(f"memory of {name}", 1.0)
            entry.resident_peak_bytes = memory_alone(case, name, threads)
    entries = [ran.get(name) or report.Entry(name, None, False, failure=reason) for name, reason in reasons.items()]
    return report.Case(
        name=engines_table.PREFIX + case.name, description=case.description, dtype=case.dtype, tolerance=tolerance, entries=entries,
        params=sum(p.numel() for p in job.plain.parameters()), neighbours=busy,
    )  # fmt: skip


def memory_alone(case: Case, contender: str, threads: int) -> int | None:
    """Bytes that a new process with this contender alone needs at most in a forward pass; None: it does not tell."""
    command = [sys.executable, "-m", "benchmarks.engines", "--alone", contender, "--cases", case.name,
               "--threads", str(threads)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])["resident_peak_bytes"] if done.returncode == 0 else None


def alone(case: Case, contender: str, threads: int) -> dict:
    """What ``memory_alone`` asks for, in this process; nothing of the other contenders is made."""
    call = FirstCallPrepares(peers.table()[contender].prepare, case.job(threads))
    with torch.inference_mode():
        call()
    return {"contender": contender, "resident_peak_bytes": memory.resident_peak(call)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the selected cases; 0 if hrnet_fast agrees with float64 wherever it ran, else 1; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN",
                        help="names as in a shell, for example 'w48-*' (default: all)")  # fmt: skip
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timing per case (default: 20)")
    parser.add_argument("--threads", type=int, default=None, help="of every contender (default: torch's own choice)")
    parser.add_argument("--without", nargs="+", default=[], choices=list(peers.table()), metavar="CONTENDER",
                        help=f"contenders to leave out: {', '.join(peers.table())}")  # fmt: skip
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes longest")
    parser.add_argument("--no-memory", action="store_true", help="leave the processes that measure memory out")
    parser.add_argument(
        "--results",
        type=Path,
        help="folder (default: of this machine's instruction set, in benchmarks/results/engines)",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and end")
    parser.add_argument("--alone", choices=list(peers.table()), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    given.results = given.results or RESULTS / machine.describe()["cpu"]["kernel"]
    selected = select(given.cases)
    if not selected:
        parser.error(f"no case matches {' '.join(given.cases)}; --list names them")
    if given.list:
        print(*(case.name for case in selected), sep="\n")
        return 0
    if given.threads is not None and given.threads < 1:
        parser.error(f"--threads: expected at least 1, got {given.threads}")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    threads = torch.get_num_threads()
    if given.alone:
        print(json.dumps(alone(selected[0], given.alone, threads)))
        return 0
    left_out = [*given.without, *([COMPILED] if given.no_compile else [])]
    try:
        measured = _measure(selected, given, threads, left_out)
    except BadInput as error:
        parser.error(str(error))
    return 0 if all(e.agrees for case in measured for e in case.entries if _ran(e) and e.name in peers.ours()) else 1


def _ran(entry: report.Entry) -> bool:
    return entry.failure is None


def _measure(selected: list[Case], given: argparse.Namespace, threads: int, left_out: list[str]) -> list[report.Case]:
    console = report.console()
    measured = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory() as cache,  # torch.compile starts from nothing; the processes for memory find its results
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        task = progress.add_task("", total=len(selected))
        try:
            for index, case in enumerate(selected):

                def show(doing: str, done: float, name: str = case.name, index: int = index) -> None:
                    progress.update(task, description=f"{name}: {doing}", completed=index + done)

                result = measure(case, given.budget, threads, left_out, not given.no_memory, show)
                measured.append(result)
                console.print(report.table(result, CHANNELS_LAST), *report.notes(result), sep="\n")
                report.Report([result]).save(given.results / f"{result.name}.json")
        finally:
            if before is None:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            else:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before
    console.print(engines_table.summary(measured))
    console.print(machine.summary(machine.describe()))
    return measured


if __name__ == "__main__":
    sys.exit(main())
