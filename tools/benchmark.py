"""`python tools/benchmark.py ...` is `vidcm benchmark ...`."""

import sys

from vidcm.cli.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
