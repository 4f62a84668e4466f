"""The page without a browser: it stands behind the guard, and reads nothing but what it is given."""

import json
import re
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from serve.serving import Client, served, service_of
from serve.test_api import png_that_claims

from vidcm.media.png import encode_png
from vidcm.registry import TABLE, options_of
from vidcm.serve.credentials import Credentials
from vidcm.serve.page import events
from vidcm.serve.page.cards import card, problem
from vidcm.serve.page.follow import MAX_LISTED, jobs_of, remembered
from vidcm.serve.page.mount import PATH
from vidcm.serve.page.runs import RunFolders, read_log
from vidcm.serve.requests import VideoRequest
from vidcm.serve.service import JobService


def _page(service: JobService, uploads: Path) -> FastAPI:
    from vidcm.serve.page.build import build

    return build(service, [], uploads)


def _ready(client: Client, path: str = f"{PATH}/") -> None:
    until = time.monotonic() + 120
    while client("GET", path).status == 503:
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture
def own(folder: Path) -> Iterator[JobService]:
    """A service that a server may stop."""
    with service_of(folder) as made:
        yield made


@pytest.fixture(scope="module")
def client(service: JobService) -> Iterator[Client]:
    with served(service, page=partial(_page, service)) as made:
        _ready(made)
        yield made


def test_the_api_answers_while_the_page_is_built(own):
    go = threading.Event()

    def build(uploads):
        go.wait(30)
        return FastAPI()

    with served(own, page=build) as client:
        assert client("GET", "/health").status == 200
        waiting = client("GET", f"{PATH}/")
        assert waiting.status == 503 and b"the API answers already" in waiting.body
        go.set()
        _ready(client)


def test_a_page_that_cannot_be_built_is_said_and_the_api_goes_on(own):
    def build(uploads):
        raise RuntimeError("a fault of ours in /secret/place")

    with served(own, page=build) as client:
        _ready(client)
        failed = client("GET", f"{PATH}/")
        assert failed.status == 500 and b"log of the server" in failed.body
        assert b"secret" not in failed.body
        assert client("GET", "/health").status == 200


def test_the_page_names_no_other_host_and_forbids_browsers_to_ask_one(client):
    answer = client("GET", f"{PATH}/")
    assert answer.status == 200
    text = answer.body.decode()
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=[\"']([^\"']+)", text)
    assert loaded and not [place for place in loaded if "//" in place]
    config = json.loads(re.search(r"window.gradio_config = (.*?);</script>", text).group(1))
    assert config["analytics_enabled"] is False and config["run_history"] is False
    assert not config["stylesheets"]
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'") and "://" not in policy


def test_head_is_answered_for_the_page_too(client):
    for path, status in (
        ("/", 307),
        (f"{PATH}/", 200),
        (f"{PATH}/gradio_api/file=/etc/passwd", 404),
    ):
        head = client("HEAD", path)
        assert (head.status, head.body) == (status, b"")


def test_other_origins_get_no_leave_to_read_the_page(client):
    for path in (f"{PATH}/", f"{PATH}/config"):
        for origin in ("http://localhost:3000", "null"):
            answer = client("GET", path, headers={"origin": origin})
            assert not [name for name in answer.headers if name.lower().startswith("access-")]
    assert client("GET", f"{PATH}/", headers={"host": "evil.example"}).status == 403
    from_elsewhere = {"origin": "http://localhost:3000"}
    assert client("POST", f"{PATH}/gradio_api/queue/join", {}, from_elsewhere).status == 403


@pytest.mark.parametrize(
    "path",
    [
        "file=/etc/passwd",
        "file/etc/passwd",
        "proxy=http://127.0.0.1/",
        "stream/a/b/c/d",
        "run/predict",
        "mcp",
    ],
)
def test_gradio_s_servers_of_files_and_others_are_out_of_reach(client, path):
    assert client("GET", f"{PATH}/gradio_api/{path}").status == 404
    assert client("POST", f"{PATH}/gradio_api/{path}", {}).status == 404
    assert client("GET", f"{PATH}/monitoring").status == 404


def test_a_path_that_no_file_can_have_is_not_found(client):
    assert client("GET", "/page/static/" + "a" * 5000).status == 404


def _events(client: Client) -> list[int]:
    """Of the page that take files."""
    config = client("GET", f"{PATH}/config").json()
    files = {c["id"] for c in config["components"] if c["type"] == "file"}
    found = [d["id"] for d in config["dependencies"] if d["inputs"] and d["inputs"][0] in files]
    assert found
    return found


def _told(client: Client, event: int, data: list) -> str:
    """What the page says to an event."""
    body = {"data": data, "fn_index": event, "session_hash": "s1"}
    assert client("POST", f"{PATH}/gradio_api/queue/join", body).status == 200
    return client("GET", f"{PATH}/gradio_api/queue/data?session_hash=s1").body.decode()


