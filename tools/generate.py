"""`python tools/generate.py ...` is `vidcm generate ...`."""

import sys

from vidcm.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
