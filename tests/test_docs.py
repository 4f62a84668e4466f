"""What the documents tell to type is typed, in a copy of the repository, and what it makes is seen.

README.md's own clips and edits run by default, and every block of Python. `pytest -m slow` runs those
of the other documents, and their roads to models of one's own, with the networks and numbers of `SHORT`
and `TINY`. Each test has a copy of the repository, in which files lie that a reader has of his own.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train.launches import free_port

from vidcm.cli import COMMANDS
from vidcm.media.write import write_clip

REPO = Path(__file__).parents[1]
CARD = Path("vidcm/pretrained/lpc-64")
DOCUMENTS = [Path("README.md"), *(p.relative_to(REPO) for p in sorted(REPO.glob("docs/*.md")))]
# Its programs need public models: `exports/test_use_the_result.py` runs them.
OF_PUBLIC_MODELS = Path("docs/use-the-result.md")
FRAMES, SIDE, SCALE = 9, 64, 4  # of the bundled model's clips, and of the files they are written to

# Words added to a command: later ones win over what the document says.
TRAIN = "steps=2 batch_size=2 gradient_accumulation_steps=1 log_every=1 sample_every=2 save_every=2"
SHORT = {
    "train": TRAIN,
    "generate": "--json",
    "edit": "--json",
    "export": "--allow-still",  # of a run of two steps
    "tune": "--count 2 --levels 6 25",
    "evaluate": "--count 2 --rows codec student-1",
    "benchmark": "--warmup 1 --repeats 1 --rows student-1",
    "encode lpc": "--count 32",
    "encode folder": "",
}
# Networks of a few thousand weights, by what a config trains: they fit together.
TINY = {
    "codec": "data.num_frames=5 model.channels=8 model.widths=[48,16,16] model.encoder_depths=[1,0,0] model.decoder_depths=[0,1,0]",
    "text": "model.conditioner.hidden_size=32 model.conditioner.num_layers=1",
    "denoiser": "model.channels=8 model.backbone.hidden_size=32 model.backbone.num_layers=1 "
    "model.backbone.num_heads=2 model.conditioner.hidden_size=32 model.conditioner.num_layers=1",
}
NOT_RUN = ("pip", "pytest", "ruff", "pyright", "lint-imports", "export", "git", "python3", ".")


@dataclass
class Block:
    """A fenced block: its language, its text, and the document and line where it begins."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The command lines in it, in words."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            yield words