def _file(path: object) -> dict:
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_an_event_may_name_files_that_were_uploaded_and_no_others(client, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_png(np.zeros((16, 16, 3), np.uint8)))
    event = _events(client)[0]
    sent = client.form(f"{PATH}/gradio_api/upload", {}, [("files", secret.read_bytes())]).json()
    assert "data:image/png" in _told(client, event, [[_file(sent[0])], "uploaded files"])
    up = Path(sent[0])
    (up.parent / "link.png").symlink_to(secret)
    others = [secret, up.parent / "link.png", up.parent / ".." / ".." / "x", up.parent, "\0", 7]
    for path in [*others, "http://127.0.0.1:1/a.png", "data:image/png;base64,AAAA"]:
        for data in ([[_file(path)], "uploaded files"], [{"a": [_file(path)]}, ""]):
            body = {"data": data, "fn_index": event, "session_hash": "s1"}
            answer = client("POST", f"{PATH}/gradio_api/queue/join", body)
            assert answer.status == 400 and "was not uploaded" in answer.error["message"]


def test_a_picture_s_pixels_are_counted_before_the_page_shows_it(client):
    bomb = png_that_claims(30_000, 30_000)
    (sent,) = client.form(f"{PATH}/gradio_api/upload", {}, [("files", bomb)]).json()
    told = _told(client, _events(client)[0], [[_file(sent)], "uploaded files"])
    assert "the file: too-large: its header claims more pixels" in told


def test_gradio_refuses_such_files_too(client, tmp_path, monkeypatch):
    monkeypatch.setattr(events, "_check", lambda *_: None)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encode_png(np.zeros((16, 16, 3), np.uint8)))
    told = _told(client, _events(client)[0], [[_file(secret)], "uploaded files"])
    assert '"success":false' in told and "data:image" not in told


def test_an_event_that_is_no_json_is_refused(client):
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b"[" * 60 + b"]" * 60):
        assert client("POST", f"{PATH}/gradio_api/queue/join", body).status == 400


def test_the_page_asks_for_the_credentials(own):
    with served(own, Credentials("ann", "sesame"), page=lambda uploads: FastAPI()) as client:
        for path in ("/", f"{PATH}/", f"{PATH}/gradio_api/queue/join"):
            assert client("GET", path).status == 401
        assert client("GET", "/", headers={"authorization": "Bearer sesame"}).status == 307


def test_uploads_are_bounded(client, service):
    said = {"content-length": str(service.limits.max_upload + 1)}
    assert client("POST", f"{PATH}/gradio_api/upload", b"", said).status == 413


def test_every_option_of_every_task_has_a_field():
    import gradio as gr

    from vidcm.serve.page.edit import TaskOptions

    with gr.Blocks():
        options = TaskOptions()
    wanted = {option for task in TABLE["task"] for option in options_of("task", task)}
    assert set(options.names) | {"mask"} == wanted


def test_what_a_request_says_is_escaped(service):
    job = service.generate(VideoRequest(prompt="a <script>man</script> walks", seed=1))
    assert "<script" not in card(job, "<script>")
    job.done.wait(30)
    drawn = card(job, "<b>one</b>")
    assert "<script" not in drawn and "<b>" not in drawn and job.id in drawn
    assert "<i>" not in problem("<i>")


def test_what_a_browser_remembers_is_taken_as_far_as_it_may_be_true(service):
    job = service.generate(VideoRequest(prompt="a man walks", seed=1))
    job.done.wait(30)
    assert remembered({"a": 1}) == remembered("x") == remembered([1, ["a"], None]) == []
    assert len(remembered([["a", "b"]] * 1000)) == MAX_LISTED
    found = jobs_of(service, [[job.id, "one"], ["../../etc/passwd", "two"]])
    assert found == [("one", job), ("two", None)]
    assert "no longer there" in card(None, "two")


def test_runs_are_found_below_the_named_folders_alone(tmp_path):
    root, other = tmp_path / "runs", tmp_path / "other"
    for folder in (root / "a", root / "b" / "c", other / "d"):
        (folder / "samples").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (root / "link").symlink_to(other / "d")
    (root / "e").mkdir()
    (root / "e" / "metrics.jsonl").symlink_to(other / "d" / "metrics.jsonl")
    for number in (1, 20):
        (root / "a" / "samples" / f"step-{number:08d}.png").write_bytes(b"png")
    (root / "a" / "samples" / "step-00000003.png").symlink_to(other / "d" / "metrics.jsonl")
    runs = RunFolders([root])
    assert set(runs.names()) == {"runs/a", "runs/b/c"}
    assert list(runs.sheets("runs/a")) == ["step 20", "step 1"]
    for name in ("../other/d", "runs/../other/d", str(other / "d"), "runs/link", "runs/e"):
        assert runs.curves(name) == {} and runs.sheets(name) == {}


def test_a_log_that_is_being_written_gives_its_whole_lines(tmp_path: Path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": i / 2, "skipped": 0}) for i in range(1000)]
    log.write_text("\n".join(lines) + '\nnot json\n{"step": 1000, "lo')
    found = read_log(log)
    assert set(found) == {"loss", "skipped"} and 300 < len(found["loss"]) <= 401
    assert all(value == step / 2 for step, value in found["loss"])
