"""`python -m vidcm` is the `vidcm` command."""

import sys

from vidcm.cli import main

if __name__ == "__main__":
    sys.exit(main())
