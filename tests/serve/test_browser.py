"""The page in a real browser: Debian's Chromium, driven by Playwright, with no way to other hosts.

`VIDCM_SCREENSHOTS=1 pytest -n 0 tests/serve/test_browser.py` makes the pictures of the documents.
"""

import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from serve.serving import Client
from serve.test_command import REPO, running

from vidcm.media.png import encode_png
from vidcm.media.write import write_clip

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e '.[test]'"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium, as of Debian: apt-get install chromium"
)
PICTURES = REPO / "docs/images/serve"
PROMPT = "an orc with a red mohawk slashes to the right on a gray background"
SECONDS = 60  # for what a busy machine does; an idle one needs a few


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "runs"
    (folder / "teacher" / "samples").mkdir(parents=True)
    lines = [json.dumps({"step": s, "loss": 2 / (1 + s / 100)}) for s in range(0, 1000, 20)]
    (folder / "teacher" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def port(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of a server with the bundled model, a tiny one and the page."""
    place = tmp_path_factory.mktemp("tmp")
    other = tiny.pipeline(tmp_path_factory.mktemp("other"))
    words = ["--checkpoint", "lpc-64", "--checkpoint", str(other), "--runs", str(runs)]
    with running(place, *words) as (_, port):
        client, until = Client(port, {}), time.monotonic() + 180
        while client("GET", "/page/").status != 200:
            assert time.monotonic() < until
            time.sleep(0.2)
        yield port


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    with sync_api.sync_playwright() as playwright:
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=[nowhere])
        yield made
        made.close()


class Visitors:
    """Opens the page as new users.

    Attributes:
        wrong: Requests to other hosts, and what scripts complained about.
    """

    def __init__(self, browser: "sync_api.Browser", port: int):
        self._browser, self._port = browser, port
        self._contexts: list[sync_api.BrowserContext] = []
        self.wrong: list[str] = []

    def __call__(self, tab: str = "Generate", **options: object) -> "sync_api.Page":
        chosen = {"viewport": {"width": 1200, "height": 860}, **options}
        context = self._browser.new_context(**chosen)
        self._contexts.append(context)
        context.set_default_timeout(SECONDS * 1000)
        page = context.new_page()
        own = (f"http://127.0.0.1:{self._port}/", "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(own) else self.wrong.append(r.url))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", self._listen)
        page.goto(own[0])
        page.wait_for_selector("#generate-go:not([disabled])")
        if tab != "Generate":
            page.get_by_role("tab", name=tab).click()
        return page

    def _listen(self, message: "sync_api.ConsoleMessage") -> None:
        if message.type == "error":
            self.wrong.append(f"{message.text} {message.location}")

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def open_page(browser: "sync_api.Browser", port: int) -> Iterator[Visitors]:
    """Opens the page; in the end nothing may have left for another host, and no script failed."""
    visitors = Visitors(browser, port)
    yield visitors
    visitors.close()
    assert not visitors.wrong


def _videos(page: "sync_api.Page", count: int, place: str = "#generate-out") -> None:
    """Wait for so many clips."""
    page.wait_for_function(f"document.querySelectorAll('{place} video').length == {count}")


def _ids(page: "sync_api.Page", place: str = "#generate-out") -> list[str]:
    text = page.locator(place).inner_html()
    return list(dict.fromkeys(re.findall(r"video_[0-9a-f]+", text)))


def _ways(page: "sync_api.Page", *wanted: str) -> None:
    """Choose numbers of steps."""
    for box in page.locator("#generate-ways input").all():
        box.set_checked(box.get_attribute("name") in wanted)


def _long(page: "sync_api.Page") -> None:
    """Ask for what takes long: the teacher, for many frames."""
    _ways(page, "teacher")
    page.get_by_role("button", name="More").first.click()
    page.get_by_label("Frames", exact=True).fill("65")


def _clip(port: int, **fields: object) -> str:
    """Make a clip by the API; its id."""
    client = Client(port, {})
    job = client(
        "POST", "/v1/videos", {"prompt": PROMPT, "num_inference_steps": 1, **fields}
    ).json()
    while (job := client("GET", f"/v1/videos/{job['id']}").json())["status"] != "completed":
        assert job["status"] in ("queued", "in_progress")
        time.sleep(0.1)
    return job["id"]


def _frames(port: int, name: str) -> np.ndarray:
    """The frames of a clip as the model made them, `(t h w 3)`."""
    archive = Client(port, {})("GET", f"/v1/videos/{name}/content?variant=frames").body
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        pictures = [Image.open(io.BytesIO(file.read(n))).convert("RGB") for n in file.namelist()]
    size = pictures[0].width // 64
    return np.stack([np.asarray(picture)[::size, ::size] for picture in pictures])


def _shoot(page: "sync_api.Page", name: str, **options: object) -> None:
    """Make a picture for the documents, if asked to."""
    if os.environ.get("VIDCM_SCREENSHOTS"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(4000)  # until the controls of the videos are gone
        picture = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
        picture.quantize(96).save(PICTURES / f"{name}.png", optimize=True)


def test_a_typed_prompt_becomes_clips_that_move(open_page, port):
    page = open_page()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 2000 * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1)
    page.get_by_label("Prompt", exact=True).fill("an orc with a wooden banjo slashes right")
    page.click("#generate-go")
    _videos(page, 3)
    for video in page.locator("#generate-out video").all():
        first, until = video.screenshot(), time.monotonic() + 20
        while video.screenshot() == first:
            assert time.monotonic() < until
    text = page.locator("#generate-out").inner_text()
    for said in (
        "1 step",
        "2 steps",
        "4 steps",
        "understood as: a",
        "banjo",
        "seed 0",
        "denoise 0.",
    ):
        assert said in text
    client = Client(port, {})
    links = page.eval_on_selector_all(
        "#generate-out a", "all => all.map(a => a.getAttribute('href'))"
    )
    kinds = [client("GET", link).headers["content-type"] for link in links]
    assert kinds == ["video/mp4", "image/gif", "image/png", "application/zip"] * 3


def test_an_example_brings_its_prompt_and_seed(open_page):
    page = open_page()
    page.get_by_label("Keep it").first.uncheck()
    page.locator("#examples").get_by_text("a man in golden armor").click()
    page.wait_for_selector("[aria-label='Seed']:not([disabled])")
    page.wait_for_function("document.querySelector('.seed input').value == '5'")
    prompt = page.get_by_label("Prompt", exact=True).input_value()
    assert prompt == "a man in golden armor walks down on a green background"
    page.click("#generate-go")
    _videos(page, 3)
    text = page.locator("#generate-out").inner_text()
    assert text.count("seed 5 ·") == 3 and text.count("understood as: a") == 3
    _shoot(page, "generate")


def test_the_seed_is_kept_or_drawn(open_page):
    page = open_page()
    _ways(page, "1")
    seed = page.get_by_label("Seed", exact=True)
    page.get_by_role("button", name="Dice").first.click()
    page.wait_for_function("document.querySelector('.seed input').value != '0'")
    drawn = seed.input_value()
    page.click("#generate-go")
    page.wait_for_selector(f"#generate-out >> text=seed {drawn} ·")
    page.get_by_label("Keep it").first.uncheck()
    page.click("#generate-go:not([disabled])")
    page.wait_for_selector(f"#generate-out :not(:text('seed {drawn} ·')):text('seed ')")
    assert seed.input_value() != drawn
    page.get_by_label("Keep it").first.check()


def test_prompts_take_over_and_settings_are_remarked_on(open_page):
    page = open_page()
    _ways(page, "1")
    page.get_by_role("button", name="More").first.click()
    page.get_by_label("Frames", exact=True).fill("17")
    page.get_by_label("Guidance").first.fill("9")
    page.get_by_role("button", name="Prompts along the clip").click()
    page.get_by_label("From frame").first.fill("9")
    page.click("#generate-go")
    page.wait_for_selector("#generate-out .problem >> text=give both its frame and its text")
    page.get_by_label("Prompt 2").fill("an orc casts a spell on a blue background")
    page.click("#generate-go:not([disabled])")
    _videos(page, 1)
    text = page.locator("#generate-out").inner_text()
    assert "trained with guidance 1 to 5, not 9" in text and "17 frames" in text
    assert page.locator(".timeline span").all_inner_texts()[1].startswith("9 an orc casts")


def test_a_job_is_cancelled(open_page):
    page = open_page()
    _long(page)
    page.click("#generate-go")
    page.click("#generate-stop:not([disabled])")
    page.wait_for_selector("#generate-out >> text=cancelled")
    page.wait_for_selector("#generate-go:not([disabled])")
    _videos(page, 0)


def test_a_page_that_is_loaded_again_goes_on(open_page):
    page = open_page()
    _long(page)
    page.click("#generate-go")
    page.wait_for_selector("#generate-out progress")
    page.reload()
    page.wait_for_selector("#generate-out progress")
    # What the page that is gone was still waiting for.
    left = [line for line in open_page.wrong if re.search("abort|errored out", line)]
    assert sorted(left) == sorted(open_page.wrong)
    open_page.wrong.clear()
    page.click("#generate-stop:not([disabled])")
    page.wait_for_selector("#generate-out >> text=cancelled")
    _videos(page, 0)


def test_two_users_have_their_own_clips_at_once(open_page):
    pages = [open_page(), open_page()]
    for page, seed in zip(pages, ("11", "22"), strict=True):
        _ways(page, "1", "2")
        page.get_by_label("Seed", exact=True).fill(seed)
    for page in pages:
        page.click("#generate-go")
    for page, seed in zip(pages, ("11", "22"), strict=True):
        _videos(page, 2)
        assert page.locator("#generate-out").inner_text().count(f"seed {seed} ·") == 2
    assert not set(_ids(pages[0])) & set(_ids(pages[1]))


def _drag(page: "sync_api.Page", *places: tuple[float, float]) -> None:
    """Draw on the canvas, in shares of its sides."""
    canvas = page.locator("#mask canvas")
    canvas.scroll_into_view_if_needed()
    area = canvas.bounding_box()
    points = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def _edit(page: "sync_api.Page", source: str) -> None:
    """Choose a clip to edit."""
    page.locator("#edit-source input").click()
    page.get_by_role("option", name=source).first.click()
    page.wait_for_selector("#edit-before video")


def test_a_drawn_mask_is_filled_and_all_else_stays(open_page, port):
    name = _clip(port, seed=100)
    page = open_page("Edit")
    _edit(page, "seed 100:")
    _drag(page, (0.3, 0.2), (0.5, 0.3), (0.6, 0.2))
    page.locator("#edit-prompt textarea").fill("an orc with blue hair slashes to the right")
    page.locator("#edit-steps").get_by_text("1", exact=True).click()
    page.click("#edit-go")
    _videos(page, 1, "#edit-out")
    (made,) = _ids(page, "#edit-out")
    changed = (_frames(port, name) != _frames(port, made)).any((0, 3))
    ys, xs = np.nonzero(changed)
    assert 60 < changed.sum() < 1200
    assert 8 <= xs.min() and xs.max() < 50 and 4 <= ys.min() and ys.max() < 32
    _shoot(page, "edit", clip={"x": 0, "y": 0, "width": 1200, "height": 1180}, full_page=True)


def test_a_drawn_box_is_a_text_and_may_hold_for_a_time(open_page, port):
    name = _clip(port, seed=101)
    page = open_page("Edit")
    _edit(page, "seed 101:")
    page.locator("#mask").get_by_text("Box", exact=True).click()
    _drag(page, (0.26, 0.26), (0.49, 0.74))
    text = page.locator("#mask-text textarea, #mask-text input")
    page.wait_for_function("document.querySelector('#mask-text :is(textarea, input)').value != ''")
    assert text.input_value() == "16,16,16,32"
    page.get_by_label("Box from second").fill("0.5")
    page.get_by_label("to second", exact=True).fill("0.75")
    page.locator("#edit-steps").get_by_text("1", exact=True).click()
    page.click("#edit-go")
    _videos(page, 1, "#edit-out")
    (made,) = _ids(page, "#edit-out")
    changed = (_frames(port, name) != _frames(port, made)).any(3)
    assert changed[4:6, 16:48, 16:32].any((1, 2)).all()
    assert not changed[:4].any() and not changed[7:].any()
    assert not changed[:, :, :16].any() and not changed[:, :, 32:].any()


def test_files_are_shown_and_edited_and_bad_ones_are_one_line(open_page, tmp_path):
    page = open_page("Edit")
    upload = page.locator("#edit-files input[type=file]")
    upload.set_input_files({"name": "clip.mp4", "mimeType": "video/mp4", "buffer": b"nothing" * 9})
    page.wait_for_selector("#edit-before .problem")
    line = page.locator("#edit-before .problem").inner_text()
    assert line.startswith("the file: ") and "\n" not in line and "/" not in line
    page.locator("#mask-text textarea, #mask-text input").fill("1,1,8,8")
    page.click("#edit-go")
    page.wait_for_selector("#edit-out .problem")
    assert "\n" not in page.locator("#edit-out .problem").inner_text()

    moving = np.zeros((9, 48, 64, 3), np.uint8)
    moving[:, 10:30] = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20
    write_clip(moving, tmp_path / "clip.webm", fps=8)
    page.locator("#edit-files").get_by_label("Clear").click()
    upload.set_input_files(tmp_path / "clip.webm")
    page.wait_for_selector("#edit-before video[src^='data:video/mp4']")
    picture = io.BytesIO(encode_png(moving[3]))
    page.locator("#edit-files").get_by_label("Clear").click()
    files = [
        {"name": f"{i}.png", "mimeType": "image/png", "buffer": picture.getvalue()} for i in (1, 2)
    ]
    upload.set_input_files(files)
    page.wait_for_function("document.querySelectorAll('#edit-before img').length == 2")


def test_the_options_of_a_task_come_with_it(open_page):
    page = open_page("Edit")
    assert page.locator("#mask canvas").is_visible()
    page.locator("#edit-task input").click()
    page.get_by_role("option", name="variation").click()
    page.keyboard.press("Escape")
    page.get_by_label("How much to change").wait_for()
    page.locator("#edit-task").get_by_title("Remove").first.click()
    page.locator("#mask canvas").wait_for(state="hidden")


def test_two_checkpoints_are_compared(open_page):
    page = open_page("Compare")
    page.get_by_label("Prompts, one a line").fill(f"{PROMPT}\nan orc walks left")
    page.get_by_label("Seeds").fill("3")
    page.locator("#compare-steps").get_by_text("1", exact=True).click()
    page.click("#compare-go")
    _videos(page, 4, "#compare-out")
    heads = page.locator("#compare-out figcaption").all_inner_texts()
    assert heads[0] == "lpc-64" and heads[1] != heads[0] and heads[2:] == heads[:2]
    titles = page.locator("#compare-out h3").all_inner_texts()
    assert titles == [f"{PROMPT}, seed 3", "an orc walks left, seed 3"]


def test_a_run_is_looked_into_while_it_grows(open_page, runs):
    page = open_page("Runs")
    page.wait_for_selector("#runs-plot canvas, #runs-plot svg")
    sheet = encode_png(np.full((32, 64, 3), 200, np.uint8))
    (runs / "teacher" / "samples" / "step-00001000.png").write_bytes(sheet)
    page.wait_for_selector("#runs-sheet img")
    assert "step 1000" in page.locator("#runs-sheet").inner_text()
    assert page.locator("#runs-run input").input_value() == "runs/teacher"


@contextmanager
def _shades(page: "sync_api.Page") -> Iterator[Callable[[str, str], float]]:
    """Brightness, 0 to 255, of a colour of an element's style."""
    code = "(e, name) => getComputedStyle(e)[name].match(/[0-9.]+/g).slice(0, 3).map(Number)"
    yield lambda place, name: float(
        np.mean(page.locator(place).first.evaluate(f"e => ({code})(e, '{name}')"))
    )


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_follows_the_scheme_of_the_system(open_page, scheme):
    page = open_page(color_scheme=scheme)
    _ways(page, "1")
    page.click("#generate-go")
    _videos(page, 1)
    with _shades(page) as shade:
        back = shade("body", "backgroundColor")
        text = shade("#generate-out .facts p", "color")
        card = shade("#generate-out figure", "backgroundColor")
    assert back < 60 < 150 < text and card < 90 if scheme == "dark" else text < 100 < 220 < back


def test_a_phone_shows_all_of_it_and_takes_fingers(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    _ways(page, "1", "2")
    page.locator("#generate-go").tap()
    _videos(page, 2)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(wide)
    page.locator("#generate-go").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#generate-go').scrollIntoView()")
    _shoot(page, "phone")
    for tab in ("Edit", "Compare", "Runs"):
        chosen = page.get_by_role("tab", name=tab)
        if not chosen.is_visible():
            page.locator(".overflow-menu button").first.tap()
        chosen.or_(page.locator(".overflow-dropdown").get_by_text(tab)).first.tap()
        page.wait_for_timeout(300)
        assert page.evaluate(wide), tab


def test_a_keyboard_is_enough(open_page):
    page = open_page()
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate-go":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Enter")
    _videos(page, 3)
    places = []
    for _ in range(16):
        page.keyboard.press("Tab")
        places.append(page.evaluate("document.activeElement.tagName"))
        if places[-1] == "VIDEO":
            page.keyboard.press("Enter")
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")
    assert places.count("A") >= 4 and "VIDEO" in places
