"""The benchmark suite: ``python -m benchmarks.run`` from the root of a checkout."""
