"""A run's folder: one run at a time, no other run's, its disk full, its checkpoint shared by ranks."""

from pathlib import Path

import pytest
import torch
from train import ranks
from train.test_checkpoint_writer import outcome
from train.test_loop import Interrupting, assert_same_run, train

from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.train import checkpoint, loop


def contents(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_second_run_on_the_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, Interrupting(9 * ranks.BATCH)) == 143
    before = contents(run)
    with checkpoint.claimed(run), pytest.raises(UsageError, match="another process is writing"):
        train(run)
    assert contents(run) == before
    assert train(run) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "toy", "width": 11}}, "model.width=None, not 11"),
        ({"objective": {"name": "other"}}, "objective.name='toy', not 'other'"),
        ({"data": {"name": "toy", "path": "x"}}, "data.path=None, not 'x'"),
        ({"seed": 6}, "seed=5, not 6"),
        ({"batch_size": 16}, "batch_size=8, not 16"),
    ],
)
def test_k14_another_model_objective_data_or_seed_is_another_run(
    tmp_path: Path, changes: dict, message: str
) -> None:
    run = tmp_path / "run"
    assert train(run, Interrupting(3 * ranks.BATCH)) == 143
    before, chosen = contents(run), ranks.config(str(run), **{**ranks.SHORT, **changes})
    with pytest.raises(UsageError, match=f"holds a run with {message}; choose another output"):
        loop.train(chosen, ranks.task(ranks.Points()), ranks.local(chosen), lambda *_: None)
    assert contents(run) == before


class Filling(ranks.Points):
    """Data during whose reading, at one position, the disk of the log becomes full."""

    def __init__(self, at: int, log: Path):
        super().__init__({ranks.BAD})
        self.at, self.log = at, log

    def batch(self, seed: int, positions: list[int]) -> Batch:
        if self.at in positions:
            self.log.rename(self.log.with_suffix(".before"))
            self.log.symlink_to("/dev/full")
        return super().batch(seed, positions)


def test_p07_a_log_on_a_full_disk_ends_the_run_and_its_checkpoint_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    code, said = outcome(lambda: train(run, Filling(5 * ranks.BATCH, log)), capsys)
    assert code == 1 and len(said) == 1
    assert said[0].startswith(f"error: cannot write {log}: No space left on device; when")
    assert checkpoint.newest(run) == checkpoint.folder_of(run, 4)
    log.unlink()
    log.with_suffix(".before").rename(log)
    assert train(run) == 0
    assert train(tmp_path / "straight") == 0
    assert_same_run(run, tmp_path / "straight")


def test_ranks_of_one_machine_share_the_memory_of_a_checkpoint(tmp_path: Path) -> None:
    """Its tensors are pages of the file, which the system reads once for all processes."""
    folder = checkpoint.save(tmp_path, 3, {"w": torch.arange(70_000)}, {}, keep=1)
    state, _ = checkpoint.read(folder)
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f" {folder / 'state.pt'}"):
            mapped.append([int(x, 16) for x in line.split()[0].split("-")])
    assert any(low <= state["w"].data_ptr() < high for low, high in mapped)
    assert torch.equal(state["w"], torch.arange(70_000))
