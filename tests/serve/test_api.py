"""The API over a real connection: forms, refusals, files, disconnects and limits of time."""

import json
import os
import re
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
from serve.serving import Client, served, service_of

from vidcm.media.png import encode_png
from vidcm.media.write import write_clip
from vidcm.serve import guard, server
from vidcm.serve.credentials import Credentials
from vidcm.serve.jobs import FINISHED

T, H, W = tiny.SIZE.values()
ASKED = {"prompt": "a man walks", "seed": 1, "num_inference_steps": 1}


def finished(client: Client, name: str) -> dict:
    until = time.monotonic() + 60
    while (found := client("GET", f"/v1/videos/{name}").json())["status"] not in FINISHED:
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def made(client: Client, **fields) -> dict:
    answer = client("POST", "/v1/videos", {**ASKED, **fields})
    assert answer.status == 200, answer.body
    return finished(client, answer.json()["id"])


def png(size=(H, W)) -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def clip(folder: Path, suffix: str = ".mp4", frames: int = T) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (frames, H, W, 3), np.uint8)
    return write_clip(pixels, folder / f"clip{suffix}", fps=8, overwrite=True).read_bytes()


# --- what is answered -----------------------------------------------------------------------------


def test_a_job_goes_from_its_form_to_its_files(client):
    video = made(client, size=f"{W}x{H}", seconds="0.6")
    assert video["object"] == "video" and video["status"] == "completed"
    assert (video["size"], video["num_frames"], video["seconds"]) == (f"{W}x{H}", T, "0.625")
    assert video["seed"] == 1 and video["progress"] == 100 and video["error"] is None
    assert set(video["timings"]) == {"queue", "text", "denoise", "decode", "write"}
    content = f"/v1/videos/{video['id']}/content"
    starts = {
        "video": b"\0\0\0 ftyp",
        "gif": b"GIF89a",
        "thumbnail": b"\x89PNG",
        "spritesheet": b"\x89PNG",
        "frames": b"PK",
    }
    for variant, start in starts.items():
        answer = client("GET", f"{content}?variant={variant}")
        assert answer.status == 200 and answer.body.startswith(start), variant
    assert client("GET", content).body == client("GET", f"{content}?variant=video").body
    assert client("GET", f"{content}?index=1").status == 400
    assert client("DELETE", f"/v1/videos/{video['id']}").json()["deleted"] is True
    for path in (content, f"/v1/videos/{video['id']}"):
        assert client("GET", path).status == 404


def test_forms_and_json_ask_for_the_same(client):
    as_form = client.form("/v1/videos", {k: str(v) for k, v in ASKED.items()}).json()
    one, two = finished(client, as_form["id"]), made(client)
    files = [client("GET", f"/v1/videos/{v['id']}/content").body for v in (one, two)]
    assert files[0] == files[1]
    both = {"prompt": "a man walks", "num_frames": "13", "prompt_schedule": '[[9, "a dog runs"]]'}
    assert client.form("/v1/videos", both).status == 200


def test_jobs_are_listed_in_pages(client):
    names = [made(client)["id"] for _ in range(3)]
    page = client("GET", "/v1/videos?limit=2").json()
    assert [v["id"] for v in page["data"]] == names[:0:-1] and page["has_more"]
    rest = client("GET", f"/v1/videos?limit=2&after={page['last_id']}").json()
    assert rest["data"][0]["id"] == names[0]
    after = client("GET", f"/v1/videos?order=asc&after={names[0]}").json()
    assert [v["id"] for v in after["data"]] == names[1:] and not after["has_more"]


def test_models_health_and_metrics(client):
    (model,) = client("GET", "/v1/models").json()["data"]
    assert model["id"] == "pipeline" and client("GET", "/v1/models/pipeline").json() == model
    assert client("GET", "/v1/models/other").status == 404
    assert client("GET", "/health").json()["jobs_survive_restart"] is False
    pattern = r'vidcm_jobs_total{kind="generation",model="pipeline",status="completed"} (\S+)'
    texts = []
    for _ in range(2):
        made(client)
        texts.append(client("GET", "/metrics").body.decode())
    before, now = (float(re.search(pattern, text)[1]) for text in texts)
    text = texts[1]
    assert now == before + 1 and "vidcm_stage_seconds_bucket" in text
    assert "process_resident_memory_bytes" in text and "a man" not in text


