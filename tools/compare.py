"""`python tools/compare.py ...` is `vidcm compare ...`."""

import sys

from vidcm.cli.compare import main

if __name__ == "__main__":
    sys.exit(main())
