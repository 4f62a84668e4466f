"""The sound of an edited clip: packets of its source, copied where the timing is unchanged."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError

from vidcm.errors import VidcmError
from vidcm.files import replacing
from vidcm.media.demux import Timestamps, opened
from vidcm.media.encoders import ENCODINGS
from vidcm.media.media_file import media_file
from vidcm.media.pictures import is_pictures

SECONDS = 30.0  # deadline of reading, as for frames


class NoSound(VidcmError):
    """A reason why the sound of a source cannot be kept, worded as the end of a sentence."""


def pass_sound(sources: Sequence[Path], result: Path, in_time: bool, start: float) -> list[str]:
    """Add the sound of the sources to a result where that is possible.

    Args:
        sources: inputs of an edit.
        result: the file written for it.
        in_time: whether the result has the timing of the source.
        start: seconds of the source that the edit skipped.

    Returns:
        A sentence for each sound that is left out.

    Raises:
        VidcmError: reading or writing fails.
    """
    notes = []
    for source in sources:
        if is_pictures(source) or not has_sound(source):
            continue
        try:
            if result.suffix.lower() not in (".mp4", ".webm"):
                raise NoSound(f"{result.suffix or 'png'} files have no sound")
            if not in_time:
                raise NoSound("the result has another timing")
            add_sound(result, source, start)
        except NoSound as reason:
            notes.append(f"{source}: its sound is left out: {reason}")
    return notes


def has_sound(source: Path) -> bool:
    """Whether a video has sound. Raises BadClip if the file is not a video."""
    with opened(media_file(source), time.monotonic() + SECONDS) as video:
        return bool(video.container.streams.audio)


def add_sound(video: Path, source: Path, start: float = 0.0) -> None:
    """Add the first sound of a source to a video, in place and atomically.

    Packets are copied without encoding, so that the start is exact to one packet (about 20 ms).

    Args:
        video: an .mp4 or .webm.
        source: a video with sound.
        start: second of the source at which `video` starts.

    Raises:
        NoSound: the container does not support the codec, or the source is silent there.
        VidcmError: reading or writing fails.
    """
    stop = time.monotonic() + SECONDS
    kind = video.suffix.lower()
    options = ENCODINGS[kind].container
    try:
        with (
            replacing(video) as part,
            opened(media_file(source), stop) as sound,
            av.open(f"file:{video}") as pictures,
            av.open(f"file:{part}", "w", kind[1:], options) as out,
        ):
            _copy(pictures, sound.container, out, _origin(source, stop) + start)
    except FFmpegError as error:
        raise VidcmError(f"cannot put sound into {video}: {error.strerror or error}") from None


def _origin(source: Path, stop: float) -> float:
    """Second of the first frame by the timestamps of the file."""
    with opened(media_file(source), stop) as video:
        stamps = Timestamps(video, video.first_frame())
        return stamps.origin * stamps.tick


def _copy(
    video: InputContainer, source: InputContainer, out: OutputContainer, start: float
) -> None:
    """Copy all of `video`, and as many seconds of the sound of `source` from second `start`."""
    pictures, sound = video.streams.video[0], source.streams.audio[0]
    if sound.codec_context is None or sound.codec_context.name not in out.supported_codecs:
        name = "an unknown codec" if sound.codec_context is None else sound.codec_context.name
        raise NoSound(f".{out.format.name} does not support {name}")
    targets: dict[Any, Any] = {
        pictures: out.add_stream_from_template(pictures),
        sound: out.add_stream_from_template(sound),
    }
    packets: list[av.Packet[Any]] = [p for p in video.demux(pictures) if p.size]
    end = start + max(_seconds(p, p.pts) + _seconds(p, p.duration) for p in packets)
    before = len(packets)
    for packet in source.demux(sound):
        at = _seconds(packet, packet.pts)
        if at >= end:
            break
        if packet.size and at + _seconds(packet, packet.duration) > start:
            shift = round(start / _seconds(packet, 1))
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packets.append(packet)
    if len(packets) == before:
        raise NoSound("it is silent in these seconds")
    for packet in sorted(packets, key=lambda p: _seconds(p, p.pts if p.dts is None else p.dts)):
        packet.stream = targets[packet.stream]
        out.mux(packet)


def _seconds(packet: av.Packet, ticks: int | None) -> float:
    return 0.0 if ticks is None or packet.time_base is None else float(ticks * packet.time_base)
