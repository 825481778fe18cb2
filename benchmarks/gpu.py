"""Everything that needs a GPU, in parts: ``make gpu``, or ``python -m benchmarks.gpu --part op --results DIR``.

Every contender runs under a CUDA graph that goes through several sets of inputs, together larger than the L2 cache, so
that none is favoured by its launch overhead or finds its inputs in the cache. Contenders take turns, medians and ratios
are of one run, and the bandwidth of a copy and the rate of bfloat16 products are measured in the same run. A result
file is written again after every case: what was measured is there when a run is cut short.
"""

import argparse
import copy
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import hrnet_fast as hf
from benchmarks import rivals as benchmarks_rivals
from benchmarks import training_memory
from hrnet_fast import backends
from hrnet_fast.bench import contenders, machine
from hrnet_fast.modules.exchange_unit import PlainExchangeUnit
from hrnet_fast.tolerances import OPERATOR, relative_error

PACKAGE = Path(hf.__file__).parent
ROUNDS = 15
CACHE_BYTES = 100 << 20  # twice the L2 of an H100
WIDTHS = {"w18": 18, "w32": 32, "w48": 48}
SIZES = {"512x1024": (128, 256), "1024x2048": (256, 512)}  # of the image, and of stream 0
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class OutputZero(nn.Module):
    """Output 0 of an exchange of stage 4 with BatchNorm folded, in plain PyTorch."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels << k, channels, 1) for k in (1, 2, 3))

    def forward(self, streams: list[Tensor]) -> Tensor:
        y = streams[0]
        for conv, x in zip(self.convs, streams[1:]):
            y = y + F.interpolate(conv(x), streams[0].shape[2:], mode="bilinear", align_corners=False)
        return F.relu(y)


class FusedOutputZero(nn.Module):
    """The same weights through the operator."""

    def __init__(self, plain: OutputZero, backend: str):
        super().__init__()
        self.weights = [None, *[conv.weight.detach() for conv in plain.convs]]
        self.bias = sum(conv.bias.detach().float() for conv in plain.convs).to(plain.convs[0].bias.dtype)
        self.backend = backend

    def forward(self, streams: list[Tensor]) -> Tensor:
        return hf.exchange(streams, self.weights, self.bias, backend=self.backend)


class Training(nn.Module):
    """Forward and backward of an exchange without weights, fused or plain."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused

    def forward(self, streams: list[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            x = [t.detach().requires_grad_() for t in streams]
            y = hf.exchange(x) if self.fused else F.relu(sum(
                F.interpolate(t, x[0].shape[2:], mode="bilinear", align_corners=False) if k else t
                for k, t in enumerate(x)))  # fmt: skip
            return list(torch.autograd.grad(y, x, torch.ones_like(y)))


def streams(channels: int, size: tuple[int, int], dtype: torch.dtype, device: str, widen: bool = True) -> list[Tensor]:
    """Random inputs of stage 4, channels_last; with ``widen`` False all of them have the channels of stream 0."""
    return [
        torch.randn(1, channels << (k if widen else 0), size[0] >> k, size[1] >> k, device=device, dtype=dtype)
        .contiguous(memory_format=torch.channels_last) for k in range(4)
    ]  # fmt: skip


def operator_case(channels, dtype):
    """Contenders of output 0 of an exchange: name -> module, and the float64 form."""
    plain = OutputZero(channels).eval()
    exact = copy.deepcopy(plain.to(dtype)).double()
    forms = {"eager folded": plain}
    for name in ("triton", "cuda"):
        if name in backends.TABLE and backends.TABLE[name].why_not(None) is None:
            forms[f"hrnet_fast {name}"] = FusedOutputZero(plain, name)
    forms.setdefault("hrnet_fast", FusedOutputZero(plain, "auto"))
    return forms, exact, True


def unit_case(channels, dtype):
    """Contenders of a whole exchange unit of stage 4."""
    plain = PlainExchangeUnit([channels << k for k in range(4)]).eval()
    fast = hf.ExchangeUnit([channels << k for k in range(4)]).eval()
    fast.load_state_dict(plain.state_dict())
    forms = {"eager folded": contenders.fold_batchnorm(plain).to(dtype), "hrnet_fast": fast.to(dtype)}
    return forms, copy.deepcopy(plain).to(dtype).double(), True


def train_case(channels, dtype):
    """Contenders of forward and backward of an exchange in training."""
    return {"eager folded": Training(False), "hrnet_fast": Training(True)}, Training(False), False


PARTS = {"op": operator_case, "unit": unit_case, "train": train_case}


def replayed(call: Callable[[int], object], sets: int, device: str) -> Callable[[], float]:
    """A function that runs ``call(0) ... call(sets - 1)`` once and returns the seconds of one of them."""
    if device == "cpu":

        def timed() -> float:
            start = time.perf_counter()
            for k in range(sets):
                call(k)
            return (time.perf_counter() - start) / sets

        return timed
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call(0)
    torch.cuda.current_stream().wait_stream(side)
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for k in range(sets):
            kept.append(call(k))  # outputs of different sets must not share memory
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3 / sets

    timed.kept = kept
    return timed


def measure_case(part: str, width: str, size: str, dtype: str, device: str) -> dict:
    """One case, all contenders: errors against float64, then seconds, in turns."""
    torch.manual_seed(0)
    forms, exact, widen = PARTS[part](WIDTHS[width], DTYPES[dtype])
    make = functools.partial(streams, WIDTHS[width], SIZES[size], DTYPES[dtype], device, widen)
    first = make()
    sets = max(2, -(-CACHE_BYTES // (2 * sum(x.numel() * x.element_size() for x in first))))
    data = [first, *[make() for _ in range(sets - 1)]]
    with torch.no_grad():
        reference = exact.to(device)([x.double() for x in first])
        runs, entries = {}, {}
        for name, call in _contenders(forms, device):
            entry = entries[name] = {"error": None, "seconds": [], "failure": None}
            try:
                entry["error"] = _error(call(first), reference)
                if entry["error"] <= OPERATOR[DTYPES[dtype]] or name.startswith("eager") or "compile" in name:
                    runs[name] = replayed(lambda k, call=call: call(data[k]), sets, device)
                else:
                    entry["failure"] = "its output is off, therefore not timed"
            except Exception as error:  # the others go on
                entry["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        for _ in range(2):
            for timed in runs.values():
                timed()
        for _ in range(ROUNDS):
            for name, timed in runs.items():
                entries[name]["seconds"].append(timed())
    moved = sum(x.numel() * x.element_size() for x in first)
    outputs = reference if isinstance(reference, list) else [reference]
    moved += sum(y.numel() for y in outputs) * first[0].element_size()
    return {"part": part, "width": width, "size": size, "dtype": dtype, "useful_bytes": moved, "contenders": entries}


def _contenders(forms: dict[str, nn.Module], device: str) -> Iterator[tuple[str, Callable]]:
    for name, module in forms.items():
        module = module.to(device)
        if name == "eager folded":
            module = module.to(memory_format=torch.channels_last)
            for mode in ("default", "max-autotune-no-cudagraphs") if device == "cuda" else ():
                torch._dynamo.reset()
                yield f"torch.compile {mode}", torch.compile(module, dynamic=False, mode=mode)
        yield name, module


def _error(output, reference) -> float:
    if isinstance(reference, list):
        return max(relative_error(a, b) for a, b in zip(output, reference, strict=True))
    return relative_error(output, reference)


def rates(device: str) -> dict:
    """Bytes a second of a copy (read and written), and floating-point operations a second of bfloat16 products."""
    if device == "cpu":
        return {"copy_bytes_per_second": None, "bfloat16_flops_per_second": None}
    a = torch.randn(256 << 20, device=device, dtype=torch.float16)
    b = torch.empty_like(a)
    copied = replayed(lambda k: b.copy_(a), 2, device)
    x, y = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = replayed(lambda k: x @ y, 2, device)
    best = {f: min(f() for _ in range(10)) for f in (copied, product)}
    return {"copy_bytes_per_second": 2 * a.numel() * 2 / best[copied],
            "bfloat16_flops_per_second": 2 * 8192**3 / best[product]}  # fmt: skip


def clocks() -> str | None:
    """Clocks as nvidia-smi tells them, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,clocks.max.sm", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or None


def measure(part: str, results: Path, device: str, chosen: list[str], console: Console) -> None:
    """All cases of a part, into ``results/<part>.json``."""
    results.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine.describe(), "clocks": clocks(), **rates(device), "cases": []}
    for size in SIZES:
        for width in WIDTHS:
            for dtype in DTYPES:
                if chosen and not {f"{width}-{size}", f"{width}-{size}-{dtype}"} & set(chosen):
                    continue
                case = measure_case(part, width, size, dtype, device)
                report["cases"].append(case)
                (results / f"{part}.json").write_text(json.dumps(report, indent=1) + "\n")
                console.print(table(case, report["copy_bytes_per_second"]))


def table(case: dict, copy_rate: float | None) -> Table:
    """One case as a table: microseconds, error, how many times as fast ours is, share of the copy bandwidth."""
    found = Table(title=f"{case['part']} {case['width']} {case['size']} {case['dtype']}")
    for column in ("contender", "us", "error", "of copy bandwidth", ""):
        found.add_column(column)
    for name, entry in case["contenders"].items():
        seconds = statistics.median(entry["seconds"]) if entry["seconds"] else None
        share = case["useful_bytes"] / seconds / copy_rate if seconds and copy_rate else None
        found.add_row(name, f"{seconds * 1e6:.1f}" if seconds else "", f"{entry['error']:.1e}" if entry["error"] else "",
                      f"{share:.0%}" if share else "", entry["failure"] or "")  # fmt: skip
    return found


def build(results: Path) -> int:
    """Installs the package from this checkout, without network; compiles for this machine's GPU what is not there yet.

    Extension modules built elsewhere serve as they are: their ABI is stable, and time on a GPU is not for compiling.
    """
    environment = dict(os.environ)
    if all((PACKAGE / f"{name}.abi3.so").is_file() for name in ("_C", "_C_cuda")):
        environment["HRNET_FAST_NO_EXT"] = "1"
    elif torch.cuda.is_available():
        environment.setdefault("TORCH_CUDA_ARCH_LIST", "{}.{}".format(*torch.cuda.get_device_capability()))
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
    return subprocess.run(command, check=False, env=environment).returncode


def test(results: Path) -> int:
    """The tests that need a GPU."""
    results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", f"--junitxml={results / 'test.xml'}"]
    return subprocess.run(command, check=False).returncode


def sanitize(results: Path) -> int:
    """compute-sanitizer over a small list of cases, where it is installed."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer is not installed: nothing was checked")
        return 0
    suite = [sys.executable, "-m", "pytest", "-q", "tests/test_gpu.py", "-k", "matches and (odd or projected-36)"]
    codes = [subprocess.run([tool, "--tool", check, "--error-exitcode", "9", *suite], check=False).returncode
             for check in ("memcheck", "racecheck")]  # fmt: skip
    return max(codes)


def memory(results: Path) -> int:
    """Memory and time of a training step of the whole network."""
    return training_memory.main(["--device", "cuda", "--steps", "10", "--json", str(results / "memory.json")])


RIVALS_SIZE = (1024, 2048)


def rivals(results: Path, limit: float | None = None) -> int:
    """HRNet and the networks it was published against, in float16; without a GPU on the CPU, only to try this program."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = f"{RIVALS_SIZE[0]}x{RIVALS_SIZE[1]}"
    arguments = ["--device", device, "--size", size, "--dtype", "float16", "--budget", "60", "--results", str(results)]
    return benchmarks_rivals.main(arguments)


STEPS = {"build": build, "test": test, "sanitize": sanitize, "memory": memory, "rivals": rivals}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts that are named, or all of them in order."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=[*STEPS, *PARTS], help="default: all, in this order")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/gpu"), help="folder for the results")
    parser.add_argument("--cases", nargs="*", default=[], help="such as w48-1024x2048 or w18-512x1024-float16")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: only to try this program")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no NVIDIA GPU here: nothing can be measured", file=sys.stderr)
        return 2
    worst = 0
    for part in given.part or [*STEPS, *PARTS]:
        print(f"== {part}", flush=True)
        if part in STEPS:
            worst = max(worst, STEPS[part](given.results))
        else:
            measure(part, given.results, given.device, given.cases, Console())
    return worst


if __name__ == "__main__":
    sys.exit(main())