def test_edits_take_files_masks_and_earlier_results(client, tmp_path):
    fields = {"task": "inpaint", "prompt": "a man", "num_inference_steps": "1"}
    mask = np.zeros((H, W, 3), np.uint8)
    mask[2:8, 4:10] = 255
    files = [("video", clip(tmp_path)), ("mask", encode_png(mask))]
    answers = [
        client.form("/v1/videos/edits", fields, files),
        client.form("/v1/videos/edits", {**fields, "mask": "4,2,6,6"}, files[:1]),
    ]
    videos = [finished(client, answer.json()["id"]) for answer in answers]
    for video in videos:
        assert video["status"] == "completed" and video["task"] == "inpaint"
        assert "filled x 4 to 10, y 2 to 8 of the model's 24x16 pixels" in video["warnings"]
    again = {"prompt": "a dog", "video": {"id": videos[0]["id"]}, "num_inference_steps": 1}
    remix = client("POST", "/v1/videos/edits", again).json()
    assert remix["task"] == "variation" and remix["remixed_from_video_id"] == videos[0]["id"]
    assert finished(client, remix["id"])["status"] == "completed"


def test_head_is_answered_as_get_without_a_body(client):
    video = f"/v1/videos/{made(client)['id']}"
    for path in (video, f"{video}/content", f"{video}/content?variant=gif", "/v1/models"):
        head, whole = client("HEAD", path), client("GET", path)
        assert (head.status, head.body) == (200, b"") and whole.body
        wanted = ("content-length", "content-type", "accept-ranges", "openai-poll-after-ms")
        for name in wanted:
            assert head.headers.get(name) == whole.headers.get(name), (path, name)
    assert client("HEAD", "/health").status == client("HEAD", "/metrics").status == 200
    part = client("HEAD", f"{video}/content", headers={"range": "bytes=0-9"})
    assert (part.status, part.body, part.headers["content-length"]) == (206, b"", "10")
    assert client("HEAD", "/v1/videos/video_0").status == 404
    assert client("HEAD", "/v1/videos/sync").status == client("GET", "/v1/videos/sync").status
    with client.connect() as link:  # nothing of a body is there for the next answer to begin with
        for _ in range(2):
            link.sendall(f"HEAD {video}/content HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            assert link.recv(65536).endswith(b"\r\n\r\n")


def test_a_clip_made_at_once_is_the_answer(client):
    answer = client("POST", "/v1/videos/sync", ASKED)
    assert answer.status == 200 and answer.headers["content-type"] == "video/mp4"
    video = client("GET", f"/v1/videos/{answer.headers['x-video-id']}").json()
    assert answer.headers["x-seed"] == "1" == str(video["seed"])
    assert client("GET", f"/v1/videos/{video['id']}/content").body == answer.body


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, param, message",
    [
        ({"seed": None}, "seed", "seed is null; leave it out"),
        ({"num_infrence_steps": 2}, "num_infrence_steps", "did you mean 'num_inference_steps'?"),
        ({"steps": 2}, "steps", "it is called 'num_inference_steps' here"),
        ({"input_reference": "/etc/passwd"}, "input_reference", "unknown field"),
        ({"seed": -1}, "seed", "seed: Input should be greater than or equal to 0"),
        ({"seed": 2**64}, "seed", "seed: Input should be less than"),
        ({"seed": "1"}, "seed", "seed: Input should be a valid integer"),
        ({"num_frames": 5.5}, "num_frames", "valid integer"),
        ({"guidance_scale": True}, "guidance_scale", "valid number"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"size": "16"}, "size", "match pattern"),
        ({"seconds": "inf"}, "seconds", "seconds"),
        ({"model": "../../etc"}, None, "there is no model '../../etc'"),
        ({"num_frames": 4}, None, "use 1 or 5"),
    ],
)
def test_fields_that_do_not_fit_are_named(client, body, param, message):
    answer = client("POST", "/v1/videos", {**ASKED, **body})
    assert answer.status == 400 and answer.error["param"] == param
    assert message in answer.error["message"] and answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "not JSON"),
        (b"[]", "no JSON object"),
        (b'{"prompt": NaN}', "NaN is no JSON"),
        (b'{"seed": 1, "seed": 2}', "seed: there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"prompt": "\xff"}', "not JSON"),
        (b'{"\\ud800": 1}', "not JSON"),
        (b'{"prompt": "\\udfff"}', "not JSON"),
    ],
)
def test_bodies_that_are_no_json_are_refused(client, body, message):
    answer = client("POST", "/v1/videos", body, {"content-type": "application/json"})
    assert answer.status == 400 and message in answer.error["message"]


