"""The reader process ends with its parent, without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vidcm.media.write import write_clip

PARENT = """
import subprocess, sys
from pathlib import Path
from vidcm.media import worker

class Popen(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if sys.argv[2] == "starting":
            print("now", flush=True)

worker.subprocess.Popen = Popen
try:
    with worker.ReaderProcess() as reader:
        reader.probe(Path(sys.argv[1]))
        print("now", flush=True)
        while True:
            reader.load_clip(Path(sys.argv[1]), 8.0)
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("moment", ["starting", "working"])
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_reader_whose_parent_ends_says_nothing(tmp_path: Path, moment: str, how: str) -> None:
    clip = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (41, 64, 64, 3), dtype=np.uint8)
    write_clip(frames, clip, fps=8)
    command = [sys.executable, "-c", PARENT, str(clip), moment]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout and parent.stdout.readline() == "now\n"
    if how == "killed":
        parent.kill()
    else:
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    # The worker has the same stderr, so that this waits for its end.
    assert parent.communicate(timeout=60)[1] == ""
