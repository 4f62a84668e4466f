"""`vidcm encode --control`: what networks read beside captions, kept with the latents."""

import argparse
from typing import TYPE_CHECKING

from vidcm.cli.options import check_model_folder
from vidcm.errors import UsageError

if TYPE_CHECKING:
    import torch

    from vidcm.codecs.base import VideoCodec
    from vidcm.data.clip_control import ClipControl


def add_control(group: argparse._ActionsContainer) -> None:
    """The option `--control`."""
    group.add_argument(
        "--control",
        metavar="DIR",
        help="the network that will be trained, the folder transformer of a public pipeline, if it "
        "reads more than captions, as a picture that clips begin with: what it reads is kept too",
    )


def control_of(
    args: argparse.Namespace, codec: "VideoCodec", device: "torch.device"
) -> "ClipControl | None":
    """What makes the control of clips, if it is asked for.

    Raises:
        UsageError: The folder holds no public network, or one that reads captions alone.
    """
    if args.control is None:
        return None
    from vidcm.data.clip_control import ClipControl
    from vidcm.families.component import control_source

    check_model_folder(args.control)
    source = control_source(args.control)
    if source is None:
        raise UsageError(f"the network in {args.control} reads captions alone; leave out --control")
    return ClipControl(source, codec, device)
