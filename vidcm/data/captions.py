"""Captions of the videos below a folder, from one metadata file or texts beside them."""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from vidcm.data.media_root import MediaRoot
from vidcm.data.sidecars import METADATA, decoded, json_captions, read_metadata, without_blanks
from vidcm.data.videos import few, why_not_taken
from vidcm.errors import UsageError
from vidcm.media.media_file import TAR

log = logging.getLogger(__name__)


def match_captions(
    root: MediaRoot,
    names: Sequence[str],
    texts: Sequence[str],
    left_out: Sequence[str],
    policy: str,
) -> dict[str, list[str]]:
    """Captions by name, complete in both directions except as the policy allows.

    Args:
        root: where they are.
        names: of the videos and pictures that need captions.
        texts: names of the text files there.
        left_out: names that may have captions, which are not read.
        policy: for names without a caption: "error", "empty" or "skip".

    Raises:
        UsageError: names and captions do not match.
    """
    files = [name for name in METADATA if root.is_file(name)]
    if len(files) > 1:
        raise UsageError(f"{root} has {' and '.join(files)}; keep one of them")
    if files:
        with root.local(files[0]) as file:
            found, where = _from_metadata(root, file, names, left_out), files[0]
    else:
        found = _from_texts(root, names, texts)
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
    root: MediaRoot, file: Path, names: Sequence[str], left_out: Sequence[str]
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


def _missing(root: MediaRoot, names: list[str]) -> str:
    """Names that are not in a folder, and those that are but are not taken, with the reason."""
    reasons = {name: why_not_taken(root, _spelling(name)) for name in sorted(names)}
    absent = [name for name, reason in reasons.items() if reason is None]
    parts = [f"{len(absent)} videos that are not in {root}: {few(absent)}"] if absent else []
    there = [f"{name} ({reason})" for name, reason in reasons.items() if reason is not None]
    if there:
        parts.append(f"{len(there)} files in {root} that are not taken: {few(there)}")
    return ", and ".join(parts)


def _from_texts(
    root: MediaRoot, names: Sequence[str], texts: Sequence[str]
) -> dict[str, list[str]]:
    """Captions in the text file beside each video, `.txt` or `.TXT`, otherwise `.json`."""
    beside: dict[str, str] = {}
    # a.txt comes before a.TXT, and that before a.json.
    for text in sorted(texts, key=lambda text: (text[-5:].lower() != ".json", text), reverse=True):
        beside.setdefault(_key(text), text)
    exact = frozenset(texts)
    chosen = {}
    for name in names:
        own = str(PurePosixPath(name).with_suffix(".txt"))
        text = own if own in exact else beside.get(_key(name))
        if text is not None:
            chosen[name] = text
    found: dict[str, list[str]] = {}
    blobs = root.read(sorted(set(chosen.values())))
    for name, text in chosen.items():
        where = f"{root}/{text}"
        if text.lower().endswith(".json"):
            captions = json_captions(where, blobs[text])
            if captions is not None:
                found[name] = captions
        else:
            found[name] = [decoded(where, blobs[text]).strip()]
    long = [name for name, text in found.items() if len(text) == 1 and "\n" in text[0]]
    if long:
        log.warning(
            "%s: %d .txt files have several lines, all of them one caption: %s; several captions "
            "of a video go into a metadata file",
            root,
            len(long),
            few([chosen[name] for name in long]),
        )
    return found


def _spelling(name: str) -> str:
    """A name in the one form in which names are compared: composed, with / between folders."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))))


def _key(name: str) -> str:
    """What the names of a video and of its captions share.

    In a tar that is all before the first dot of the last name, as in WebDataset.
    """
    path = PurePosixPath(name)
    stem = path.name.partition(".")[0] if f"{TAR}/" in name.lower() else path.stem
    return unicodedata.normalize("NFC", str(path.parent / stem))
