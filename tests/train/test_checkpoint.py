"""Whatever happens while a checkpoint is written, a complete one is there to resume from."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidcm.errors import VidcmError
from vidcm.train import checkpoint
from vidcm.train.checkpoint_writer import CheckpointWriter

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def state(step: int) -> dict:
    return {"model": {"w": torch.full((4000,), float(step))}}


def save(run: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(run, step, state(step), {"seed": 5}, keep=keep)


def save_in_thread(run: Path, step: int, keep: int = 2) -> Path:
    """The like while training goes on."""
    with CheckpointWriter(run, {"seed": 5}, keep=keep, size=0) as writer:
        writer.save(step, state(step), copied=True)
    return checkpoint.folder_of(run, step)


HOW = pytest.mark.parametrize("save", [save, save_in_thread])


def steps(run: Path) -> list[str]:
    return sorted(p.name for p in (run / "checkpoints").iterdir())


def killed_at(moment: int, run: Path, act: Callable[[], object]) -> bool:
    """Whether a child that does `act` was killed at that of its moments: each access to a file of
    `run`, each fsync, and the half of a state's numbers."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def pass_by() -> None:
            nonlocal count
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def hook(event: str, args: tuple) -> None:
            if event in EVENTS and str(run) in str(args[0]):
                pass_by()

        write, sync = checkpoint.HashedFile.write, os.fsync

        def torn(file: checkpoint.HashedFile, data: bytes | memoryview) -> int:
            whole = memoryview(data).cast("B")
            half = write(file, whole[: len(whole) // 2])
            file.file.flush()
            if len(whole) > 1000:
                pass_by()
            return half + write(file, whole[len(whole) // 2 :])

        def synced(descriptor: int) -> None:
            pass_by()
            sync(descriptor)

        checkpoint.HashedFile.write, os.fsync = torn, synced
        sys.addaudithook(hook)
        try:
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status)


@HOW
@pytest.mark.parametrize("again", [False, True], ids=["new", "over a damaged one"])
def test_p06_killed_at_every_moment_of_saving(
    tmp_path: Path, again: bool, save: Callable[..., Path]
) -> None:
    moment = 0
    while True:
        moment += 1
        run = tmp_path / str(moment)
        for step in (1, 2):
            save(run, step)
        if again:
            save(run, 3, keep=3)
            os.truncate(checkpoint.folder_of(run, 3) / "state.pt", 5)
        killed = killed_at(moment, run, lambda run=run: save(run, 3))
        newest = checkpoint.newest(run)
        assert newest is not None and newest.name in ("step-00000002", "step-00000003")
        found, manifest = checkpoint.read(newest)
        assert torch.equal(found["model"]["w"], state(manifest["step"])["model"]["w"])
        save(run, 4)
        kept = [f"step-0000000{n}" for n in (2, 3, 4)]
        assert steps(run) in (kept[1:], [kept[0], kept[2]]), "nothing else is left"
        if not killed:
            break
    assert moment > 15 and newest.name == "step-00000003"


@HOW
@pytest.mark.parametrize("keep", [1, 2])
def test_p10_a_damaged_newer_one_does_not_push_out_the_only_good_one(
    tmp_path: Path, keep: int, save: Callable[..., Path]
) -> None:
    save(tmp_path, 50)
    save(tmp_path, 100)
    os.truncate(checkpoint.folder_of(tmp_path, 100) / "state.pt", 9)
    for step in (60, 70, 80):
        save(tmp_path, step, keep)
        newest = checkpoint.newest(tmp_path)
        assert newest == checkpoint.folder_of(tmp_path, step)
    save(tmp_path, 100, keep)
    assert len(steps(tmp_path)) == keep


def test_p08_p09_other_folders_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 4)
    for name in ("step-abc", "step-9", "latest", "step-00000009", ".step-00000010"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "step-00000011").write_text("")
    assert checkpoint.newest(tmp_path) == checkpoint.folder_of(tmp_path, 4)


def test_what_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(1, "Operation not permitted")

    save(tmp_path, 1, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", refuse)
        save(tmp_path, 2, keep=1)
    said = capsys.readouterr().err
    assert "warning: cannot delete" in said and "step-00000001: Operation not permitted" in said
    save(tmp_path, 3, keep=1)
    assert steps(tmp_path) == ["step-00000003"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 300 kB that is mounted for the test."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@HOW
def test_p07_a_full_disk(small_disk: Path, save: Callable[..., Path]) -> None:
    for step in (1, 2):
        save(small_disk, step)
    (small_disk / "filler").write_bytes(bytes(250_000))
    with pytest.raises(VidcmError, match="cannot write .*-00000003: No space left on device; when"):
        save(small_disk, 3)
    assert steps(small_disk) == ["step-00000001", "step-00000002"]
    assert checkpoint.newest(small_disk) == checkpoint.folder_of(small_disk, 2)


@HOW
def test_p18_a_folder_that_is_read_only(small_disk: Path, save: Callable[..., Path]) -> None:
    save(small_disk, 1)
    with checkpoint.claimed(small_disk):
        pass
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with (
        pytest.raises(VidcmError, match="cannot write to output .*small: Read-only file system"),
        checkpoint.claimed(small_disk),
    ):
        pass
    with pytest.raises(VidcmError, match="cannot write .*step-00000002: Read-only file system"):
        save(small_disk, 2)
    assert checkpoint.newest(small_disk) == checkpoint.folder_of(small_disk, 1)
