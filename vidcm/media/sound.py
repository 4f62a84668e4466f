"""The sound of an edited clip: its source's own packets, unchanged, where the timing is."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError

from vidcm.errors import VidcmError
from vidcm.files import replacing
from vidcm.media.demux import Timestamps, opened, regular_file
from vidcm.media.encoders import ENCODINGS

SECONDS = 30.0  # a deadline, as that of reading frames


class NoSound(VidcmError):
    """Why a clip goes without the sound of its source, as the end of a sentence."""


def pass_sound(sources: Sequence[Path], result: Path, in_time: bool, start: float) -> list[str]:
    """Put the sound of the one video among `sources` into `result` if it is in time with that, from
    second `start` on; returns in words why the sound of others is left out."""
    notes = []
    for source in sources:
        if source.is_dir() or source.suffix.lower() == ".png" or not has_sound(source):
            continue
        try:
            if result.suffix.lower() not in (".mp4", ".webm"):
                raise NoSound(f"{result.suffix or 'png'} files hold none")
            if not in_time:
                raise NoSound("the result has another timing")
            add_sound(result, source, start)
        except NoSound as why:
            notes.append(f"{source}: its sound is left out: {why}")
    return notes


def has_sound(source: Path) -> bool:
    """Whether a video holds sound. Raises BadClip for what is no video."""
    with opened(regular_file(source), time.monotonic() + SECONDS) as held:
        return bool(held.container.streams.audio)


def add_sound(video: Path, source: Path, start: float = 0.0) -> None:
    """Put the first sound of `source` from second `start` on into `video`, an .mp4 or .webm whose
    second 0 that is, for as long as that lasts; in place, whole or not at all.

    Packets are copied, not coded anew, so that the beginning is met to within one (about 20 ms).
    Raises NoSound where the container does not take them, VidcmError where it cannot be written."""
    stop = time.monotonic() + SECONDS
    kind = video.suffix.lower()
    options = ENCODINGS[kind].container
    try:
        with (
            replacing(video) as part,
            opened(regular_file(source), stop) as held,
            av.open(f"file:{video}") as made,
            av.open(f"file:{part}", "w", kind[1:], options) as out,
        ):
            _copy(made, held.container, out, _origin(source, stop) + start)
    except FFmpegError as error:
        raise VidcmError(f"cannot put sound into {video}: {error.strerror or error}") from None


def _origin(source: Path, stop: float) -> float:
    """The second, by the timestamps of a file, that its first frame is shown at."""
    with opened(regular_file(source), stop) as held:
        stamps = Timestamps(held, held.first_frame())
        return stamps.origin * stamps.tick


def _copy(made: InputContainer, source: InputContainer, out: OutputContainer, start: float) -> None:
    """All of `made` and of the sound of `source` as much, from second `start` of its own clock."""
    pictures, sound = made.streams.video[0], source.streams.audio[0]
    if sound.codec_context is None or sound.codec_context.name not in out.supported_codecs:
        name = "an unknown codec" if sound.codec_context is None else sound.codec_context.name
        raise NoSound(f".{out.format.name} does not hold {name}")
    targets: dict[Any, Any] = {
        pictures: out.add_stream_from_template(pictures),
        sound: out.add_stream_from_template(sound),
    }
    packets: list[av.Packet[Any]] = [p for p in made.demux(pictures) if p.size]
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
