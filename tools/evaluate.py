"""`python tools/evaluate.py ...` is `vidcm evaluate ...`."""

import sys

from vidcm.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
