"""`python tools/edit.py ...` is `vidcm edit ...`."""

import sys

from vidcm.cli.edit import main

if __name__ == "__main__":
    sys.exit(main())
