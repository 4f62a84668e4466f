"""`python tools/reproduce.py ...` is `vidcm reproduce ...`."""

import sys

from vidcm.cli.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
