"""Interlaced frames to progressive ones, by the filter bwdif of FFmpeg."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av
from av import error
from av.filter import Graph

from vidcm.media.media_file import BadClip
from vidcm.media.timed import TimedFrame

# One frame for each frame, so that times stay; frames that are not interlaced pass unchanged.
BWDIF = "mode=send_frame:parity=auto:deint=interlaced"


def progressive(file: str, frames: Iterator[TimedFrame]) -> Iterator[TimedFrame]:
    """Deinterlace what is marked as interlaced, with the times and durations of the input.

    Frames before the first interlaced one are passed on as they come; from there on the filter
    needs the frame before and the one after, so that three are in memory.

    Raises:
        BadClip: the frame size changes.
    """
    graph: Graph | None = None
    waiting: deque[TimedFrame] = deque()
    form: tuple[int, int, str] | None = None
    only = False
    for item in frames:
        if graph is None:
            if not item.frame.interlaced_frame:
                yield item
                continue
            graph, form, only = _graph(item.frame), _form(item.frame), True
        else:
            only = False
        if _form(item.frame) != form:
            detail = f"the frame size changes at {item.seconds:.3f} s"
            raise BadClip(file, "decode-error", detail)
        graph.push(item.frame)
        waiting.append(item)
        yield from _finished(graph, waiting)
    if graph is not None:
        if only:  # the filter leaves a frame without neighbours as it is
            graph.push(waiting[0].frame)
        graph.push(None)
        yield from _finished(graph, waiting)


def _form(frame: av.VideoFrame) -> tuple[int, int, str]:
    return frame.height, frame.width, frame.format.name


def _graph(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    deinterlace, sink = graph.add("bwdif", BWDIF), graph.add("buffersink")
    source.link_to(deinterlace)
    deinterlace.link_to(sink)
    graph.configure()
    return graph


def _finished(graph: Graph, waiting: deque[TimedFrame]) -> Iterator[TimedFrame]:
    """What the graph has ready: one frame for each that waits, in order."""
    while waiting:
        try:
            frame = graph.vpull()
        except (error.BlockingIOError, error.EOFError):
            return
        was = waiting.popleft()
        # The graph states no colours and takes what differs for a change of them.
        frame.colorspace, frame.color_range = was.frame.colorspace, was.frame.color_range
        frame.color_trc = was.frame.color_trc
        frame.color_primaries = was.frame.color_primaries
        yield was._replace(frame=frame)
