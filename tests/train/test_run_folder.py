"""A run's folder: one run at a time, no other run's, its disk full, its checkpoint shared by ranks."""

import errno
import gc
import os
import stat
from pathlib import Path

import pytest
import torch
from train import ranks
from train.test_checkpoint_writer import engine, outcome
from train.test_loop import Interrupting, assert_same_run, train

from vidcm.data.batch import Batch
from vidcm.errors import UsageError, VidcmError
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


def maps(path: Path) -> list[tuple[int, int]]:
    """Where this process has the file in its memory."""
    lines = [x for x in Path("/proc/self/maps").read_text().splitlines() if x.endswith(f" {path}")]
    ends = [x.split()[0].split("-") for x in lines]
    return [(int(low, 16), int(high, 16)) for low, high in ends]


def test_ranks_of_one_machine_share_the_memory_of_a_checkpoint(tmp_path: Path) -> None:
    """Its tensors are pages of the file, which the system reads once for all processes."""
    folder = checkpoint.save(tmp_path, 3, {"w": torch.arange(70_000)}, {}, keep=1)
    state, _ = checkpoint.read(folder)
    address = state["w"].data_ptr()
    assert any(low <= address < high for low, high in maps(folder / "state.pt"))
    assert torch.equal(state["w"], torch.arange(70_000))


@pytest.mark.parametrize("kind", ["one network", "roles", "average as target", "frozen target"])
def test_a_resumed_run_has_let_go_of_the_file(tmp_path: Path, kind: str) -> None:
    """On a network file system its pages would be gone once another host has removed it."""
    begun, resumed = engine(kind), engine(kind)
    ranks.run(begun, ranks.config(), 0, ranks.UNEVEN)
    folder = checkpoint.save(tmp_path, ranks.UNEVEN, begun.state(), {}, keep=1)
    resumed.load(checkpoint.read(folder)[0])
    gc.collect()
    assert not maps(folder / "state.pt")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EIO])
@pytest.mark.parametrize("of_folders", [True, False])
def test_file_systems_without_fsync_do_and_failing_disks_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, of_folders: bool
) -> None:
    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) == of_folders:
            raise OSError(number, os.strerror(number))

    checkpoint.save(tmp_path, 1, {"w": torch.ones(3)}, {}, keep=1)
    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.EIO:
        with pytest.raises(VidcmError, match="write .*/step-00000002: Input/output error; when"):
            checkpoint.save(tmp_path, 2, {"w": torch.ones(3)}, {}, keep=1)
    else:
        checkpoint.save(tmp_path, 2, {"w": torch.ones(3)}, {}, keep=1)
    expected = checkpoint.folder_of(tmp_path, 1 + (number != errno.EIO))
    assert list((tmp_path / "checkpoints").iterdir()) == [expected] == [checkpoint.newest(tmp_path)]
