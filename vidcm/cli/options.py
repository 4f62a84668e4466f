"""Options that commands share, each defined once, and the checks that go with them."""

import argparse
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

from vidcm.cli.argument_types import clip_output, device, integer, lora, number, seed, sides
from vidcm.errors import UsageError, VidcmError
from vidcm.files import on_hub


def add_device(group: argparse._ActionsContainer) -> None:
    """The option `--device`."""
    group.add_argument(
        "--device",
        type=device,
        default="auto",
        help="auto (a GPU when there is one), cpu, cuda, cuda:1",
    )


def add_checkpoint(group: argparse._ActionsContainer) -> None:
    """The option `--checkpoint`, of commands that read a pipeline."""
    group.add_argument(
        "--checkpoint", default="lpc-64", help="a bundled model or a pipeline folder"
    )


def add_seed(group: argparse._ActionsContainer, meaning: str) -> None:
    """The option `--seed`; meaning: the noun phrase of its help, as "of the prompts"."""
    group.add_argument("--seed", type=seed, default=0, help=f"{meaning}")


def add_sampling(group: argparse._ActionsContainer) -> None:
    """The options that choose a model and its sampler."""
    group.add_argument(
        "--steps", type=integer(1, 1000), help="sampling steps (default: the checkpoint's)"
    )
    group.add_argument(
        "--guidance",
        type=number(0, 100),
        help="guidance scale; 1 is without guidance (default: the checkpoint's)",
    )
    group.add_argument(
        "--teacher", action="store_true", help="sample the many-step teacher instead of the student"
    )
    group.add_argument(
        "--lora",
        type=lora,
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="low-rank updates of a public model, as a .safetensors file; may be repeated",
    )
    add_checkpoint(group)
    add_device(group)


def add_output(group: argparse._ActionsContainer, stem: str) -> None:
    """The options of a command that writes clips; stem: of the default name (`free_output`)."""
    group.add_argument(
        "--output",
        type=clip_output,
        metavar="PATH",
        help="mp4, webm, gif, png (a sprite sheet), or a folder with a final / (png frames); "
        f"default: {stem}.mp4, or the next {stem}-2.mp4, {stem}-3.mp4 that is free",
    )
    group.add_argument(
        "--scale", type=integer(1, 64), default=4, help="enlarge pixels this many times"
    )
    group.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def add_size(group: argparse._ActionsContainer, meaning: str, default: Any = None) -> None:
    """The option `--size`; meaning: of its help."""
    kind = sides("HEIGHTxWIDTH")
    group.add_argument("--size", type=kind, default=default, metavar="HxW", help=meaning)


def add_bucket(group: argparse._ActionsContainer, meaning: str) -> None:
    """The option `--bucket`, which may be repeated; meaning: of its help."""
    kind, what = sides("FRAMESxHEIGHTxWIDTH"), f"a further shape, as 33x64x112, {meaning}"
    group.add_argument(
        "--bucket", type=kind, action="append", default=[], metavar="FxHxW", help=what
    )


def add_art(group: argparse._ActionsContainer) -> None:
    """The option `--art`, which `art_of` reads."""
    group.add_argument("--art", help="the LPC layers, folder or tar (default: $VIDCM_LPC_ART)")


def check_model_folder(path: str | Path) -> None:
    """Raise UsageError for a folder without a card, vidcm's or diffusers'; needs no torch."""
    cards = "model.json", "config.json"
    if not on_hub(path) and not any(Path(path, card).is_file() for card in cards):
        raise UsageError(
            f"{path} is not a model folder (no model.json); give the `final` folder of a run"
        )


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before hours of work for it. Raises VidcmError."""
    parent = next(p for p in Path(os.path.realpath(path)).parents if p.exists())
    try:
        # permission bits do not tell of read-only mounts
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise VidcmError(f"cannot write {path} into {parent}: {error.strerror}") from None


def free_output(stem: str, count: int) -> str:
    """The first of stem.mp4, stem-2.mp4, ... whose files for `count` clips do not exist."""
    from vidcm.media.write import numbered

    names = (f"{stem}-{i}.mp4" if i > 1 else f"{stem}.mp4" for i in itertools.count(1))
    return next(n for n in names if not any(Path(p).exists() for p in numbered(n, count)))


def art_of(args: argparse.Namespace) -> str:
    """Return `--art`, or VIDCM_LPC_ART. Raises UsageError when neither is set."""
    art = args.art or os.environ.get("VIDCM_LPC_ART")
    if not art:
        raise UsageError("the true clips need the LPC art; give --art, or set VIDCM_LPC_ART")
    return art
