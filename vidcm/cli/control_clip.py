"""`vidcm generate --control-video`: a clip that generated clips follow, and its mask."""

import argparse
from typing import Any

from vidcm.cli.argument_types import existing_file, number
from vidcm.errors import UsageError
from vidcm.settings import PipelineSettings


def add_control_clip(group: argparse._ActionsContainer) -> None:
    """The options of control clips."""
    group.add_argument(
        "--control-video",
        type=existing_file,
        metavar="PATH",
        help="clip to follow, as of depths, poses or parts that stay, for models that take one",
    )
    group.add_argument(
        "--control-mask",
        metavar="MASK",
        help="where the control clip is to be generated; elsewhere it stays (default: everywhere). "
        "As --mask of vidcm edit: a box, a colour, a picture or a clip, white where to generate",
    )
    group.add_argument(
        "--control-scale", type=number(0, 10), help="weight of the control clip (default: 1)"
    )


def control_clip(args: argparse.Namespace, settings: PipelineSettings) -> dict[str, Any]:
    """The arguments of `VideoPipeline` for these options.

    Raises:
        UsageError: They do not belong together.
        BadClip: A file cannot be read.
    """
    if args.control_video is None:
        if args.control_mask is not None or args.control_scale is not None:
            raise UsageError("--control-mask and --control-scale are of a --control-video; add one")
        return {}
    from vidcm.media.load import load_clip
    from vidcm.media.masks import load_mask

    fps = settings.fps if args.fps is None else args.fps
    clip = load_clip(args.control_video, fps, args.frames or settings.num_frames, 0.0)
    found: dict[str, Any] = {"control_video": clip.frames}
    if args.control_mask is not None:
        found["control_mask"] = load_mask(args.control_mask, clip, fps)
    if args.control_scale is not None:
        found["control_scale"] = args.control_scale
    return found
