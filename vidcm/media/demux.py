"""Open a video safely and iterate over its packets, frames and their seconds.

Nothing is decoded before the file is known to be regular, a video container and small enough.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vidcm.media.media_file import EBML, PROTOCOLS, BadClip, MediaFile, why
from vidcm.media.timing import hold_seconds

log = logging.getLogger(__name__)

MAX_FRAME_PIXELS = 7680 * 4320  # one decoded frame
MAX_PIXELS = 2**29  # all frames of one call together, 3 bytes each
# Real containers only: FFmpeg would also "play" text, play lists, and scripts naming other files.
FORMATS = (
    "mov,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,m4v,h264,hevc,vvc,obu,ivf,flv,ogg,asf,"
    "mxf,nut"
)
SIZED = ("mov", "matroska", "gif", "apng", "avi", "ivf")  # these always store the frame size
# Names of boxes in mp4, first bytes of other containers: such files are damaged, not another kind.
BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"styp", b"sidx", b"free", b"skip", b"wide")
MAGIC = (EBML, b"RIFF", b"OggS", b"FLV", b"GIF8", b"\0\0\1", b"\0\0\0\1", b"0&\xb2u")

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def check_pixels(file: str, height: int, width: int, count: int, limit: int) -> None:
    """Raise BadClip `too-large` if a frame, or `count` frames, exceed the limits of memory."""
    for number, most in ((1, MAX_FRAME_PIXELS), (count, limit)):
        if number * height * width > most:
            size = f"{number} frame(s) of {width}x{height}, at most {most} pixels"
            raise BadClip(file, "too-large", f"{size}; shrink the video or raise the limit")


@dataclass(frozen=True)
class Source:
    """An opened video.

    Attributes:
        media: its bytes.
        container: the demuxer.
        stream: the video that players choose, by its flags and bit rate; no cover picture.
        stop: deadline on `time.monotonic()`.
        decoder: of the pictures.
    """

    media: MediaFile
    container: InputContainer
    stream: VideoStream
    stop: float
    decoder: VideoCodecContext

    @property
    def file(self) -> str:
        """Its path, for messages."""
        return self.media.name

    def packets(self) -> Iterator[av.Packet]:
        """Yield the following packets, last the empty one that flushes the decoder."""
        try:
            for packet in self.container.demux(self.stream):
                if time.monotonic() > self.stop:
                    raise BadClip(self.file, "timeout", "decoding went past the deadline")
                yield packet
        except (FFmpegError, ValueError) as error:
            raise BadClip(self.file, "decode-error", f"cannot read on ({why(error)})") from None

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield the following frames, decoded; half a packet at the very end is `truncated`."""
        torn: BadClip | None = None
        for packet in self.packets():
            if torn and packet.size:
                raise BadClip(self.file, "decode-error", torn.detail)
            try:
                yield from self.decoder.decode(packet)
            except (FFmpegError, ValueError) as error:
                ticks = packet.pts if packet.pts is not None else packet.dts
                where = "" if ticks is None else f" at {float(ticks * packet.time_base):.3f} s"
                detail = f"{why(error)}{where}"
                if not packet.is_corrupt:
                    raise BadClip(self.file, "decode-error", detail) from None
                torn = BadClip(self.file, "truncated", detail)
        if torn:
            raise torn

    def seek(self, ticks: int) -> None:
        """Go to the key frame before a timestamp of the stream. Raises FFmpegError."""
        self.container.seek(ticks, stream=self.stream)
        self.decoder.flush_buffers()

    def first_frame(self) -> av.VideoFrame:
        """The next frame. Raises BadClip if there is none."""
        for frame in self.frames():
            return frame
        raise self.short("it has no frame")

    def short(self, detail: str) -> BadClip:
        """The error for a video that ends too early: `truncated` if the end of its file is gone.

        Headers do not tell: they count sound and subtitles too, and lie.
        """
        if max(self._index_end(), self.media.segment_end) <= self.media.size:
            return BadClip(self.file, "too-short", detail)
        return BadClip(self.file, "truncated", f"{detail}, and the end of the file is missing")

    def _index_end(self) -> int:
        """Byte at which the last packet of the index ends, 0 without an index."""
        return max((entry.pos + entry.size for entry in self.stream.index_entries), default=0)