def test_other_failures_have_the_same_form(client):
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("PUT", "/v1/videos", 405),
        ("GET", "/v1/videos/video_0", 404),
        ("GET", "/v1/videos?limit=0", 400),
        ("GET", "/v1/videos/x/content?variant=exe", 400),
    ):
        answer = client(method, path)
        assert answer.status == status and answer.error["message"], path
    assert client("PUT", "/v1/videos").headers["allow"] == "GET, HEAD, POST"
    assert client("PUT", "/v1/videos/video_0").headers["allow"] == "DELETE, GET, HEAD"
    text = client("POST", "/v1/videos", b"a man", {"content-type": "text/plain"})
    assert text.status == 400 and "use application/json or multipart" in text.error["message"]
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert client("POST", "/v1/videos", b"--y\r\n", broken).status == 400
    bare = {"content-type": "multipart/form-data"}
    assert client("POST", "/v1/videos", b"--y\r\n", bare).status == 400


def test_a_result_that_is_not_there_is_a_conflict(client, gate):
    name = client("POST", "/v1/videos", ASKED).json()["id"]
    answer = client("GET", f"/v1/videos/{name}/content")
    assert answer.status == 409 and answer.error["code"] == "not_ready"
    cancelled = client("POST", f"/v1/videos/{name}/cancel")
    assert cancelled.status == 200
    gate.open()
    assert finished(client, name)["status"] == "cancelled"


def test_no_reply_has_a_path_of_this_machine(service, client, folder, tmp_path):
    bad = clip(tmp_path)[:-400]
    answers = [
        client.form("/v1/videos/edits", {"task": "extend"}, [("video", bad + b"\0" * 400)]),
        client.form(
            "/v1/videos/edits",
            {"task": "inpaint", "mask": "0,0,99,99"},
            [("video", clip(tmp_path))],
        ),
        client.form(
            "/v1/videos/edits", {"task": "extend", "start": "9"}, [("video", clip(tmp_path))]
        ),
        client("POST", "/v1/videos", {**ASKED, "prompt": "x" * 2001}),
        client("POST", "/v1/videos", {**ASKED, "model": str(folder)}),
    ]
    bodies = [answer.body.decode() for answer in answers]
    for answer in answers[:3]:
        found = finished(client, answer.json()["id"])
        assert found["status"] == "failed" and found["error"]["code"] == "invalid_request_error"
        assert found["error"]["message"].startswith(("video", "the mask"))
        bodies.append(json.dumps(found))
    bodies += [
        client("GET", path).body.decode()
        for path in ("/openapi.json", "/v1/models", "/health", "/metrics", "/v1/videos")
    ]
    for place in (service._workspace._folder.name, os.getcwd(), str(folder.parent)):
        assert not [body for body in bodies[:4] + bodies[5:] if place in body]


# --- limits ---------------------------------------------------------------------------------------


def test_q06_a_full_queue_is_429_with_the_time_to_wait(folder, gate):
    with service_of(folder, max_queue=3) as service, served(service) as client:
        answers = [client("POST", "/v1/videos", ASKED) for _ in range(20)]
        statuses = [answer.status for answer in answers]
        assert statuses.count(200) in (3, 4) and set(statuses) == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["retry-after"]) >= 1 and refused.error["code"] == "queue_full"
        assert "vidcm_queue_full_total 1" in client("GET", "/metrics").body.decode()
        gate.open()


