"""Whole networks against other inference engines: ``python -m benchmarks.engines [--cases PATTERN ...]``.

Every engine of benchmarks/peers gets the same weights and the same photograph, is compared with float64, and takes
turns with the others. One that cannot run is listed with its reason. Each contender's memory is that of a process of
its own. In bfloat16 some engines miss the tolerance by a little, which is rounding and no mistake: up to SLACK times
the tolerance others are timed, and the table has their error; ours are not. In int8 every engine takes its scales from
the same images, which are other views of the photograph. Results go to benchmarks/results/engines/<instruction set>/:
those of several machines lie side by side.
"""

import sys
from collections.abc import Sequence

from benchmarks import cases, run


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the selected cases; 0 if hrnet_fast agrees with float64 where it ran, else 1; 2 for wrong arguments."""
    return run.main(argv, cases.ENGINES, __doc__, budget=20.0)


if __name__ == "__main__":
    sys.exit(main())
