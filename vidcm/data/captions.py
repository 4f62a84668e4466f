"""Captions of the videos below a folder, from one metadata file or texts beside them."""

import logging
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vidcm.data.sidecars import METADATA, read_metadata, read_text, without_blanks
from vidcm.data.videos import few, why_not_taken
from vidcm.errors import UsageError

log = logging.getLogger(__name__)


def match_captions(
    root: Path, names: Sequence[str], left_out: Sequence[str], policy: str
) -> dict[str, list[str]]:
    """Captions by name, complete in both directions except as the policy allows.

    Args:
        root: the folder.
        names: of the videos and pictures that need captions.
        left_out: names that may have captions, which are not read.
        policy: for names without a caption: "error", "empty" or "skip".

    Raises:
        UsageError: names and captions do not match.
    """
    files = [root / name for name in METADATA if (root / name).is_file()]
    if len(files) > 1:
        raise UsageError(f"{root} has {' and '.join(f.name for f in files)}; keep one of them")
    if files:
        found, where = _from_metadata(root, files[0], names, left_out), files[0].name
    else:
        found = _from_texts(root, names)
        where = f"a .txt beside it, and there is no {' or '.join(METADATA)}"
    found = {name: without_blanks(captions) for name, captions in found.items()}
    without = [name for name in names if name not in found]
    if without and policy == "error":
        raise UsageError(
            f"{len(without)} of {len(names)} videos in {root} have no caption in {where}: "
            f"{few(without)}; add them, or set missing_captions (--missing-captions) to 'empty' "
            "or 'skip'"
        )
    if policy == "empty":
        found |= {name: [""] for name in without}
    elif without:
        log.warning("%s: left out %d videos without caption", root, len(without))
    blank = [name for name, captions in found.items() if captions == [""]]
    if blank:
        log.warning("%s: %d captions are empty: %s", root, len(blank), few(blank))
    return found


def _from_metadata(
    root: Path, file: Path, names: Sequence[str], left_out: Sequence[str]
) -> dict[str, list[str]]:
    """Captions of the names in a metadata file, each as it is spelled on the disk."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        spelled.setdefault(_spelling(name), []).append(name)
    ignored = set(map(_spelling, left_out))
    found: dict[str, list[str]] = {}
    missing, exact = [], set(names)
    for given, captions in read_metadata(file).items():
        alike = [given] if given in exact else spelled.get(_spelling(given), [])
        if len(alike) > 1:
            raise UsageError(
                f"{file} names {given!r}, and {root} has {few(alike)}, which are spelled alike; "
                "rename one of them"
            )
        if alike:
            found.setdefault(alike[0], []).extend(captions)
        elif _spelling(given) not in ignored:
            missing.append(given)
    if missing:
        raise UsageError(f"{file} names {_missing(root, missing)}")
    return found


def _missing(root: Path, names: list[str]) -> str:
    """Names that are not in a folder, and those that are but are not taken, with the reason."""
    reasons = {name: why_not_taken(root, _spelling(name)) for name in sorted(names)}
    absent = [name for name, reason in reasons.items() if reason is None]
    parts = [f"{len(absent)} videos that are not in {root}: {few(absent)}"] if absent else []
    there = [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]
    if there:
        parts.append(f"{len(there)} files in {root} that are not taken: {few(there)}")
    return ", and ".join(parts)


def _from_texts(root: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The caption in the text file beside each video, `.txt` or `.TXT`."""
    beside: dict[PurePosixPath, str] = {}
    for folder in sorted({PurePosixPath(name).parent for name in names}):
        with os.scandir(root / folder) as entries:
            # As sorted in reverse, a.txt comes before a.TXT, which is then ignored.
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.name.lower().endswith(".txt") and entry.is_file():
                    beside.setdefault(_stem(folder / entry.name), entry.name)
    found = {}
    for name in names:
        path, exact = PurePosixPath(name), (root / name).with_suffix(".txt")
        if (text := beside.get(_stem(path))) is not None:
            file = exact if exact.is_file() else root / path.parent / text
            found[name] = [read_text(file).strip()]
    long = [name for name, (text,) in found.items() if "\n" in text]
    if long:
        log.warning(
            "%s: %d .txt files have several lines, all of them one caption: %s; several captions "
            "of a video go into a metadata file",
            root,
            len(long),
            few([str(PurePosixPath(name).with_suffix(".txt")) for name in long]),
        )
    return found


def _spelling(name: str) -> str:
    """A name in the one form in which names are compared: composed, with / between folders."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))))


def _stem(path: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(unicodedata.normalize("NFC", str(path.with_suffix(""))))
