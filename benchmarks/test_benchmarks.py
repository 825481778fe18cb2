"""The cases of the suite under pytest-benchmark: ``pytest benchmarks --benchmark-only``.

By default a quick selection runs; ``HRNET_FAST_BENCH_CASES='exchange-* head-*'`` selects others by name. Each contender
of a case is one test, and is compared with the float64 reference before it is timed. For ratios between contenders use
``python -m benchmarks.run``, where they take turns.
"""

import os

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from benchmarks import cases
from hrnet_fast.bench.harness import worst_error

QUICK = "exchange-c18-128x128-* exchange-c48-128x128-* unit-w18-stage4-* head-w18-*"
SELECTED = cases.select(os.environ.get("HRNET_FAST_BENCH_CASES", QUICK).split(), cases.cpu())


@pytest.mark.parametrize("case", SELECTED, ids=lambda case: case.name)
@pytest.mark.parametrize("form", [cases.CHANNELS_LAST, cases.FOLDED, cases.FAST])
def test_case(benchmark, case, form):
    if form not in case.contenders:
        pytest.skip(f"{case.name} has no contender {form!r}")
    problem = case.make("cpu")
    contender = case.contender(form, problem)
    benchmark.group = case.name
    with torch.inference_mode():
        error = worst_error(contender.call(), problem.reference())
        assert error <= case.tolerance
        benchmark.extra_info["error"] = error
        benchmark(contender.call)