@contextmanager
def opened(media: MediaFile, stop: float) -> Iterator[Source]:
    """Open a video, checked by its header alone.

    Args:
        media: from `media_file`.
        stop: deadline on `time.monotonic()`.

    Raises:
        BadClip: not a video, or one too large to decode.
    """
    # max_pixels: refuses a frame larger than the header said, before memory is taken for it.
    # explode: damaged frames are errors; without it they come back smeared, without an error.
    options = {"max_pixels": str(MAX_FRAME_PIXELS), "err_detect": "explode"}
    try:
        container = av.open(
            media.url,
            options={"max_pixels": options["max_pixels"]},
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": PROTOCOLS},
            metadata_errors="replace",
        )
    except (FFmpegError, ValueError) as error:
        head = media.read(189)
        known = head[4:8] in BOXES or head.startswith(MAGIC) or head[::188] == b"GG"  # MPEG-TS
        reason, detail = ("unreadable" if known else "not-video"), f"cannot open ({why(error)})"
        raise BadClip(media.name, reason, detail) from None
    with container:
        cover = Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise BadClip(media.name, "no-video-stream", "only sound, text or cover pictures")
        stream = next((s for s in streams if s == container.streams.best("video")), streams[0])
        codec = stream.codec_context
        if codec is None:
            raise BadClip(media.name, "unreadable", "no decoder for its video codec")
        if not codec.height * codec.width:  # FFmpeg clears what passes max_pixels
            sized = container.format.name.startswith(SIZED)
            detail = f"its header gives no frame size, or one above {MAX_FRAME_PIXELS} pixels"
            raise BadClip(media.name, "too-large" if sized else "unreadable", detail)
        codec = _with_alpha(stream) or codec
        codec.thread_count = 1  # parallelism is one reader per data worker
        codec.options = options
        yield Source(media, container, stream, stop, codec)


def _with_alpha(stream: VideoStream) -> VideoCodecContext | None:
    """The decoder of a WebM stream that has a second one for alpha, which FFmpeg's own ignore."""
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if tags.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    codec = VideoCodecContext.create(name, "r")
    assert isinstance(codec, VideoCodecContext)
    codec.extradata = stream.codec_context.extradata
    return codec


class Timestamps:
    """Seconds since the first frame.

    They come from pts, from dts in AVI, which stores no pts, and from counting at the assumed rate
    in raw streams, which store no times (`stamp` is then empty).
    """

    def __init__(self, source: Source, first: av.VideoFrame) -> None:
        stream = source.stream
        self.file, self.counted = source.file, 0
        self.stamp = "dts" if source.container.format.name == "avi" else "pts"
        origin, self.tick = getattr(first, self.stamp), float(first.time_base or 0)
        if origin is None:
            rate = float(stream.guessed_rate or stream.average_rate or 25)
            self.stamp, origin, self.tick = "", 0, 1 / rate
            log.info("%s stores no timestamps; taken as %.3f frames a second", self.file, rate)
        self.origin: int = origin

    def of_frame(self, frame: av.VideoFrame) -> float:
        """Second of a frame; must be called once for every frame, in order."""
        self.counted += 1
        ticks = getattr(frame, self.stamp) if self.stamp else self.counted - 1
        if ticks is None:
            raise BadClip(self.file, "decode-error", "a frame has no timestamp, others have")
        return (ticks - self.origin) * self.tick

    def duration(self, item: av.VideoFrame | av.Packet) -> float:
        """Seconds for which a frame, or that of a packet, is shown; 0 if the file does not say."""
        return (item.duration or 0) * self.tick if self.stamp else self.tick

    def of_last(self, packets: Iterator[av.Packet]) -> tuple[float, float]:
        """Second of the last complete packet with a visible frame, and seconds that it is shown.

        Both are 0 if there is none. Before half a packet, the last complete one has no such
        seconds, for reading them means reading that half.
        """
        seen: list[tuple[float, float]] = []  # the last two
        count, torn = 0, False
        for packet in packets:
            torn = torn or packet.is_corrupt
            if not packet.size or packet.is_corrupt or packet.is_discard:
                continue
            count += 1
            ticks = getattr(packet, self.stamp) if self.stamp else count - 1
            if ticks is not None:
                now = ((ticks - self.origin) * self.tick, self.duration(packet))
                seen = sorted([*seen, now])[-2:]
        if not seen:
            return 0.0, 0.0
        last, duration = seen[-1]
        return max(last, 0.0), 0.0 if torn else hold_seconds(duration, last - seen[0][0])
