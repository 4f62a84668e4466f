"""`python tools/serve.py ...` is `vidcm serve ...`."""

import sys

from vidcm.cli.serve import main

if __name__ == "__main__":
    sys.exit(main())
