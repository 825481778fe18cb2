"""Everything that needs a GPU, in parts: ``make gpu``, or ``python -m benchmarks.gpu --part op --results DIR``.

Each part ends by itself within --limit seconds. A result file is written again after every case: what was measured is
there when a run is cut short, and the next run of the part, at the same commit on the same GPU, measures only what is
missing. Cases with goals come first; a case for which time ran out waits behind all that nobody has measured yet.

Nothing is needed but torch, and pytest for the part "test"; the part "rivals" needs what its networks need.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import cases as registry
from benchmarks import goals, gpu_timing
from hrnet_fast.bench import machine, report
from hrnet_fast.bench.contenders import FAST
from hrnet_fast.bench.measure import Case
from hrnet_fast.bench.record import Record, Report
from hrnet_fast.ops import library
from hrnet_fast.ops.backends import cuda

LIMIT = 500.0  # seconds of a part, which has to end within 9 minutes
SLACK = 40.0  # seconds more before it is ended from outside: it starts, and ends what it is at


def measure(part: str, results: Path, device: str, chosen: list[str], limit: float) -> None:
    """The cases of a part that are missing in ``results/<part>.json``, as far as time allows."""
    clock, path = gpu_timing.Clock(limit), results / f"{part}.json"
    about = {**machine.describe(), "clocks": gpu_timing.clocks(), "cudnn_benchmark": torch.backends.cudnn.benchmark,
             **gpu_timing.rates(device)}  # fmt: skip
    rate, done = about["copy_bytes_per_second"], kept(path, about)
    cases = [case for case in goals_first(registry.gpu(part)) if not chosen or _is_chosen(case, chosen)]
    for case in in_turn(cases, done):
        if clock.left < 10:
            print(f"{part}: the time is up; run the part again for the other cases")
            break
        record = gpu_timing.measure(case, device, clock)
        record.goals = goals.outcomes(record, goals.GPU_GOALS, rate)
        before = done.pop(case.name, record)  # the one that was tried last is the last in the file
        done[case.name] = min(record, before, key=gpu_timing.cut_short)
        Report(list(done.values()), about).save(path)
        report.show(record, FAST, rate)
        print(*(goals.Outcome(**goal) for goal in record.goals), sep="\n", flush=True)


def goals_first(cases: list[Case]) -> list[Case]:
    """The same cases, those with goals in front: time may run out."""
    return sorted(cases, key=lambda case: not goals.of(case.name, goals.GPU_GOALS))


def in_turn(cases: list[Case], done: dict[str, Record]) -> list[Case]:
    """What is left to measure: first what nobody has, then what was cut short, that which was tried last at the end."""
    by_name = {case.name: case for case in cases}
    again = [by_name[name] for name, record in done.items() if name in by_name and gpu_timing.cut_short(record)]
    return [case for case in cases if case.name not in done] + again


def kept(path: Path, now: dict) -> dict[str, Record]:
    """What an earlier run of the part has measured, by name, if that was the same commit, torch and GPU."""
    try:
        stored = Report.load(path)
        same = all(stored.machine[key] == now[key] for key in ("commit", "torch", "gpu"))
        return {record.name: record for record in stored.cases} if same else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _is_chosen(case: Case, chosen: list[str]) -> bool:
    """Such as "w48-1024x2048" or "w48-1024x2048-float16", or the whole name."""
    width_and_size, dtype = "-".join(case.name.split("-")[-3:-1]), case.name.split("-")[-1]
    return not {case.name, width_and_size, f"{width_and_size}-{dtype}"}.isdisjoint(chosen)


def build(results: Path, limit: float) -> int:
    """Installs the package from this checkout, without network; compiles what does not serve this GPU yet.

    Extension modules built elsewhere serve as they are: their ABI is stable, and time on a GPU is not for compiling.
    """
    environment = dict(os.environ)
    reason = cuda.why_not(None)
    if library.extension_error is None and reason is None:
        environment["HRNET_FAST_NO_EXT"] = "1"
    else:
        print(f"compiling: {library.extension_error or reason}", flush=True)
        if torch.cuda.is_available():
            environment.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
    return _run(command, limit, environment)


def test(results: Path, limit: float) -> int:
    """The tests that need a GPU. What Triton has compiled is kept: a run after one that was cut short gets further."""
    results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", f"--junitxml={results / 'test.xml'}"]
    return _run(command, limit)


def sanitize(results: Path, limit: float) -> int:
    """compute-sanitizer over a small list of cases, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not installed: nothing was checked")
        return 0
    suite = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/ops/test_gpu.py", "-k", "sanitize"]
    return max(
        _run([tool, "--tool", check, "--error-exitcode", "9", *suite], limit / 2) for check in ("memcheck", "racecheck")
    )


def memory(results: Path, limit: float) -> int:
    """Memory and time of a training step of the whole network."""
    command = [sys.executable, "-m", "benchmarks.training_memory", "--device", "cuda", "--steps", "10", "--json"]
    return _run([*command, str(results / "memory.json")], limit)


RIVALS_SIZE = (1024, 2048)


def rivals(results: Path, limit: float) -> int:
    """HRNet and the networks it was published against, in float16; without a GPU on the CPU, to try this program."""
    from benchmarks import rivals as networks  # and with it rich, which no other part needs

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = f"{RIVALS_SIZE[0]}x{RIVALS_SIZE[1]}"
    arguments = ["--device", device, "--size", size, "--dtype", "float16", "--budget", "60", "--results", str(results)]
    return networks.main(arguments)


def _run(command: list[str], limit: float, environment: dict | None = None) -> int:
    try:
        return subprocess.run(command, check=False, env=environment, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        print(f"cut short after {limit:.0f} s: {' '.join(map(str, command))}", file=sys.stderr)
        return 1


STEPS = {"build": build, "test": test, "sanitize": sanitize, "memory": memory, "rivals": rivals}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts that are named, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parts = [*STEPS, *registry.GPU_PARTS]
    parser.add_argument("--part", action="append", choices=parts, help="default: all, in this order")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/gpu"), help="folder for the results")
    parser.add_argument("--cases", nargs="*", default=[], help="such as w48-1024x2048 or w18-512x1024-float16")
    parser.add_argument("--limit", type=float, default=LIMIT, help=f"seconds for each part (default: {LIMIT:g})")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: only to try this program")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU here: nothing can be measured", file=sys.stderr)
        return 2
    torch.backends.cudnn.benchmark = given.device == "cuda"  # eager PyTorch at its best
    chosen = given.part or parts
    if len(chosen) > 1:  # each in a process of its own: what a part builds, breaks or keeps is not the next one's
        rest = ["--results", str(given.results), "--limit", str(given.limit), "--device", given.device]
        rest += ["--cases", *given.cases] if given.cases else []
        command = [sys.executable, "-m", "benchmarks.gpu", *rest, "--part"]
        return max(_run([*command, part], given.limit + SLACK) for part in chosen)
    (part,) = chosen
    print(f"== {part}", flush=True)
    if part in STEPS:
        return STEPS[part](given.results, given.limit)
    measure(part, given.results, given.device, given.cases, given.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
