"""Pipeline folders of diffusers (`model_index.json`) in the place of vidcm's, and the hub's.

Such a folder has a teacher and a codec; sizes, rate and guidance are the defaults of the family.
"""

import re
from pathlib import Path

from vidcm.errors import UsageError
from vidcm.families.base import NEEDS_EXTRA, find_family
from vidcm.families.component import read_config
from vidcm.files import HUB
from vidcm.settings import PipelineSettings, StudentSettings, TeacherSettings

INDEX = "model_index.json"
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(/(?P<part>[\w.-]+))?")


def settings_of(folder: Path) -> PipelineSettings:
    """The settings of a pipeline folder of diffusers.

    Raises:
        UsageError: vidcm knows no family of its network.
        VidcmError: It is damaged.
    """
    boundary = read_config(folder, INDEX).get("boundary_ratio")
    family = find_family(str(read_config(folder / "transformer").get("_class_name")))
    scheduler = read_config(folder / "scheduler", "scheduler_config.json")
    frames, height, width, fps = family.defaults
    return PipelineSettings(
        frames,
        height,
        width,
        fps,
        StudentSettings(4, 1.0),
        TeacherSettings(50, family.guidance_scale, family.shift(scheduler)),
        boundary_ratio=boundary,
        folders={"codec": "vae", "teacher": "transformer"}
        | ({"teacher_2": "transformer_2"} if boundary else {}),
    )


def snapshot(name: str) -> Path:
    """The local folder of a pipeline on the Hugging Face hub, or of a part of it.

    Args:
        name: "hf://owner/name", or with a part as in "hf://owner/name/transformer".

    Raises:
        UsageError: It is not there, or the hub cannot be reached.
    """
    found = HUB_NAME.fullmatch(name.removeprefix(HUB))
    if found is None:
        raise UsageError(f"{name} is no name of the hub; write hf://owner/name/transformer")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UsageError(NEEDS_EXTRA.format(error)) from None
    part = found["part"]
    parts = ("text_encoder", "tokenizer", "scheduler", "image_encoder", "image_processor")
    shared = [*(f"{name}/*" for name in parts), "*.json"]
    patterns = [f"{part}/*", *shared] if part else ["transformer*/*", "vae/*", *shared]
    try:
        # tensors and text only: a pickle is never even fetched
        root = snapshot_download(
            found["repo"], allow_patterns=patterns, ignore_patterns=["*.bin", "*.pt", "*.pth"]
        )
    except Exception as error:  # the hub's library raises many kinds
        line = " ".join(str(error).split())[:120]
        raise UsageError(
            f"cannot get {name} from the hub ({type(error).__name__}: {line}); give a local folder"
        ) from None
    return Path(root, part) if part else Path(root)
