"""What goes together in training: every cell of docs/training.md is run on two ranks, or refused.

`python tests/train/test_cells.py` writes the table of docs/training.md anew.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import tiny
import torch
from train import cells
from train.launches import free_port

from vidcm.registry import TABLE
from vidcm.train.engine import LocalEngine

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs" / "training.md"
MARKS = ("<!-- cells -->\n", "<!-- /cells -->\n")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed: pip install -e .[train]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("cells"))


def prepared(folder: Path) -> Path:
    tiny.save(folder / "teacher", tiny.denoiser())
    return folder


def on_two_ranks(mode: str, folder: Path, seconds: float) -> list[dict]:
    """What each of two ranks found, see `cells.on_rank`."""
    rank_of = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    before = filter(None, [os.environ.get("PYTHONPATH")])
    places = {"PYTHONPATH": os.pathsep.join([str(REPO), str(REPO / "tests"), *before])}
    # Of its own: a compilation that was killed leaves half a library in the one that all share.
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    log = folder / f"{mode}.log"
    with log.open("wb") as output:
        ranks = [
            subprocess.Popen(
                [sys.executable, cells.__file__, mode, str(folder)],
                env={**os.environ, **rank_of, **places, **cache, "RANK": r, "LOCAL_RANK": r}
                | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for r in ("0", "1")
        ]
        try:
            codes = [rank.wait(seconds) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    assert codes == [0, 0], log.read_text("utf-8", errors="replace")
    return [torch.load(folder / f"{mode}-rank{r}.pt", weights_only=True) for r in (0, 1)]


@pytest.fixture(scope="module")
def eager(folder: Path) -> list[dict]:
    return on_two_ranks("eager", folder, 1500)


@pytest.fixture(scope="module")
def compiled(folder: Path) -> list[dict]:
    return on_two_ranks("compiled", folder, 7200)


@pytest.fixture(scope="module")
def split(folder: Path) -> list[dict]:
    return on_two_ranks("sequence", folder, 1500)


@pytest.fixture(scope="module")
def alone(folder: Path):
    """A row's losses and norms in one process, by whether the updates are of low rank."""

    @cache
    def run(row: str, lora: bool) -> cells.Steps:
        config = cells.settings(row, folder / "teacher", 0, lora)
        return cells.Cell(config, LocalEngine).run(again=False)

    return run


def assert_same(found: cells.Steps, expected: cells.Steps) -> None:
    assert [x[0] for x in found] == [x[0] for x in expected]
    for a, b in zip(found, expected, strict=True):
        assert a[1:] == pytest.approx(b[1:], rel=1e-5, abs=1e-6)


def test_every_objective_of_denoisers_has_a_row() -> None:
    codes = {"autoencoding", "attribute_naming", "caption_naming"}  # of codecs and of labels
    assert {row.partition(",")[0] for row in cells.ROWS} == TABLE["objective"].keys() - codes


def assert_cells(found: list[dict], alone, folder: Path, row: str, zero: int, **keys: int) -> None:
    for lora in cells.updates():
        key = (row, zero, lora)
        if cells.refusal(row, folder / "teacher", zero, lora, **keys):
            assert key not in found[0]
            continue
        assert_same(found[0][key], alone(row, lora))
        assert found[1][key] == found[0][key]


@pytest.mark.parametrize("row", [row for row in cells.ROWS if row != "flow_matching"])
def test_r11_the_teacher_is_not_changed_by_training(folder: Path, row: str) -> None:
    cell = cells.Cell(cells.settings(row, folder / "teacher", 0, False), LocalEngine)
    before = {k: v.clone() for k, v in cell.teacher.state_dict().items()}
    cell.run(halves=[0])
    assert before and all(torch.equal(v, before[k]) for k, v in cell.teacher.state_dict().items())


@needs_deepspeed
@pytest.mark.parametrize("row", cells.ROWS)
@pytest.mark.parametrize("zero", cells.STAGES)
def test_equals_one_process(eager: list[dict], alone, folder: Path, row: str, zero: int) -> None:
    """The first steps without checkpointing, the next ones with it."""
    assert_cells(eager, alone, folder, row, zero)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("row", cells.ROWS)
