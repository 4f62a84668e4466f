"""`python tools/export.py ...` is `vidcm export ...`."""

import sys

from vidcm.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
