"""Our reader against FFmpeg's own program, over every file of some folders.

FFmpeg decodes a few seconds of a file, scaled and cropped to 64x64 as we do for training, and
frames of the same times are compared. So a wrong frame is seen, and neither the interpolation of
chroma nor that of scaling counts.
"""

import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from vidcm.errors import UsageError
from vidcm.evaluation.environment import environment
from vidcm.evaluation.markdown import grid, measured_on
from vidcm.evaluation.results import Results
from vidcm.media.colour import HD_HEIGHT, UNSPECIFIED
from vidcm.media.media_file import BadClip
from vidcm.media.timing import nearest
from vidcm.media.worker import ReaderProcess

KIND = "media"
SIDE = 64
SECONDS = 3.0  # of each file
COUNT = 7  # frames of them
MOST_DIFFERENCE = 6.0  # mean, in grey levels of 255
LEAST_CORRELATION = 0.9  # of luminance, where HDR is tone-mapped and levels differ
PROGRAM = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1"]
VERDICTS = {
    "right": "right",
    "wrong": "wrong frames",
    "both refuse": "refused by both",
    "refused": "refused, FFmpeg has frames",
    "hang": "hang or crash",
}


def judge_media(
    paths: Iterable[Path],
    deadline: float,
    output: Path,
    progress: Callable[[str], object],
    overwrite: bool = False,
) -> dict[str, Any]:
    """Results of every file, written as they are found; an interrupted run goes on.

    Args:
        paths: the files.
        deadline: seconds for one call of the reader.
        output: results file.
        progress: called with the name of a file that is done.
        overwrite: start anew where the file exists.

    Raises:
        UsageError: ffmpeg is not installed, or the file holds something else.
    """
    try:
        version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UsageError("the referee is the program ffmpeg, not installed; install it") from None
    protocol = {"side": SIDE, "seconds": SECONDS, "frames": COUNT, "deadline": deadline}
    protocol |= {"referee": version.stdout.splitlines()[0], "av": av.__version__}
    facts = {"kind": KIND, "protocol": protocol, "model": {}}
    results = Results(output, facts, environment("cpu"), overwrite=overwrite, sort_key=str)
    with ReaderProcess(deadline=deadline) as reader:
        for path in paths:
            if not results.has(path.name):
                results.add(path.name, row=_judged(path, reader))
            progress(path.name)
    return results.content()


def _judged(path: Path, reader: ReaderProcess) -> dict[str, Any]:
    restarts, began = reader.restarts, time.monotonic()
    reader.forget_peak_memory()
    row: dict[str, Any] = {}
    try:
        info = reader.probe(path)
        last = min(info.last_seconds - info.hold_seconds, SECONDS)
        times = np.linspace(0, last, COUNT)
        frames, seconds = reader.read(path, times, (SIDE, SIDE))
        row["hdr"] = info.hdr
    except BadClip as bad:
        frames = seconds = None
        row |= {"reason": bad.reason, "detail": bad.detail}
    row["wall"], row["memory"] = round(time.monotonic() - began, 2), reader.peak_memory()
    row["restarts"] = reader.restarts - restarts
    referee = _decoded(path)
    if row["restarts"]:
        return row | {"verdict": "hang"}
    if frames is None or seconds is None:
        return row | {"verdict": "refused" if referee else "both refuse"}
    if referee is None:
        return row | {"verdict": "right", "referee": "no frame"}
    stamps, pictures = referee
    index = nearest(stamps, seconds, SECONDS)
    ours, theirs = frames.astype(np.float32), pictures[index]
    row["lag"] = round(float(np.abs(stamps[index] - seconds).max()), 4)
    row["difference"] = round(float(np.abs(ours - theirs).mean((1, 2, 3)).max()), 2)
    alike = row["difference"] <= MOST_DIFFERENCE
    if row["hdr"]:
        pairs = zip(ours.mean(-1), theirs.mean(-1), strict=True)
        least = min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs)
        row["correlation"], alike = round(least, 3), not least < LEAST_CORRELATION
    return row | {"verdict": "right" if alike and row["lag"] < 0.002 else "wrong"}


def _decoded(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Seconds from the first frame, and frames float `(t h w 3)`, by ffmpeg; None without any."""
    with tempfile.NamedTemporaryFile(suffix=".nut") as raw:
        filters = (  # on black where transparent, in square pixels, cropped to the size
            f"{_matrix(path)}format=rgba,format=gbrap,premultiply=inplace=1,format=rgb24,"
            f"scale=iw*sar:ih,setsar=1,scale={SIDE}:{SIDE}:flags=bilinear:"
            f"force_original_aspect_ratio=increase,crop={SIDE}:{SIDE}"
        )
        command = [*PROGRAM, "-i", f"file:{path}", "-an", "-sn", "-dn", "-t", str(SECONDS + 1)]
        command += ["-vf", filters, "-fps_mode", "passthrough", "-enc_time_base", "-1"]
        command += ["-pix_fmt", "rgb24"]
        command += ["-c:v", "rawvideo", "-f", "nut", "-y", raw.name]
        subprocess.run(command, capture_output=True)
        stamps, pictures = [], []
        try:
            with av.open(raw.name) as video:
                for frame in video.decode(video=0):
                    stamps.append(frame.time or 0.0)
                    pictures.append(frame.to_ndarray(format="rgb24").astype(np.float32))
        except (FFmpegError, IndexError):
            pass
    if not stamps:
        return None
    seconds = np.array(stamps) - stamps[0]
    keep = np.concatenate([[True], np.diff(seconds) > 0])
    return seconds[keep], np.stack(pictures)[keep]


def _matrix(path: Path) -> str:
    """A filter: HD without a colour matrix is BT.709 as in players, not BT.601."""
    try:
        with av.open(path) as video:
            frame = next(video.decode(video=0))
            untagged = frame.colorspace == UNSPECIFIED and frame.height >= HD_HEIGHT
    except (FFmpegError, IndexError, AttributeError, StopIteration):
        return ""
    return "scale=in_color_matrix=bt709," if untagged else ""


def media_table(results: dict[str, Any]) -> str:
    """Numbers of files by verdict, and every file that is not right, in markdown."""
    rows = results["rows"]
    counts = Counter(row["verdict"] for row in rows.values())
    lines = [[text, str(counts[key])] for key, text in VERDICTS.items()]
    lines.append(["all", str(len(rows))])
    others = [
        [name, VERDICTS[row["verdict"]], row.get("reason", f"difference {row.get('difference')}")]
        for name, row in sorted(rows.items())
        if row["verdict"] in ("wrong", "refused", "hang")
    ]
    protocol = results["protocol"]
    memory = max(row["memory"] for row in rows.values()) / 1e6
    text = (
        f"{protocol['frames']} frames of the first {protocol['seconds']:g} s of each file. The "
        f"reading process took {memory:.0f} MB at most, a file "
        f"{max(row['wall'] for row in rows.values()):.1f} s. Referee: {protocol['referee']}; PyAV "
        f"{protocol['av']}. Measured with {measured_on(results['environments'][0])}."
    )
    tables = [grid(["files", "number"], lines)]
    if others:
        tables.append(grid(["file", "verdict", "why"], others))
    return "\n\n".join([*tables, text]) + "\n"
