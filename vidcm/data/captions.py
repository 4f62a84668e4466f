"""Captions of the videos below a folder, from one metadata file or texts beside them."""

import logging
import os
import unicodedata
from pathlib import Path, PurePosixPath

from vidcm.data.sidecars import METADATA, read_metadata, read_text, without_blanks
from vidcm.data.videos import few
from vidcm.errors import UsageError

log = logging.getLogger(__name__)


def match_captions(root: Path, names: list[str], policy: str) -> dict[str, list[str]]:
    """Captions by video name, complete in both directions except as the policy allows."""
    files = [root / name for name in METADATA if (root / name).is_file()]
    if len(files) > 1:
        raise UsageError(f"{root} has {' and '.join(f.name for f in files)}; keep one of them")
    if files:
        found, where = _from_metadata(root, files[0], names), files[0].name
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


def _from_metadata(root: Path, file: Path, names: list[str]) -> dict[str, list[str]]:
    """Captions of the names in a metadata file, each as it is spelled on the disk."""
    spelled: dict[str, list[str]] = {}
    for name in names:
        spelled.setdefault(_spelling(name), []).append(name)
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
        else:
            missing.append(given)
    if missing:
        raise UsageError(
            f"{file} names {len(missing)} videos that are not in {root}: {few(sorted(missing))}"
        )
    return found


def _from_texts(root: Path, names: list[str]) -> dict[str, list[str]]:
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