def test_q07_a_client_that_leaves_cancels_its_job(service, client, gate):
    body = json.dumps({**ASKED, "num_inference_steps": 90}).encode()
    before = len(service.jobs())
    link = client.connect()
    link.sendall(
        b"POST /v1/videos/sync HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    until = time.monotonic() + 30
    while len(jobs := service.jobs()) == before or jobs[-1].status == "queued":
        assert time.monotonic() < until
        time.sleep(0.01)
    link.close()
    while not jobs[-1].abandoned:
        assert time.monotonic() < until
        time.sleep(0.01)
    gate.open()
    assert jobs[-1].done.wait(30) and jobs[-1].status == "cancelled" and jobs[-1].step <= 2


def test_two_users_at_once_get_their_own_clips(client):
    found: dict[int, bytes] = {}

    def use(seed: int) -> None:
        for number in range(4):
            answer = client("POST", "/v1/videos/sync", {**ASKED, "seed": seed + number})
            found[seed + number] = answer.body

    users = [threading.Thread(target=use, args=(seed,)) for seed in (0, 100)]
    for user in users:
        user.start()
    for user in users:
        user.join(60)
    assert len(found) == 8 and len(set(found.values())) == 8
    for seed in (2, 102):
        assert len(client("POST", "/v1/videos/sync", {**ASKED, "seed": seed}).body) > 100


def raw(client: Client, text: bytes, until_closed: bool = True) -> bytes:
    """Send bytes and read what comes until the connection ends."""
    with client.connect() as link:
        link.sendall(text)
        found = b""
        while part := link.recv(65536):
            found += part
        return found


def test_q04_a_large_upload_is_refused_before_its_body_is_read(client):
    head = b"POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
    announced = raw(client, head + b"content-length: 2147483648\r\n\r\n")
    assert announced.startswith(b"HTTP/1.1 413") and b"larger than 20971520 bytes" in announced


def test_a_large_upload_of_unknown_length_is_cut_off(folder):
    with service_of(folder, max_upload=60_000) as service, served(service) as client:
        head = b"POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        found = raw(client, head + b"transfer-encoding: chunked\r\n\r\n" + chunk)
        assert found.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_an_upload_that_is_broken_off_is_no_fault_and_leaves_no_file(service, client, caplog, kind):
    head = f"POST /v1/videos/edits HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n"
    part = '--x\r\ncontent-disposition: form-data; name="video"; filename="a"\r\n\r\n'
    jobs = len(service.jobs())
    with client.connect() as link:
        link.sendall(f"{head}content-length: 9000000\r\n\r\n{part}".encode() + bytes(2**20))
    until = time.monotonic() + 0.5
    while time.monotonic() < until:  # a fault would be logged when the server sees the end
        assert client("GET", "/health").status == 200
        time.sleep(0.05)
    assert not caplog.records and len(service.jobs()) == jobs
    assert not os.listdir(service._workspace._folder.name)


def test_slow_and_half_open_connections_end(client, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(guard, "RECEIVE_SECONDS", 0.3)
    assert raw(client, b"") == b"" and raw(client, b"GET /health HT") == b""
    body = raw(
        client,
        b"POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    )
    assert body.startswith(b"HTTP/1.1 408")
    with client.connect() as link:  # a byte now and then does not help
        started = time.monotonic()
        with pytest.raises(OSError):
            for letter in b"GET /health HTTP/1.1\r\n" * 20:
                link.sendall(bytes([letter]))
                time.sleep(0.02)
        assert time.monotonic() - started < 5
    with client.connect() as link:  # and the second request of a connection has a clock of its own
        link.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert link.recv(65536)
        link.sendall(b"GET /hea")
        while link.recv(65536):
            pass
    assert client("GET", "/health").status == 200


# --- who may ask ----------------------------------------------------------------------------------


def test_only_those_with_the_credentials_are_answered(folder):
    own = Credentials.parse("ann:open sesame:1\n")
    with service_of(folder) as service, served(service, own) as client:
        assert client("GET", "/health").status == 200
        for path in ("/v1/videos", "/metrics", "/openapi.json", "/v1/models"):
            answer = client("GET", path)
            assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Basic")
        basic = "Basic YW5uOm9wZW4gc2VzYW1lOjE="  # ann:open sesame:1
        for words in (basic, "Bearer open sesame:1"):
            assert client("GET", "/v1/videos", headers={"authorization": words}).status == 200
        for words in (
            "Basic YW5uOg==",
            "Basic %",
            "Bearer",
            "Bearer open sesame",
            "x",
            basic + "x",
        ):
            assert client("GET", "/v1/videos", headers={"authorization": words}).status == 401
        document = client("GET", "/openapi.json", headers={"authorization": basic}).json()
        assert document["paths"]["/v1/videos"]["get"]["security"]
        assert "security" not in document["paths"]["/health"]["get"]


def test_credentials_are_compared_in_constant_time_and_not_shown(monkeypatch):
    own, seen = Credentials.parse("ann:secret"), []
    compare = "vidcm.serve.credentials.hmac.compare_digest"
    monkeypatch.setattr(compare, lambda a, b: seen.append((len(a), len(b))) or a == b)
    assert own.admit("Bearer secret") and not own.admit("Bearer s") and not own.admit("Bearer é")
    assert seen == [(32, 32)] * 3 and "secret" not in repr(own) and "ann" not in repr(own)


def test_pages_of_other_servers_cannot_ask(client):
    for origin in ("http://evil.example", "null", "http://[", "http://[x]"):
        headers = {"origin": origin}
        answer = client("POST", "/v1/videos", ASKED, headers)
        assert answer.status == 403 and "access-control-allow-origin" not in answer.headers
    for host in ("evil.example", "[", "[x]:1"):
        assert client("GET", "/health", headers={"host": host}).status == 403
    own = {"host": "localhost:1", "origin": "http://localhost:1"}
    assert client("POST", "/v1/videos", ASKED, own).status == 200
    ask = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert client("OPTIONS", "/v1/videos", headers=ask).status == 405


# --- ecosystem of web cases -----------------------------------------------------------------------


def test_q01_a_prompt_of_5_mb_is_refused_before_it_is_read_as_words(client, monkeypatch):
    monkeypatch.setattr("vidcm.conditioning.prompts.words_of", lambda prompt: 1 / 0)
    answer = client("POST", "/v1/videos", {"prompt": "a" * 5_000_000})
    assert answer.status == 400 and "at most 2000 characters" in answer.error["message"]
    assert len(answer.body) < 500


def test_q02_markup_in_a_prompt_comes_back_as_data(client):
    prompt = "<script>alert(1)</script> [a](javascript:b) walks"
    answer = client("POST", "/v1/videos", {**ASKED, "prompt": prompt})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["prompt"] == prompt


def test_q03_names_of_files_do_not_come_from_prompts_or_uploads(service, client, tmp_path):
    prompt = "../../../etc/passwd; rm -rf / \n\r a man"
    video = made(client, prompt=prompt)
    answer = client("GET", f"/v1/videos/{video['id']}/content")
    assert re.fullmatch(r"video_[0-9a-f]{32}", video["id"]) and "passwd" not in str(answer.headers)
    # Client.form sends every file as ../../NAME
    client.form("/v1/videos/edits", {"task": "extend"}, [("video", clip(tmp_path))])
    assert all(len(Path(n).stem) == 32 for n in os.listdir(service._workspace._folder.name))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"MZ\x90\0" + b"\0" * 100, "not-video"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not-video"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "unreadable"),
        (b"\x80\x04\x95\0", "not-video"),  # a pickle
    ],
)
def test_q05_uploads_that_are_no_clips_are_refused(client, data, message):
    fields = {"task": "extend", "prompt": "a man"}

    def jobs() -> list[str]:
        return [job["id"] for job in client("GET", "/v1/videos").json()["data"]]

    before = jobs()
    answer = client.form("/v1/videos/edits", fields, [("video", data)])
    assert answer.status == 400 and f"video: {message}" in answer.error["message"]
    assert jobs() == before


def test_q05_a_bomb_is_refused_by_its_header(folder, tmp_path):
    with service_of(folder, max_pixels=W * H * T - 1) as service, served(service) as client:
        answer = client.form("/v1/videos/edits", {"task": "extend"}, [("video", clip(tmp_path))])
        message = finished(client, answer.json()["id"])["error"]["message"]
        assert "more than memory should hold" in message
        answer = client.form("/v1/videos/edits", {"task": "colorize"}, [("video", png((200, 200)))])
        assert answer.status == 400 and "video: too-large" in answer.error["message"]


def png_that_claims(width: int, height: int) -> bytes:
    """A small file with a large picture in its header."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", size), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def gif_that_claims(width: int, height: int) -> bytes:
    """A gif, which is read as a video."""
    size = struct.pack("<HH", width, height)
    image = b"\x2c\0\0\0\0" + size + b"\0\x02\x02\x4c\x01\0"
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + image + b"\x3b"


@pytest.mark.parametrize(
    "bomb", [png_that_claims(30_000, 30_000), png_that_claims(9000, 9000)], ids=["30000", "9000"]
)
def test_q05_a_picture_s_pixels_are_counted_before_it_is_decoded_on_every_way_in(
    service, client, tmp_path, monkeypatch, bomb
):
    assert len(bomb) < 200
    monkeypatch.setattr(service._workspace.reader, "_call", lambda *_, **__: 1 / 0)
    film, edits = clip(tmp_path), "/v1/videos/edits"
    inpaint = {"task": "inpaint", "prompt": "a man"}
    answers = {
        "input_reference": client.form(
            "/v1/videos", {"prompt": "a man"}, [("input_reference", bomb)]
        ),
        "video": client.form(edits, {"task": "animate"}, [("video", bomb)]),
        "mask": client.form(edits, inpaint, [("video", film), ("mask", bomb)]),
    }
    answers["sync"] = client.form(
        "/v1/videos/sync", {"prompt": "a man"}, [("input_reference", bomb)]
    )
    for label, answer in answers.items():
        label = "input_reference" if label == "sync" else label
        assert answer.status == 400 and answer.error["message"].startswith(f"{label}: too-large: ")
    assert service._workspace._viewer.peak_memory() < 2**28  # 30000x30000 pixels are 2.5 GiB
    assert not os.listdir(service._workspace._folder.name)


def test_q05_a_video_s_pixels_are_counted_before_it_is_decoded(client):
    bomb = gif_that_claims(30_000, 30_000)
    answer = client.form("/v1/videos/edits", {"task": "extend"}, [("video", bomb)])
    assert answer.status == 400 and "video: too-large: " in answer.error["message"]


def test_q05_decoding_that_hangs_or_crashes_ends_with_its_job(folder, tmp_path):
    with service_of(folder, read_seconds=0.5) as service, served(service) as client:
        for fault, message in (("time.sleep(60)", "timeout"), ("os.abort()", "decoder-crash")):
            service._workspace.reader.close()
            service._workspace.reader._boot = (
                "import json, os, sys, time; sys.path[:] = json.loads(sys.argv[2]);"
                "from vidcm.media import worker;"
                f"worker.CALLS['load_clip'] = lambda *a: {fault};"
                "worker.serve(int(sys.argv[1]))"
            )
            answer = client.form(
                "/v1/videos/edits", {"task": "extend"}, [("video", clip(tmp_path))]
            )
            assert message in finished(client, answer.json()["id"])["error"]["message"]
        assert made(client)["status"] == "completed"


@pytest.mark.parametrize(
    "path",
    ["/file=/etc/passwd", "/gradio_api/file=/etc/passwd", "/v1/videos/../../etc/passwd/content"]
    + ["/v1/videos/..%2f..%2fetc%2fpasswd/content", "/static/../../etc/passwd"],
)
def test_q08_no_path_of_a_request_reaches_a_file(client, path):
    answer = client("GET", path)
    assert answer.status in (403, 404) and b"root:" not in answer.body


def test_q10_prompts_are_not_logged(client, capfd, caplog):
    made(client, prompt="a marmalade zeppelin walks")
    client("POST", "/v1/videos", {"prompt": "a marmalade zeppelin", "seed": "x"})
    assert "marmalade" not in "".join(capfd.readouterr()) + caplog.text


def test_q11_models_are_those_of_the_server_alone(client, folder):
    for name in (str(folder), "../pipeline", "lpc-64", "pipeline/"):
        answer = client("POST", "/v1/videos", {**ASKED, "model": name})
        assert answer.status == 400 and "there is no model" in answer.error["message"]


def test_a_socket_that_is_taken_is_one_line():
    from vidcm.errors import VidcmError

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(VidcmError, match=f"cannot listen on 127.0.0.1:{port}: .*--port"):
            server.bind("127.0.0.1", port)


@pytest.mark.parametrize(
    "wanted, part",
    [
        ("bytes=0-9", slice(0, 10)),
        ("bytes=10-", slice(10, None)),
        ("bytes=-7", slice(-7, None)),
        ("bytes=5-99999999", slice(5, None)),
        ("bytes=0-0", slice(0, 1)),
    ],
)
def test_a_browser_may_ask_for_a_part_of_a_clip(client, wanted, part):
    path = f"/v1/videos/{made(client)['id']}/content"
    whole = client("GET", path)
    assert whole.status == 200 and whole.headers["accept-ranges"] == "bytes"
    answer = client("GET", path, headers={"range": wanted})
    assert answer.status == 206 and answer.body == whole.body[part]
    start, _, _ = part.indices(len(whole.body))
    end = start + len(answer.body) - 1
    assert answer.headers["content-range"] == f"bytes {start}-{end}/{len(whole.body)}"


@pytest.mark.parametrize(
    "wanted", ["bytes=-", "bytes=9-3", "bytes=0-1,3-4", "lines=1-2", "bytes=x-"]
)
def test_what_is_no_range_is_answered_with_all_of_it(client, wanted):
    path = f"/v1/videos/{made(client)['id']}/content"
    answer = client("GET", path, headers={"range": wanted})
    assert answer.status == 200 and answer.body == client("GET", path).body


def test_a_range_beyond_the_end_is_refused(client):
    path = f"/v1/videos/{made(client)['id']}/content"
    size = len(client("GET", path).body)
    for wanted in (f"bytes={size}-", "bytes=-0"):
        answer = client("GET", path, headers={"range": wanted})
        assert answer.status == 416 and answer.headers["content-range"] == f"bytes */{size}"
