"""What a user does with the page in a browser (`browsing.py`)."""

import io
import os
import re
import time

import numpy as np
import pytest
from serve.browsing import (
    FAINT,
    PROMPT,
    SMALL,
    ask_for_long,
    choose_source,
    choose_ways,
    drag,
    frames_of,
    ids_of,
    make_clip,
    needs_chromium,
    shoot,
    wait_for_videos,
)
from serve.serving import Client

from vidcm.media.png import encode_png
from vidcm.media.write import write_clip

pytestmark = needs_chromium


def test_a_typed_prompt_becomes_clips_that_move(open_page, port):
    page = open_page()
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 2000 * max(os.getloadavg()[0] / (os.cpu_count() or 1), 1)
    page.get_by_label("Prompt", exact=True).fill("an orc with a wooden banjo slashes right")
    page.click("#generate-go")
    wait_for_videos(page, 3)
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
    wait_for_videos(page, 3)
    text = page.locator("#generate-out").inner_text()
    assert text.count("seed 5 ·") == 3 and text.count("understood as: a") == 3
    shoot(page, "generate")


def test_the_seed_is_kept_or_drawn(open_page):
    page = open_page()
    choose_ways(page, "1")
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
    choose_ways(page, "1")
    page.get_by_role("button", name="More").first.click()
    page.get_by_label("Frames", exact=True).fill("17")
    page.get_by_label("Guidance").first.fill("9")
    page.get_by_role("button", name="Prompts along the clip").click()
    page.get_by_label("From frame").first.fill("9")
    page.click("#generate-go")
    page.wait_for_selector("#generate-out .problem >> text=give both its frame and its text")
    page.get_by_label("Prompt 2").fill("an orc casts a spell on a blue background")
    page.click("#generate-go:not([disabled])")
    wait_for_videos(page, 1)
    text = page.locator("#generate-out").inner_text()
    assert "trained with guidance 1 to 5, not 9" in text and "17 frames" in text
    assert page.locator(".timeline span").all_inner_texts()[1].startswith("9 an orc casts")


def test_a_job_is_cancelled(open_page):
    page = open_page()
    ask_for_long(page)
    page.click("#generate-go")
    page.click("#generate-stop:not([disabled])")
    page.wait_for_selector("#generate-out >> text=cancelled")
    page.wait_for_selector("#generate-go:not([disabled])")
    wait_for_videos(page, 0)


def test_a_page_that_is_loaded_again_goes_on(open_page):
    page = open_page()
    ask_for_long(page)
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
    wait_for_videos(page, 0)


def test_two_users_have_their_own_clips_at_once(open_page):
    pages = [open_page(), open_page()]
    for page, seed in zip(pages, ("11", "22"), strict=True):
        choose_ways(page, "1", "2")
        page.get_by_label("Seed", exact=True).fill(seed)
    for page in pages:
        page.click("#generate-go")
    for page, seed in zip(pages, ("11", "22"), strict=True):
        wait_for_videos(page, 2)
        assert page.locator("#generate-out").inner_text().count(f"seed {seed} ·") == 2
    assert not set(ids_of(pages[0])) & set(ids_of(pages[1]))


def test_a_drawn_mask_is_filled_and_all_else_stays(open_page, port):
    name = make_clip(port, seed=100)
    page = open_page("Edit")
    choose_source(page, "seed 100:")
    drag(page, (0.3, 0.2), (0.5, 0.3), (0.6, 0.2))
    page.locator("#edit-prompt textarea").fill("an orc with blue hair slashes to the right")
    page.locator("#edit-steps").get_by_text("1", exact=True).click()
    page.click("#edit-go")
    wait_for_videos(page, 1, "#edit-out")
    (made,) = ids_of(page, "#edit-out")
    changed = (frames_of(port, name) != frames_of(port, made)).any((0, 3))
    ys, xs = np.nonzero(changed)
    assert 60 < changed.sum() < 1200
    assert 8 <= xs.min() and xs.max() < 50 and 4 <= ys.min() and ys.max() < 32
    shoot(page, "edit", clip={"x": 0, "y": 0, "width": 1200, "height": 1180}, full_page=True)


def test_a_drawn_box_is_a_text_and_may_hold_for_a_time(open_page, port):
    name = make_clip(port, seed=101)
    page = open_page("Edit")
    choose_source(page, "seed 101:")
    page.locator("#mask").get_by_text("Box", exact=True).click()
    drag(page, (0.26, 0.26), (0.49, 0.74))
    text = page.locator("#mask-text textarea, #mask-text input")
    page.wait_for_function("document.querySelector('#mask-text :is(textarea, input)').value != ''")
    assert text.input_value() == "16,16,16,32"
    page.get_by_label("Box from second").fill("0.5")
    page.get_by_label("to second", exact=True).fill("0.75")
    page.locator("#edit-steps").get_by_text("1", exact=True).click()
    page.click("#edit-go")
    wait_for_videos(page, 1, "#edit-out")
    (made,) = ids_of(page, "#edit-out")
    changed = (frames_of(port, name) != frames_of(port, made)).any(3)
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
    wait_for_videos(page, 4, "#compare-out")
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


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_follows_the_scheme_of_the_system_and_can_be_read(open_page, port, scheme):
    make_clip(port, seed=102)
    page = open_page(color_scheme=scheme)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g)")
    bright = np.mean([float(value) for value in back[:3]])
    assert bright < 60 if scheme == "dark" else bright > 220
    choose_ways(page, "1")
    for fold in ("More", "Prompts along the clip"):
        page.get_by_role("button", name=fold).first.click()
    page.get_by_label("Guidance").first.fill("9")
    page.click("#generate-go")
    wait_for_videos(page, 1)
    page.locator("#generate-out .warning").first.wait_for()
    page.get_by_label("From frame").first.fill("3")
    page.click("#generate-go:not([disabled])")
    page.locator("#generate-out .problem").wait_for()
    assert not page.evaluate(FAINT, 4.5)
    for tab in ("Edit", "Compare", "Runs"):
        page.get_by_role("tab", name=tab).click()
        if tab == "Edit":
            choose_source(page, "seed 102:")
        page.wait_for_timeout(300)
        assert not page.evaluate(FAINT, 4.5), tab


def test_a_phone_shows_all_of_it_and_takes_fingers(open_page, port):
    make_clip(port, seed=103)
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    choose_ways(page, "1", "2")
    page.locator("#generate-go").tap()
    wait_for_videos(page, 2)
    page.evaluate("document.querySelector('#generate-go').scrollIntoView()")
    shoot(page, "phone")
    for fold in ("More", "Prompts along the clip"):
        page.get_by_role("button", name=fold).first.tap()
    for tab in ("Generate", "Edit", "Compare", "Runs"):
        page.get_by_role("tab", name=tab).tap()
        if tab == "Edit":
            choose_source(page, "seed 103:")
            page.locator("button:visible", has_text="More").tap()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        assert not page.evaluate(SMALL, 24), tab  # WCAG 2.2, 2.5.8


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
    wait_for_videos(page, 3)
    places = []
    for _ in range(16):
        page.keyboard.press("Tab")
        places.append(page.evaluate("document.activeElement.tagName"))
        if places[-1] == "VIDEO":
            page.keyboard.press("Enter")
    assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.paused)")
    assert places.count("A") >= 4 and "VIDEO" in places
