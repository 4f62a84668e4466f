"""`python tools/tune.py ...` is `vidcm tune ...`."""

import sys

from vidcm.cli.tune import main

if __name__ == "__main__":
    sys.exit(main())