@pytest.mark.parametrize("zero", cells.STAGES)
def test_tokens_split_over_ranks_equal_one_process(
    split: list[dict], alone, folder: Path, row: str, zero: int
) -> None:
    """Two ranks have every clip together; exact derivatives and checkpointing included."""
    assert_cells(split, alone, folder, row, zero, sequence_parallel=2)


@needs_deepspeed
@pytest.mark.parametrize("zero", cells.STAGES)
def test_bf16_on_two_ranks_is_close_to_fp32_in_one_process(
    eager: list[dict], alone, zero: int
) -> None:
    """Losses within 2 %, weights being rounded to bf16 as well; gradient norms within 10 %."""
    first, second = (found["bf16", zero, False] for found in eager)
    expected = alone(cells.BF16, False)
    assert first == second
    for (_, loss, norm), (_, other, size) in zip(first, expected, strict=True):
        assert loss == pytest.approx(other, rel=0.02) and loss != other
        assert norm == pytest.approx(size, rel=0.1)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("row", cells.ROWS)
@pytest.mark.parametrize("zero", cells.STAGES)
def test_compiled_it_equals_one_process(
    compiled: list[dict], alone, folder: Path, row: str, zero: int
) -> None:
    assert_cells(compiled, alone, folder, row, zero, compile=True)


@pytest.fixture(scope="module")
def halves(folder: Path) -> dict[str, tuple]:
    """Second half and average of each row in one process; its state half-way is left for ranks."""
    found = {}
    for row in cells.ROWS:
        config = cells.settings(row, folder / "teacher", 0, False)
        cell = cells.Cell(config, LocalEngine)
        cell.run(halves=[0])
        torch.save(cell.engine.state(), folder / f"{row}.pt")
        found[row] = cell.run(halves=[1]), cell.engine.weights(ema=True)
    return found


@pytest.fixture(scope="module")
def resumed(folder: Path, halves: dict[str, tuple]) -> list[dict]:
    return on_two_ranks("resumed", folder, 1500)


def assert_same_end(found: tuple, expected: tuple) -> None:
    assert_same(found[0], expected[0])
    for name, tensor in expected[1].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("row", cells.ROWS)
@pytest.mark.parametrize("zero", cells.STAGES[1:])
def test_p17_r09_resumes_with_another_number_of_ranks(
    resumed: list[dict], halves: dict[str, tuple], folder: Path, row: str, zero: int
) -> None:
    """From one process to two ranks and back: losses, roles and the average."""
    if cells.refusal(row, folder / "teacher", zero, False):
        assert (row, zero) not in resumed[0]
        return
    assert_same_end(resumed[0][row, zero], halves[row])
    assert resumed[1][row, zero][0] == resumed[0][row, zero][0]
    back = cells.Cell(cells.settings(row, folder / "teacher", 0, False), LocalEngine)
    back.engine.load(torch.load(folder / f"{row}-{zero}.pt", weights_only=True))
    assert_same_end((back.run(halves=[1]), back.engine.weights(ema=True)), halves[row])


# --- the table of the docs ------------------------------------------------------------------------


def table(folder: Path) -> str:
    """Rows of objectives over ZeRO stages, plain and compiled: `yes`, or what to do instead."""
    columns = list(product((False, True), ((0, 1, 2), (3,))))
    names = [f"{'compiled, ' * c}ZeRO {', '.join(map(str, stages))}" for c, stages in columns]
    lines = [["objective", *names], ["---"] * (1 + len(columns))]
    for row in cells.ROWS:
        lines.append([row])
        for compiled, stages in columns:
            place = folder / "teacher"
            whys = {cells.refusal(row, place, z, False, compile=compiled) for z in stages}
            (why,) = whys
            lines[-1].append("yes" if why is None else why.rpartition("; ")[2])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_of_the_docs_is_this_one(folder: Path) -> None:
    text = DOCS.read_text("utf-8")
    assert text.partition(MARKS[0])[2].partition(MARKS[1])[0] == table(folder)


if __name__ == "__main__":
    before, _, rest = DOCS.read_text("utf-8").partition(MARKS[0])
    with tempfile.TemporaryDirectory() as scratch:
        made = table(prepared(Path(scratch)))
    DOCS.write_text(before + MARKS[0] + made + MARKS[1] + rest.partition(MARKS[1])[2], "utf-8")
