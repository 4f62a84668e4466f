"""Atomic writes: a file or folder appears complete or not at all, whatever fails on the way."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vidcm.errors import VidcmError
from vidcm.files import remove_workspaces, replacing, write_text


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write(path: Path, text: str, *, folder: bool) -> None:
    with replacing(path) as part:
        if folder:
            part.mkdir()
        (part / "inside" if folder else part).write_text(text)


@pytest.mark.parametrize("folder", [False, True])
def test_written_replaced_and_written_through_links(tmp_path: Path, folder: bool) -> None:
    """Cases: P11."""
    path = tmp_path / "deep" / "er" / "name.txt"
    for text in ("old", "new"):
        write(path, text, folder=folder)
        assert [*contents(tmp_path).values()] == [text.encode()]
        assert os.listdir(path.parent) == ["name.txt"]
    (tmp_path / "link").symlink_to(path)
    write(tmp_path / "link", "linked", folder=folder)
    assert (tmp_path / "link").is_symlink()
    assert [*contents(path.parent).values()] == [b"linked"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_content(tmp_path: Path, folder: bool, error: type) -> None:
    write(tmp_path / "name", "old", folder=folder)
    before = contents(tmp_path)
    for path in (tmp_path / "name", tmp_path / "new" / "er" / "name"):
        with pytest.raises(error), replacing(path) as part:
            part.mkdir()
            (part / "half").write_text("half")
            raise error
        assert contents(tmp_path) == before and os.listdir(tmp_path) == ["name"]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_at_any_rename_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool, call: int
) -> None:
    """Fails at one call of os.rename or os.replace: two for a file, three for a folder."""
    write(tmp_path / "name", "old", folder=folder)
    before, calls = contents(tmp_path), 0

    def failing(original):
        def rename(*args):
            nonlocal calls
            calls += 1
            if calls == call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args)

        return rename

    monkeypatch.setattr(os, "rename", failing(os.rename))
    monkeypatch.setattr(os, "replace", failing(os.replace))
    if call == 3 and not folder:
        write(tmp_path / "name", "new", folder=False)
        return
    with pytest.raises(VidcmError, match="cannot write .*/name: No space left on device$"):
        write(tmp_path / "name", "new", folder=folder)
    assert contents(tmp_path) == before and os.listdir(tmp_path) == ["name"]


def test_old_content_that_cannot_be_restored_is_kept_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "name"
    write(folder, "old", folder=True)
    replace = os.replace

    def dying(source, target):
        if Path(target) == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(VidcmError, match=r"its old content is kept in (.*)$") as caught:
        write(folder, "new", folder=True)
    kept = Path(str(caught.value).split("kept in ")[1])
    assert contents(kept) == {"inside": b"old"} and not folder.exists()
    monkeypatch.undo()
    with pytest.raises(RuntimeError), replacing(folder):
        raise RuntimeError
    assert contents(tmp_path) == {"name/inside": b"old"} and os.listdir(tmp_path) == ["name"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vidcm import files
original, target = os.replace, Path(sys.argv[1])
def replace(source, to):
    original(source, to)
    if sys.argv[2] == "between":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
with files.replacing(target) as part:
    part.mkdir()
    (part / "inside").write_text("half")
    if sys.argv[2] == "within":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["within", "between"])
def test_the_next_write_cleans_up_after_a_killed_process(tmp_path: Path, moment: str) -> None:
    folder = tmp_path / "name"
    write(folder, "old", folder=True)
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), moment])
    assert done.returncode == -signal.SIGKILL
    assert folder.exists() == (moment == "within") and len(os.listdir(tmp_path)) >= 1
    with pytest.raises(RuntimeError), replacing(folder):
        raise RuntimeError
    assert contents(tmp_path) == {"name/inside": b"old"} and os.listdir(tmp_path) == ["name"]


def test_a_write_in_progress_is_not_cleaned_up(tmp_path: Path) -> None:
    path, ready, go = tmp_path / "name", threading.Event(), threading.Event()

    def slow() -> None:
        with replacing(path) as part:
            part.write_text("slow")
            ready.set()
            assert go.wait(30)

    thread = threading.Thread(target=slow)
    thread.start()
    assert ready.wait(30)
    write_text(path, "quick")
    assert path.read_text() == "quick"
    go.set()
    thread.join()
    assert contents(tmp_path) == {"name": b"slow"} and os.listdir(tmp_path) == ["name"]


def test_what_killed_processes_left_is_removed_and_what_living_ones_use_stays(
    tmp_path: Path,
) -> None:
    for moment in ("within", "between"):
        target = tmp_path / moment
        write(target, "old", folder=True)
        subprocess.run([sys.executable, "-c", KILLED, str(target), moment])
    (tmp_path / ".vidcm-new-12345678").mkdir()  # killed before it was locked
    (tmp_path / ".vidcm-file").touch()
    with replacing(tmp_path / "living") as part:
        part.write_text("half")
        remove_workspaces(tmp_path)
        assert part.read_text() == "half"
    remove_workspaces(tmp_path)
    left = sorted(p.name for p in tmp_path.iterdir() if p.is_dir())
    # The old content of "between" is nowhere else.
    assert len(left) == 2 and left[0].startswith(".vidcm-") and left[1] == "within"
    with pytest.raises(RuntimeError), replacing(tmp_path / "between"):
        raise RuntimeError
    assert (tmp_path / "between" / "inside").read_text() == "old"


def test_a_workspace_that_is_taken_for_one_left_behind_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock, and between its opening and its lock."""
    real_open, real_lock, taken = os.open, fcntl.flock, []

    def before_open(path, *args, **options):
        if ".vidcm-new" in str(path) and not taken:
            taken.append(path)
            remove_workspaces(tmp_path)
        return real_open(path, *args, **options)

    def before_lock(descriptor, operation):
        if operation == fcntl.LOCK_EX and len(taken) == 1:
            taken.append(descriptor)
            remove_workspaces(tmp_path)
        return real_lock(descriptor, operation)

    monkeypatch.setattr(os, "open", before_open)
    monkeypatch.setattr(fcntl, "flock", before_lock)
    write_text(tmp_path / "name", "new")
    assert len(taken) == 2
    assert contents(tmp_path) == {"name": b"new"} and os.listdir(tmp_path) == ["name"]


def test_the_usual_permissions_and_the_longest_name(tmp_path: Path) -> None:
    """Cases: P11."""
    (tmp_path / "usual").touch()
    (tmp_path / "usual.d").mkdir()
    write(tmp_path / "a", "x", folder=False)
    write(tmp_path / "a.d", "x", folder=True)
    for name in ("", ".d"):
        mode = (tmp_path / f"usual{name}").stat().st_mode
        assert (tmp_path / f"a{name}").stat().st_mode == mode
    write(tmp_path / ("é" * 127), "x", folder=False)


def test_refusals_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(VidcmError, match="cannot write .*file/name: "):
        write_text(tmp_path / "file" / "name", "x")
    with pytest.raises(VidcmError, match="cannot write /proc/none"):
        write_text("/proc/none/name", "x")
