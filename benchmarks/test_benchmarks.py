"""The cases of the suite under pytest-benchmark: ``pytest benchmarks --benchmark-only``.

By default a quick selection runs; ``HRNET_FAST_BENCH_CASES='exchange-* head-*'`` selects others by name. Each contender
of a case is one test, and is compared with the float64 reference before it is timed. For ratios between contenders use
``python -m benchmarks.run``, where they take turns.
"""

import os

import pytest

pytest.importorskip("pytest_benchmark")

from benchmarks import cases

QUICK = "exchange-c18-128x128-* exchange-c48-128x128-* unit-w18-stage4-* head-w18-*"
SELECTED = cases.select(os.environ.get("HRNET_FAST_BENCH_CASES", QUICK).split())


@pytest.mark.parametrize("case", SELECTED, ids=lambda case: case.name)
@pytest.mark.parametrize("form", [cases.CHANNELS_LAST, cases.FOLDED, cases.FAST])
def test_case(benchmark, case, form):
    prepared = case.prepare()
    if form not in prepared.calls:
        pytest.skip(f"{case.name} has no contender {form!r}")
    benchmark.group = case.name
    error = prepared.error(form)
    assert error <= prepared.tolerance
    benchmark.extra_info["error"] = error
    benchmark(prepared.calls[form])
