"""`python tools/encode.py ...` is `vidcm encode ...`."""

import sys

from vidcm.cli.encode import main

if __name__ == "__main__":
    sys.exit(main())
