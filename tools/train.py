"""`python tools/train.py ...` (or `deepspeed tools/train.py ...`) is `vidcm train ...`."""

import sys

from vidcm.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
