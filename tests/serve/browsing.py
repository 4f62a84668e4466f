"""The page in a real browser: Debian's Chromium, driven by Playwright, with no way to other hosts.

`VIDCM_SCREENSHOTS=1 pytest -n 0 tests/serve/test_browser.py` makes the pictures of the documents.
"""

import io
import os
import re
import shutil
import time
import zipfile

import numpy as np
import pytest
from PIL import Image
from serve.serving import Client
from serve.test_command import REPO

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e '.[test]'"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium, as of Debian: apt-get install chromium"
)
PICTURES = REPO / "docs/images/serve"
PROMPT = "an orc with a red mohawk slashes to the right on a gray background"
SECONDS = 60  # for what a busy machine does; an idle one needs a few


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


def wait_for_videos(page: "sync_api.Page", count: int, place: str = "#generate-out") -> None:
    """Wait for so many clips."""
    page.wait_for_function(f"document.querySelectorAll('{place} video').length == {count}")


def ids_of(page: "sync_api.Page", place: str = "#generate-out") -> list[str]:
    text = page.locator(place).inner_html()
    return list(dict.fromkeys(re.findall(r"video_[0-9a-f]+", text)))


def choose_ways(page: "sync_api.Page", *wanted: str) -> None:
    """Choose numbers of steps."""
    for box in page.locator("#generate-ways input").all():
        box.set_checked(box.get_attribute("name") in wanted)


def ask_for_long(page: "sync_api.Page") -> None:
    """Ask for what takes long: the teacher, for many frames."""
    choose_ways(page, "teacher")
    page.get_by_role("button", name="More").first.click()
    page.get_by_label("Frames", exact=True).fill("65")


def make_clip(port: int, **fields: object) -> str:
    """Make a clip by the API; its id."""
    client = Client(port, {})
    job = client(
        "POST", "/v1/videos", {"prompt": PROMPT, "num_inference_steps": 1, **fields}
    ).json()
    while (job := client("GET", f"/v1/videos/{job['id']}").json())["status"] != "completed":
        assert job["status"] in ("queued", "in_progress")
        time.sleep(0.1)
    return job["id"]


def frames_of(port: int, name: str) -> np.ndarray:
    """The frames of a clip as the model made them, `(t h w 3)`."""
    archive = Client(port, {})("GET", f"/v1/videos/{name}/content?variant=frames").body
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        pictures = [Image.open(io.BytesIO(file.read(n))).convert("RGB") for n in file.namelist()]
    size = pictures[0].width // 64
    return np.stack([np.asarray(picture)[::size, ::size] for picture in pictures])


def shoot(page: "sync_api.Page", name: str, **options: object) -> None:
    """Make a picture for the documents, if asked to."""
    if os.environ.get("VIDCM_SCREENSHOTS"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(4000)  # until the controls of the videos are gone
        picture = Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB")
        picture.quantize(96).save(PICTURES / f"{name}.png", optimize=True)


def drag(page: "sync_api.Page", *places: tuple[float, float]) -> None:
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


def choose_source(page: "sync_api.Page", source: str) -> None:
    """Choose a clip to edit."""
    page.locator("#edit-source input").click()
    page.get_by_role("option", name=source).first.click()
    page.wait_for_selector("#edit-before video")


# Texts that are shown and too faint: "contrast text", by the formula of WCAG 2.2 (1.4.3).
FAINT = """least => {
  const rgba = text => {
    const found = text.match(/[0-9.]+/g).map(Number);
    return found.length < 4 ? [...found, 1] : found;
  };
  const over = (top, below) => top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
  const behind = element => {
    if (!element) return [255, 255, 255];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(element.parentElement));
  };
  const light = colour => colour
    .map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  const judge = (element, style, text) => {
    const back = behind(element), front = over(rgba(style.color), back);
    const [dark, bright] = [light(front), light(back)].sort((a, b) => a - b);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < least) faint.push(`${contrast.toFixed(2)} ${text.trim().slice(0, 40)}`);
  };
  for (const element of document.querySelectorAll("body *")) {
    const shown = element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    if (!shown || element.closest(":disabled, svg, [aria-hidden=true]")) continue;
    if (element.getBoundingClientRect().height < 2) continue;
    const own = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim());
    if (own.length) judge(element, getComputedStyle(element), own[0].data);
    if (element.placeholder && !element.value)
      judge(element, getComputedStyle(element, "::placeholder"), element.placeholder);
  }
  return faint;
}"""
# What is pressed and smaller than so many pixels, without what stands in a label or a larger field.
SMALL = """least => [...document.querySelectorAll("button, a, label, [role=tab], [role=listbox]")]
  .filter(e => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
  .filter(e => !e.closest("[aria-hidden=true], .visually-hidden"))
  .filter(e => e.tagName !== "LABEL" || e.querySelector("[type=checkbox], [type=radio]"))
  .map(e => [e, e.getBoundingClientRect()])
  .filter(([e, area]) => area.width > 1 && Math.min(area.width, area.height) < least)
  .map(([e, area]) => `${e.getAttribute("aria-label") || e.textContent.trim()} ` +
    `${Math.round(area.width)}x${Math.round(area.height)}`)"""
