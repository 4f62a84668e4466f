"""Cases of real reports, by id, and the tests that try them: tests name them in their names
(`test_v05_...`) or docstrings (`Cases: V05, V06.`).

`python tests/test_cases.py` writes the table `tests/cases.md` anew.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS / "cases.md"
CASES = {
    "V01": "an empty file is left out as `empty`",
    "V02": "text named .mp4 is `not-video`",
    "V03": "a file without its index is `unreadable`",
    "V04": "a file that is cut off gives what is whole, or is `truncated`",
    "V05": "flipped bits never crash",
    "V06": "random content never crashes",
    "V07": "sound alone is `no-video-stream`",
    "V08": "fewer frames than needed is `too-short`",
    "V09": "a header that claims more frames than there are costs a draw, not the run",
    "V10": "a decoder that hangs is killed at its deadline",
    "V11": "a decoder that crashes costs one clip",
    "V12": "huge frames are refused before they are decoded",
    "V13": "long videos are sought, not decoded from their start",
    "V14": "variable frame rates go by timestamps",
    "V15": "rotation is applied",
    "V16": "odd sizes are scaled and cropped, always alike",
    "V17": "10 bits, grey and alpha become RGB",
    "V18": "numbers of frames other than 4k + 1 are refused with the nearest",
    "V19": "AV1, HEVC, VP9 and GIF are read whatever the backend",
    "V20": "links out of the folder are refused unless they are allowed",
    "V21": "names with newlines, letters of all kinds, `;rm`, a leading `-`",
    "V22": "a folder or pipe named x.mp4 is `not-a-file` and does not block",
    "V23": "a file that may not be read is `permission`",
    "V24": "a file that is deleted after the start is `missing`, and the run goes on",
    "V25": "latents that are not finite are not cached",
    "V26": "duplicates are reported",
    "C01": "missing captions: error, empty or skip",
    "C02": "empty captions are allowed and said",
    "C03": "the end of long captions that is not read is said",
    "C04": "captions that are not UTF-8 are refused with the byte",
    "C05": "byte order marks and CRLF do not matter",
    "C06": "characters that nobody sees are cleaned alike in training and in use",
    "C07": "HTML entities as in the teacher's cleaning",
    "C08": "a CSV with another header is refused with the columns found",
    "C09": "a broken line of JSONL is named",
    "C10": "names that leave the folder are refused",
    "C11": "lists of videos and of prompts of other lengths",
    "C12": "captions that are no text are refused",
    "C13": "caches of another encoder or other settings are refused",
    "S01": "a damaged shard is named",
    "S02": "truncated tars",
    "S03": "members of tars that lead elsewhere",
    "S04": "pickles in tars are never loaded",
    "S05": "an index that is missing or other than its shards is refused with the remedy",
    "S06": "two processes do not write one cache",
    "S07": "a killed encode goes on without loss or duplicates",
    "S08": "shards that are pipes or addresses",
    "K01": "unknown keys get a hint",
    "K02": "wrong types and ranges name key and value",
    "K03": "broken YAML is named with its place",
    "K04": "an empty file is refused",
    "K05": "a list or word at the top is refused",
    "K06": "`!!python` runs nothing",
    "K07": "aliases that multiply cost nothing",
    "K08": "a key that stands twice is refused",
    "K09": "`1e-4` is a number; `yes`, `off` are switches, and no text without quotes",
    "K10": "configs that build on each other in a circle are refused",
    "K11": "the base of a config lies beside it, whatever the working directory; `~` is the home",
    "K12": "a batch that does not divide is refused before a model is loaded",
    "K13": "what ZeRO 3 cannot do is refused with the alternative",
    "K14": "a run does not resume with another model, data or seed",
    "P01": "weights that are cut off or garbage are refused by file",
    "P02": "missing files of a model are named",
    "P03": "a flipped bit is found by hash",
    "P04": "weights that are not finite are refused by tensor",
    "P05": "a harmful pickle is not run",
    "P06": "a kill at any moment of saving leaves a checkpoint to resume from",
    "P07": "a full disk leaves the checkpoint before",
    "P08": "a manifest that is damaged or missing: the checkpoint before",
    "P09": "other folders beside checkpoints are passed over",
    "P10": "the only complete checkpoint is never deleted",
    "P11": "usual permissions, and links are followed",
    "P12": "weights that do not fit are listed with the likely cause",
    "P13": "a teacher in the place of a student, or the other way round, is refused",
    "P14": "a card that is damaged is refused",
    "P15": "low-rank updates of another rank or base are refused",
    "P16": "a newer format asks to upgrade",
    "P17": "another number of ranks resumes with the same samples",
    "P18": "a folder that is read-only is one line",
    "P19": "a path that is no model is refused at once, offline",
    "A01": "no arguments: short help, 2",
    "A02": "an empty prompt",
    "A03": "numbers of steps out of range",
    "A04": "80 frames: use 77 or 81",
    "A05": "sizes that do not fit name the nearest",
    "A06": "seeds out of range",
    "A07": "outputs that exist or cannot be written, before anything is generated",
    "A08": "outputs of unknown kinds list the known ones",
    "A09": "no CUDA is said",
    "A10": "out of memory gives advice",
    "A11": "files of prompts: empty, huge, with a byte order mark",
    "A12": "`--help` at once and without torch",
    "A13": "Ctrl-C leaves no half file",
    "A14": "prompts from a pipe",
    "A15": "benchmarks compare like with like",
    "R01": "SIGTERM on one rank stops all at one step, saved, 143",
    "R02": "a second SIGTERM",
    "R03": "a worker killed for memory is replaced",
    "R04": "/dev/shm is full",
    "R05": "a loss that is not finite changes nothing; many stop the run with their samples",
    "R06": "a spike is clipped, and steps that were left out stay counted after a resume",
    "R07": "exact resume, with and without loader threads",
    "R08": "exact resume with accumulation, on ranks",
    "R09": "the same samples in the same order on any number of ranks",
    "R10": "evaluation is deterministic",
    "R11": "a teacher is not changed by training",
    "R12": "a seed is the same clip in any batch",
    "R13": "odd clocks, locales, homes and working directories",
    "R14": "no network",
    "Q01": "a prompt of 5 MB is refused before it is read as words",
    "Q02": "markup in prompts stays text in pages and logs",
    "Q03": "no name of a file comes from a prompt",
    "Q04": "a large upload is refused by its length",
    "Q05": "bombs and files that hang are refused or killed, and the server goes on",
    "Q06": "a full queue is 429 with the time to wait",
    "Q07": "a client that leaves cancels its job",
    "Q08": "paths from requests reach no file",
    "Q09": "other machines are let in with credentials alone",
    "Q10": "prompts are not logged",
    "Q11": "models are those that the server was started with",
}
# Why no test here tries it.
WITHOUT = {
    "C11": "captions are named by file, never by the number of a line",
    "S04": "members of tars that are no media are not opened",
    "S08": "shards are files of a folder",
    "R04": "batches are prepared by threads; no shared memory is used",
}
AREAS = {"V": "video files", "C": "captions", "S": "caches", "K": "configs", "P": "checkpoints"}
AREAS |= {"A": "command line", "R": "running", "Q": "serving"}


def found() -> dict[str, list[str]]:
    """Tests by case."""
    tests: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for case in sorted(set(cases_of(node))):
                    place = f"{path.relative_to(TESTS)}::{node.name}"
                    tests.setdefault(case, []).append(place)
    return tests


def cases_of(test: ast.FunctionDef) -> Iterator[str]:
    yield from (x.upper() for x in re.findall(r"(?<=_)[a-z]\d\d(?=_)", test.name))
    for words in re.findall(r"Cases: ([^.]*)\.", ast.get_docstring(test) or ""):
        yield from re.split(r",\s+", words)


def table() -> str:
    tests, lines = found(), ["# Cases of real reports, and what tries them", ""]
    lines += ["Written by `python tests/test_cases.py`; a test holds it to the tests.", ""]
    for letter, area in AREAS.items():
        lines += [
            f"## {area.capitalize()}",
            "",
            "| case | behaviour | test |",
            "| --- | --- | --- |",
        ]
        for case, behaviour in CASES.items():
            if case[0] == letter:
                names = ", ".join(f"`{t}`" for t in tests.get(case, [])) or f"none: {WITHOUT[case]}"
                lines.append(f"| {case} | {behaviour} | {names} |")
        lines.append("")
    return "\n".join(lines)


def test_every_case_has_a_test_or_a_reason() -> None:
    tests = found()
    assert tests.keys() <= CASES.keys(), "ids of no case"
    assert CASES.keys() - tests.keys() <= WITHOUT.keys()


def test_the_table_is_of_these_tests() -> None:
    assert TABLE.read_text("utf-8") == table(), "run python tests/test_cases.py"


if __name__ == "__main__":
    TABLE.write_text(table(), "utf-8")
