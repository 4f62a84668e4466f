"""`vidcm serve` as a process of its own, used by OpenAI's client, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from serve.serving import Client

import vidcm
from vidcm.cli import serve
from vidcm.media.load import load_clip

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")  # OpenAI's own model, not its form

REPO = Path(vidcm.__file__).parents[1]


@contextmanager
def running(
    place: Path, *words: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command as a process whose temporary files are in a folder of their own, and its port."""
    command = [sys.executable, "-m", "vidcm", "serve", "--port", "0", *words]
    variables = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(REPO), **(env or {})}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.stderr and process.stderr.read()
        yield process, int(line.rpartition("/v1/videos")[0].rpartition(":")[2])
    finally:
        process.kill()
        process.communicate()


def test_openai_s_client_makes_polls_downloads_edits_and_deletes_clips(tmp_path):
    with running(tmp_path, env={"VIDCM_AUTH": "ann:sesame"}) as (process, port):
        client = openai.OpenAI(api_key="sesame", base_url=f"http://127.0.0.1:{port}/v1")
        video = client.videos.create_and_poll(
            prompt="a woman walks left",
            size="64x64",  # pyright: ignore
            seconds="1",  # pyright: ignore
            poll_interval_ms=50,
            extra_body={"num_inference_steps": 1, "seed": 7},
        )
        assert video.status == "completed" and video.error is None and video.seconds == "1.125"
        assert "walks left" in video.understood_as and video.seed == 7  # pyright: ignore
        content = client.videos.download_content(video.id)
        assert content.read()[4:8] == b"ftyp"
        sheet = client.videos.download_content(video.id, variant="spritesheet").read()
        assert sheet.startswith(b"\x89PNG")
        edit = client.videos.edit(prompt="an orc", video=("clip.mp4", content.read()))
        assert client.videos.poll(edit.id, poll_interval_ms=50).status == "completed"
        first = client.videos.download_content(video.id, variant="thumbnail").read()
        moved = client.videos.create(prompt="an orc walks left", input_reference=("a.png", first))
        assert client.videos.poll(moved.id, poll_interval_ms=50).status == "completed"
        assert [v.id for v in client.videos.list(limit=2)] == [moved.id, edit.id, video.id]
        assert client.videos.delete(video.id).deleted
        with pytest.raises(openai.NotFoundError, match="there is no such video"):
            client.videos.retrieve(video.id)
        with pytest.raises(openai.BadRequestError, match="did you mean 'seed'"):
            client.videos.create(prompt="an orc", extra_body={"sed": 1})
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").videos.list()
        assert [model.id for model in client.models.list()] == ["lpc-64"]


def test_the_program_of_the_document_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    text = (REPO / "docs/serving.md").read_text("utf-8")
    (program,) = re.findall(r"```py\n(.*?)```", text, re.S)
    with running(tmp_path / "tmp") as (process, port):
        exec(program.replace("127.0.0.1:8000", f"127.0.0.1:{port}"), {})
    assert load_clip(tmp_path / "clip.mp4", 8.0).frames.shape == (9, 256, 256, 3)


@pytest.mark.parametrize(
    "number, code, line", [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_the_end_by_a_signal_leaves_nothing(folder, tmp_path, number, code, line):
    with running(tmp_path, "--checkpoint", str(folder)) as (process, port):
        client = Client(port, {})
        assert os.listdir(tmp_path)
        client.form("/v1/videos/edits", {"task": "extend"}, [("video", b"nothing")])
        slow = {"prompt": "a man walks", "use_teacher": True, "num_inference_steps": 100}
        for _ in range(3):
            assert client("POST", "/v1/videos", slow).status == 200
        time.sleep(0.2)
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == code
        assert time.monotonic() - started < 15
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == f"error: {line}"
        assert not os.listdir(tmp_path)


def test_what_a_killed_server_left_is_removed_by_the_next_and_nothing_else(folder, tmp_path):
    words = ("--checkpoint", str(folder), "--no-page")
    (tmp_path / "vidcm-serve-file").write_text("of others")
    with running(tmp_path, *words) as (alive, _):
        there = set(os.listdir(tmp_path))
        with running(tmp_path, *words) as (killed, _):
            (left,) = set(os.listdir(tmp_path)) - there
            assert left.startswith("vidcm-serve-")
            killed.kill()
            killed.wait(30)
        for name in os.listdir(tmp_path):
            os.utime(tmp_path / name, (0, 0))
        assert left in os.listdir(tmp_path)
        with running(tmp_path, *words):
            assert left not in os.listdir(tmp_path)
            assert there < set(os.listdir(tmp_path))
        assert alive.poll() is None


def test_q09_other_machines_are_let_in_with_credentials_alone(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("VIDCM_AUTH", raising=False)
    assert serve.parser().get_default("host") == "127.0.0.1"
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        assert serve.main(["--host", host]) == 2
        assert "lets other machines ask; add --auth-file" in capsys.readouterr().err
    (tmp_path / "auth").write_text("no colon")
    for words in (["--auth", "ann:"], ["--auth-file", str(tmp_path / "auth")]):
        assert serve.main(words) == 2
        assert "credentials are no USER:PASSWORD" in capsys.readouterr().err


def test_a_missing_extra_is_one_line_before_torch(tmp_path):
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'fastapi' else find(n, *a)\n"
        "from vidcm.cli import main; code = main(['serve'])\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2
    assert done.stderr == "error: vidcm serve needs fastapi: pip install -e '.[web]'\n"


def test_an_unknown_checkpoint_is_refused_before_torch():
    code = "import sys; from vidcm.cli import main; code = main(['serve', '--checkpoint', 'x'])\n"
    code += "assert 'torch' not in sys.modules; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2 and "x is neither a bundled model" in done.stderr
