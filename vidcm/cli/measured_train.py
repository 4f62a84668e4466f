"""`python -m vidcm.cli.measured_train PEAK.json OPTION ...`: `vidcm train`, then its peak memory.

The command that `evaluation.timed_training` starts in processes of their own.
"""

import json
import sys
from pathlib import Path

from vidcm.cli.train import main as train
from vidcm.evaluation.timed_training import peak_memory
from vidcm.files import write_text


def main(argv: list[str]) -> int:
    code = train(argv[1:])
    write_text(Path(argv[0]), json.dumps(peak_memory()) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
