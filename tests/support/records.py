"""Results of the benchmarks that were not measured: for tables, plots and goals."""

from hrnet_fast.bench import contenders
from hrnet_fast.bench.record import Entry, Record, Report, finish


def entry(name: str, error: float, tolerance: float, samples: list[float], loops: int = 1) -> Entry:
    return Entry(name, error, error <= tolerance, samples=samples, loops=loops)


def stored_report(name: str = "model-w48-512x512-float32", faster: float = 1.5) -> Report:
    made = [
        entry(contenders.CHANNELS_LAST, 1e-7, 1e-4, [0.61, 0.60, 0.62], 1),
        entry(contenders.FOLDED, 1e-7, 1e-4, [0.58, 0.57, 0.59], 1),
        entry(contenders.COMPILED, 1e-7, 1e-4, [0.45, 0.44, 0.46], 1),
        entry(contenders.FAST, 2e-7, 1e-4, [0.6 / faster] * 3, 1),
    ]
    case = Record(
        name,
        f"description of {name}",
        "float32",
        1e-4,
        finish(made),
        params=65859379,
        gflops_published=88.0,
        shares={"head": 0.12},
    )
    case.entries[0].peak_memory_bytes = 1 << 28
    case.entries[0].argmax_agreement = 0.999
    return Report([case])


def measured(name: str, other_is_off: bool = False) -> Report:
    """A case in which optimize takes half as long as the best other engine, OpenVINO."""
    made = [
        entry(contenders.CHANNELS_LAST, 1e-7, 1e-4, [0.6] * 3, 1),
        entry("OpenVINO", 2e-4 if other_is_off else 1e-7, 1e-4, [0.4] * 3, 1),
        entry(contenders.COMPILED, 1e-7, 1e-4, [0.5] * 3, 1),
        entry(contenders.FAST, 1e-7, 1e-4, [0.15] * 3, 1),  # ours, but not what the table is about
        entry(contenders.OPTIMIZED, 1e-7, 1e-4, [0.2] * 3, 1),
    ]
    case = Record(name, f"description of {name}, float32", "float32", 1e-4, finish(made), neighbours=0.5)
    return Report([case])
