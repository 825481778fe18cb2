"""``python -m hrnet_fast`` is ``hrnet-fast``."""

import sys

from hrnet_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