def blocks(document: Path) -> Iterator[Block]:
    text = (REPO / document).read_text("utf-8")
    for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.M | re.S):
        yield Block(document, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def commands(document: Path) -> Iterator[tuple[Block, list[str]]]:
    """The command lines of a document, each with the block that it stands in."""
    for block in blocks(document):
        if block.language in ("", "bash", "sh"):
            yield from ((block, words) for words in block.commands())


class Reader:
    """Somebody who has cloned the repository, types what stands there and looks at what comes."""

    def __init__(self, folder: Path, art: Path | None = None):
        self.repo = folder / "vidcm"
        lines = (REPO / ".gitignore").read_text("utf-8").splitlines()
        written = [line.strip("/") for line in lines if line and not line.startswith("#")]
        shutil.copytree(REPO, self.repo, ignore=shutil.ignore_patterns(".git", *written))
        self.environment = os.environ | {"PYTHONPATH": str(self.repo)}
        if art is not None:
            self.environment["VIDCM_LPC_ART"] = str(art)

    def type(self, words: list[str], where: object) -> None:
        """Run a command of a document, cut short, and check what it printed and wrote."""
        words = [self.environment.get(w.removeprefix("$"), w) for w in words]  # $VIDCM_LPC_ART
        words = [re.sub(r"\$(\w+)", lambda m: self.environment[m[1]], w) for w in words]
        name = command_of(words)
        if name == "serve":
            self._ask(words, where)
            return
        if "--help" not in words:
            kind = f"{name} {options(words).get('--data', '')}".strip()
            assert kind in SHORT, f"{where}: say in SHORT how to cut {kind} short"
            words = [*words, *SHORT[kind].split()]
            if name == "train":
                words += TINY.get(Path(options(words)["--config"]).stem, TINY["denoiser"]).split()
        self._lay_out(words)
        began = time.monotonic()
        done = subprocess.run(
            [*launcher(words[0]), *words[1:]],
            cwd=self.repo,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        print(f"{time.monotonic() - began:5.1f} s  {shlex.join(words)}")  # seen with pytest -s
        assert done.returncode == 0, f"{where}: {shlex.join(words)}\n{done.stderr[-3000:]}"
        if "--help" in words:
            assert "usage:" in done.stdout
        elif name in ("generate", "edit"):
            self._look_at_clips(name, words, json.loads(done.stdout), where)
        elif name == "train":
            self._look_at_run(done.stdout, where)
        else:
            self._look_at_files(name, words, where)

    def _ask(self, words: list[str], where: object) -> None:
        """Start a server, on a free port, and ask whether it answers."""
        command = [*launcher(words[0]), *words[1:], "--port", "0"]
        with subprocess.Popen(
            command, cwd=self.repo, env=self.environment, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                address = re.search(r"http://\S+(?=/v1/videos)", server.stdout.readline())
                assert address, where
                with urllib.request.urlopen(f"{address[0]}/health") as answer:
                    assert json.load(answer)["status"] == "ok", where
            finally:
                server.terminate()

    def _lay_out(self, words: list[str]) -> None:
        """Put there what a reader has of his own: films, pictures, and models trained before."""
        given = options(words)
        for root in re.findall(r"\broot: (\w+)", " ".join(words)):
            given.setdefault("--root", root)  # of the data of a config
        for option, value in given.items():
            path = self.repo / value
            if path.exists():
                continue
            if option == "--input":
                long = int(given.get("--frames", FRAMES))
                own = film(1 if path.suffix == ".png" else long)
                write_clip(own, path, fps=8, scale=SCALE)
            elif option == "--root":
                path.mkdir(parents=True)
                for i in range(4):
                    write_clip(film(40, seed=i), path / f"{i}.mp4", fps=8)
                    (path / f"{i}.txt").write_text("a square moves")
            elif option in ("--codec", "--teacher", "--student"):
                shutil.copytree(REPO / CARD / option.removeprefix("--"), path)

    def _look_at_run(self, told: str, where: object) -> None:
        """The model folder that the command names is whole, and its log has every step."""
        said = re.search(r"^(\S+): the model after step 2$", told, re.M)
        assert said, f"{where}: {told}"
        final = self.repo / said[1]
        assert json.loads((final / "model.json").read_text())["sha256"]
        weights = load_file(final / "model.safetensors")
        assert all(torch.isfinite(w).all() for w in weights.values()), where
        log = [json.loads(line) for line in (final.parent / "metrics.jsonl").open()]
        assert [r["step"] for r in log if np.isfinite(r.get("loss", np.nan))] == [1, 2], where

    def _look_at_files(self, name: str, words: list[str], where: object) -> None:
        """What a command wrote that makes no clips holds what was asked for."""
        given = options(words)
        output = self.repo / given.get("--output", given.get("--checkpoint", ""))
        if name == "encode":
            root = given.get("--root")
            count = len([*(self.repo / root).glob("*.mp4")]) if root else int(given["--count"])
            assert json.loads((output / "index.json").read_text())["clips"] == count, where
        elif name in ("export", "tune"):
            pipeline = json.loads((output / "pipeline.json").read_text())
            for role in ("codec", "student", "teacher"):
                assert (output / role / "model.safetensors").is_file(), where
            assert name == "export" or pipeline["student"]["lowest_sigma"] in (6, 25), where
        elif name == "evaluate":
            rows = json.loads(output.read_text())["rows"]
            assert {*rows} == {"codec", "student-1"}, where
            assert all(0 <= r["heldout"]["adherence"]["score"] <= 1 for r in rows.values()), where
        else:
            assert name == "benchmark", f"{where}: say what {name} should have written"
            (row,) = json.loads(output.read_text())["rows"].values()
            assert row["evaluations"] == 1 and row["seconds"]["denoise"]["p50"] > 0, where

    def _look_at_clips(self, name: str, words: list[str], told: dict, where: object) -> None:
        given = options(words)
        clips = [c["path"] for c in told["clips"]] if name == "generate" else told["paths"]
        own = given.get("--checkpoint")  # hardly trained, so its clips may be of one colour
        usual = FRAMES
        if own:
            usual = json.loads((self.repo / own / "pipeline.json").read_text())["num_frames"]
        frames = int(given.get("--frames", usual)) if name == "generate" else told["frames"]
        assert len(clips) == int(given.get("--num-clips", 1)), where
        for path in map(self.repo.joinpath, clips):
            shown = pictures(path)
            assert len(shown) == (1 if path.suffix == ".png" else frames), f"{where}: {path}"
            assert own or np.ptp(shown) > 60, f"{where}: {path} is of one colour"
        if "preview" in told:
            assert np.ptp(pictures(self.repo / told["preview"])) > 60, where
        if "inpaint" in words and "," in given["--mask"]:
            self._only_inside(given, self.repo / clips[0], where)

    def _only_inside(self, given: dict[str, str], edited: Path, where: object) -> None:
        """Elsewhere the edit is the input, but for what resampling and the coding of films lose."""
        before, after = (pictures(p).astype(int) for p in (self.repo / given["--input"], edited))
        x, y, w, h = map(int, given["--mask"].split(","))
        inside = np.zeros(before.shape[1:3], bool)
        inside[y : y + h, x : x + w] = True
        off = np.abs(after - before).mean((0, 3))
        assert off[~inside].mean() < 6 and off[inside].mean() > 25, where


def command_of(words: list[str]) -> str:
    """`train` of `python tools/train.py`, `vidcm train`, `python -m vidcm train`, and so on."""
    stems = [Path(w).stem for w in words[1:]]
    return next((stem for stem in stems if stem in COMMANDS), "")


def launcher(program: str) -> list[str]:
    """How to start what a command line begins with."""
    if program == "vidcm":
        return [sys.executable, "-m", "vidcm"]
    if program == "deepspeed":
        runner = ["-m", "deepspeed.launcher.runner", "--master_port", str(free_port())]
        return [sys.executable, *runner]
    assert program == "python", f"{program}: say how to start it, or in NOT_RUN that it is not"
    return [sys.executable]


def options(words: list[str]) -> dict[str, str]:
    """The last value of each `--option value`."""
    pairs = zip(words, words[1:], strict=False)
    return {a: b for a, b in pairs if a.startswith("--") and not b.startswith("--")}


def film(frames: int, seed: int = 0) -> np.ndarray:
    """A bright square that moves over a dark picture, uint8 `(t h w c)`."""
    clip = np.full((frames, SIDE, SIDE, 3), (30, 40, 60), np.uint8)
    for t in range(frames):
        x = (2 * t + 7 * seed) % (SIDE - 20)
        clip[t, 20:40, x : x + 20] = (200, 60 + 20 * seed, 90)
    return clip


def pictures(path: Path) -> np.ndarray:
    """The frames of a film, a picture or a folder of pictures, uint8 `(t h w c)`."""
    if path.is_dir():
        return np.concatenate([pictures(p) for p in sorted(path.glob("*.png"))])
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)


def test_the_readme_s_clips_and_edits(tmp_path):
    reader, typed = Reader(tmp_path), 0
    for block, words in commands(Path("README.md")):
        if command_of(words) in ("generate", "edit") and "--checkpoint" not in words:
            reader.type(words, block)
            typed += 1
    assert typed > 4


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_files_that_a_document_names_are_there(document):
    """Paths in backticks are of the repository, of the package, or of a package in it."""
    text = (REPO / document).read_text("utf-8")
    roots = [REPO, REPO / "vidcm", *(p for p in (REPO / "vidcm").iterdir() if p.is_dir())]
    for name in re.findall(r"`([\w/-]+\.py)`", text):
        assert any((root / name).is_file() for root in roots), f"{document} names {name}"


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != OF_PUBLIC_MODELS], ids=str)
def test_blocks_of_python_run(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[8:24, 20:44] = True
    names: dict = {"clip": film(FRAMES), "mask": mask}
    for block in (b for b in blocks(document) if b.language == "python"):
        exec(compile("\n" * block.line + block.text, str(document), "exec"), names)
    for name, value in names.items():
        if isinstance(frames := getattr(value, "frames", None), np.ndarray):
            assert frames.dtype == np.uint8 and frames.ndim == 5 and np.ptp(frames) > 60, name
    for path in tmp_path.iterdir():
        assert len(pictures(path)) == FRAMES


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=str)
def test_clips_and_edits_of_the_other_documents(document, tmp_path):
    reader = Reader(tmp_path)
    for block, words in commands(document):
        if command_of(words) in ("generate", "edit") and "--checkpoint" not in words:
            reader.type(words, block)


@pytest.mark.slow
@pytest.mark.parametrize(
    "road", [("README.md", "docs/editing.md"), ("docs/data.md",)], ids=" ".join
)
def test_the_road_to_a_model_of_one_s_own(road, tmp_path, lpc_art):
    reader, typed = Reader(tmp_path, lpc_art), set()
    for block, words in [found for name in road for found in commands(Path(name))]:
        bundled = command_of(words) in ("generate", "edit") and "--checkpoint" not in words
        if words and words[0] not in NOT_RUN and not bundled:
            reader.type(words, block)
            typed.add(command_of(words))
    assert {"train", "encode"} <= typed
    assert {"export", "tune", "generate", "evaluate", "benchmark"} <= typed or len(road) == 1
