"""Every control of every tab is used in a browser, and makes what the same request to the API makes.

A control that comes to the page and is not used here is a failure.
"""

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import tiny
from PIL import Image
from serve.browsing import drag, make_clip, needs_chromium
from serve.panels import Panel, as_text, controls_of
from serve.serving import Client

from vidcm.media.png import encode_png
from vidcm.media.write import write_clip
from vidcm.registry import TABLE
from vidcm.serve.page.generate import EXAMPLES

pytestmark = needs_chromium

T, H, W = tiny.SIZE.values()
TINY = "pipeline"  # of the two checkpoints of the server
FILES = "A clip or picture; two for tasks between two"
MASK_FILE = "or a file, white where to fill"
MASK_TEXT = "or a box x,y,width,height, or a key colour #rrggbb"
PROMPT = "Prompt: what the result shows"
TEACHER = "The teacher, with its own steps"


def frames(port: int, name: str) -> np.ndarray:
    """All clips of a job, `(n t h w 3)`, once it is completed."""
    client, until = Client(port, {}), time.monotonic() + 60
    while (job := client("GET", f"/v1/videos/{name}").json())["status"] != "completed":
        assert job["status"] in ("queued", "in_progress"), job["error"]
        assert time.monotonic() < until
        time.sleep(0.05)
    clips = []
    for index in range(job["num_videos"]):
        path = f"/v1/videos/{name}/content?variant=frames&index={index}"
        with zipfile.ZipFile(io.BytesIO(client("GET", path).body)) as archive:
            clips.append([np.asarray(Image.open(archive.open(n))) for n in archive.namelist()])
    return np.array(clips)


def same(port: int, name: str, answer) -> None:
    """A clip of the page is that of a request to the API."""
    assert answer.status == 200, answer.body
    mine, other = frames(port, name), frames(port, answer.json()["id"])
    assert mine.shape == other.shape
    assert np.abs(mine.astype(int) - other).max() <= 1  # made in one forward with others, or not


def film(folder: Path, count: int = T) -> bytes:
    """A clip of noise in the size of the tiny model."""
    pixels = np.random.default_rng(1).integers(0, 256, (count, H, W, 3), np.uint8)
    return write_clip(pixels, folder / f"{count}.mp4", fps=8, overwrite=True).read_bytes()


def picture(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8))


# Files, options of the request, and the fields of the page that they stand in. Tasks with the same
# files follow each other.
STRENGTH, FACTOR = "How much to change, 0 to 1", "Times as large, or as many frames"
GIVEN = "Frames of the input that the model sees"
PLACE = "Place of the input in the result: x,y,width,height"
TASKS = {
    "inpaint": ("film", {"mask": "2,2,8,6,0.125,0.375"}, {MASK_TEXT: "2,2,8,6"}),
    "outpaint": ("film", {"place": "0,0,16,8"}, {PLACE: "0,0,16,8"}),
    "colorize": ("film", {}, {}),
    "upscale": ("film", {"factor": 2}, {FACTOR: 2}),
    "extend": ("film", {"given": 1}, {GIVEN: 1}),
    "extend_backward": ("film", {"given": 1}, {GIVEN: 1}),
    "variation": ("film", {"strength": 0.5}, {STRENGTH: 0.5}),
    "denoise": ("film", {"noise": 20.0}, {"Noise of the input, in grey levels": 20}),
    "interpolate_frames": ("short", {"factor": 2}, {FACTOR: 2}),
    "animate": ("picture", {"at": "last"}, {}),
    "inbetween": ("two", {"given": 1}, {GIVEN: 1}),
    "loop": ("none", {}, {}),
    "image": ("none", {}, {}),
    "interpolate": (
        "none",
        {"count": 2, "prompt": ["a man walks", "a dog runs"]},
        {"Clips from end to end": 2, "Prompt of the other end": "a dog runs"},
    ),
}


def test_every_control_of_generate(open_page, port):
    page, client = open_page(), Client(port, {})
    tab = Panel(page, "generate")
    for prompt, seed in EXAMPLES["lpc"]:
        tab.press(prompt)
        page.wait_for_function(f"document.querySelector('.seed input').value == '{seed}'")
        assert tab.field("Prompt").input_value() == prompt
    before = tab.field("Seed").input_value()
    tab.press("Dice")
    page.wait_for_function(f"document.querySelector('.seed input').value != '{before}'")
    ways = "Side by side, from the same seed"
    tab.used.add(ways)
    for way, on in (("1 step", False), ("2 steps", True), ("4 steps", False), ("teacher", False)):
        page.locator("#generate-ways").get_by_label(way, exact=True).set_checked(on)
    tab.press("More")
    tab.press("Prompts along the clip")
    for _ in range(3):  # one at once after the other: none is lost
        tab.press("Another prompt")
    tab.field("Prompt 5").wait_for()
    later = ["a dog runs", "a man falls", "a woman walks", "an orc slashes"]
    for number, text in enumerate(later, 1):
        tab.write("From frame" if number == 1 else f"From frame, {number}", 4 * number + 1)
        tab.write(f"Prompt {number + 1}", text)
    tab.fill(Prompt="a man walks", Seed=7, Guidance=2.5, Frames=21, Width=W, Height=H + 16)
    tab.write("Negative prompt", "a dog")
    tab.choose("Checkpoint", TINY)
    tab.slide("Enlarge the pixels of the files", 2)
    tab.tick("Draw from the seed what the prompt leaves open", False)
    tab.tick("Keep it")
    wanted = {
        "model": TINY,
        "prompt": "a man walks",
        "prompt_schedule": [[4 * n + 1, text] for n, text in enumerate(later, 1)],
        "negative_prompt": "a dog",
        "seed": 7,
        "guidance_scale": 2.5,
        "num_frames": 21,
        "size": f"{W}x{H + 16}",
        "scale": 2,
        "complete_prompt": False,
    }
    (made,) = tab.results(1)
    same(port, made, client("POST", "/v1/videos", {**wanted, "num_inference_steps": 2}))
    for way, on in (("2 steps", False), ("teacher", True)):
        page.locator("#generate-ways").get_by_label(way, exact=True).set_checked(on)
    tab.write("Negative prompt", "a cat")
    (made,) = tab.results(1)
    teacher = {**wanted, "negative_prompt": "a cat", "use_teacher": True}
    same(port, made, client("POST", "/v1/videos", teacher))
    tab.tick("Keep it", False)
    tab.choose("Checkpoint", "lpc-64")
    for number in range(1, len(later) + 1):
        tab.write("From frame" if number == 1 else f"From frame, {number}", "")
        tab.write(f"Prompt {number + 1}", "")
    tab.fill(Frames=65, Width="", Height="")
    tab.press("Generate")
    page.wait_for_selector("#generate-stop:not([disabled])")
    tab.press("Cancel")
    page.wait_for_selector("#generate-out >> text=cancelled")
    assert tab.field("Seed").input_value() != "7"  # drawn, since it was not kept
    assert tab.used == set(controls_of(port, "Generate"))


def edit_tab(page) -> Panel:
    """The tab Edit with the tiny model, one step and a prompt."""
    tab = Panel(page, "edit")
    tab.press("More")
    tab.choose("Checkpoint", TINY)
    tab.radio("Steps", "1")
    tab.write(PROMPT, "a man walks")
    tab.tick("Keep it")
    return tab


def test_every_task_of_edit_makes_the_clip_that_the_api_makes(open_page, port, tmp_path):
    assert TASKS.keys() == TABLE["task"].keys()
    sent = {
        "film": [("a.mp4", film(tmp_path))],
        "short": [("b.mp4", film(tmp_path, 3))],
        "picture": [("c.png", picture(2))],
        "two": [("c.png", picture(2)), ("d.png", picture(3))],
        "none": [],
    }
    page, client = open_page("Edit"), Client(port, {})
    tab = edit_tab(page)
    there = ""

    def task(name: str) -> None:
        chosen = page.locator("#edit-task").get_by_title("Remove")
        while chosen.count():
            chosen.first.click()
        tab.choose("Task", name)
        page.keyboard.press("Escape")

    for seed, (name, (files, options, fields)) in enumerate(TASKS.items()):
        task(name)
        if files == "none" and there != files:
            page.locator("#edit-files").get_by_label("Clear").click()
        elif files != there:
            tab.upload(FILES, *sent[files])
            page.wait_for_selector("#edit-before :is(img, video)")
        there = files
        for label, value in fields.items():
            tab.write(label, value)
        if name == "animate":
            tab.radio("The picture is the frame", "last")
        if name == "inpaint":
            tab.write("Box from second", 0.125)
            tab.write("to second", 0.375)
        tab.write("Seed", seed)
        (made,) = tab.results(options.get("count", 1))
        wanted = {"task": name, "model": TINY, "seed": seed, "num_inference_steps": 1, "scale": 4}
        wanted |= {"prompt": "a man walks", **options}
        texts = {key: as_text(value) for key, value in wanted.items() if key != "prompt"}
        parts = [("video", data) for _, data in sent[files]]
        if parts:
            answer = client.form("/v1/videos/edits", {**texts, "prompt": "a man walks"}, parts)
        else:
            answer = client("POST", "/v1/videos/edits", wanted)
        same(port, made, answer)

    # All that every task takes, and a clip of before.
    source = make_clip(port, model=TINY, seed=104, num_frames=9)
    page.get_by_role("tab", name="Runs").click()  # the list is made when the tab is chosen
    page.get_by_role("tab", name="Edit").click()
    task("variation")
    tab.field("What to edit").click()
    page.get_by_role("option", name="seed 104:").click()
    page.wait_for_selector("#edit-before video")
    tab.tick(TEACHER)
    tab.write("Seconds of the input to skip", 0.5)
    tab.fill(Guidance=2, Width=W, Height=H + 16)
    tab.write("Frames that the model generates", T)
    tab.slide("Enlarge the pixels of the files", 2)
    (made,) = tab.results(1)
    wanted = {"task": "variation", "model": TINY, "video": {"id": source}, "use_teacher": True}
    wanted |= {"start": 0.5, "guidance_scale": 2, "size": f"{W}x{H + 16}", "num_frames": T}
    wanted |= {"strength": 0.5, "seed": len(TASKS) - 1, "scale": 2, "prompt": "a man walks"}
    same(port, made, client("POST", "/v1/videos/edits", wanted))

    def clear() -> None:  # other fields have a button of that name too
        tab.used.add("Clear")
        page.locator("#mask [data-clear]").click()

    # The mask: tools that take it away again.
    task("inpaint")
    for name in (MASK_TEXT, "Box from second", "to second"):
        tab.write(name, "")
    tab.field("Brush width").fill("40")
    tab.press("Brush")
    tab.used.add("canvas")
    drag(page, (0.3, 0.3), (0.7, 0.7))
    tab.press("Eraser")
    drag(page, (0.2, 0.2), (0.8, 0.8), (0.2, 0.8), (0.8, 0.2))
    drag(page, (0.25, 0.25), (0.75, 0.75))
    assert tab.problem().startswith("there is no mask")
    clear()
    tab.press("Box")
    drag(page, (0.26, 0.26), (0.49, 0.74))
    page.wait_for_function("document.querySelector('#mask-text :is(textarea, input)').value != ''")
    clear()
    page.wait_for_function("document.querySelector('#mask-text :is(textarea, input)').value == ''")
    tab.press("Dice")
    task("loop")
    page.locator("#mask").wait_for(state="hidden")
    tab.field("What to edit").click()
    page.get_by_role("option", name="uploaded files").click()
    tab.choose("Checkpoint", "lpc-64")
    tab.fill(Width="", Height="")
    tab.write("Seconds of the input to skip", "")
    tab.write("Frames that the model generates", 65)
    tab.press("Edit")
    page.wait_for_selector("#edit-stop:not([disabled])")
    tab.press("Cancel")
    page.wait_for_selector("#edit-out >> text=cancelled")
    tab.used.add(MASK_FILE)  # the next test gives one
    assert tab.used == set(controls_of(port, "Edit"))


def test_a_mask_file_fills_what_it_says(open_page, port, tmp_path):
    page, client = open_page("Edit"), Client(port, {})
    tab = edit_tab(page)
    tab.write("Seed", 3)
    clip = film(tmp_path)
    tab.upload(FILES, ("a.mp4", clip))
    page.wait_for_selector("#edit-before video")
    mask = np.zeros((H, W), np.uint8)
    mask[2:8, 4:12] = 255
    filled = encode_png(mask[..., None].repeat(3, 2))
    tab.upload(MASK_FILE, ("mask.png", filled))
    (made,) = tab.results(1)
    texts = {"task": "inpaint", "model": TINY, "seed": "3", "num_inference_steps": "1"}
    texts |= {"scale": "4", "prompt": "a man walks"}
    parts = [("video", clip), ("mask", filled)]
    same(port, made, client.form("/v1/videos/edits", texts, parts))


def test_every_control_of_compare(open_page, port):
    page, client = open_page("Compare"), Client(port, {})
    tab = Panel(page, "compare")
    tab.choose("Left", f"{TINY}, teacher")
    tab.choose("Right", TINY)
    tab.write("Prompts, one a line", "a man walks\n\n a dog runs ")
    tab.write("Seeds, with commas between", "3, 5")
    tab.radio("Steps of students", "2")
    names = tab.results(8)
    place = 0
    for prompt in ("a man walks", "a dog runs"):
        for seed in (3, 5):
            for steps in ({"use_teacher": True}, {"num_inference_steps": 2}):
                wanted = {"prompt": prompt, "seed": seed, "model": TINY, "scale": 4, **steps}
                same(port, names[place], client("POST", "/v1/videos", wanted))
                place += 1
    tab.choose("Left", "lpc-64, teacher")
    tab.press("Compare")
    page.wait_for_selector("#compare-stop:not([disabled])")
    tab.press("Cancel")
    page.wait_for_selector("#compare-go:not([disabled])")
    assert "cancelled" in page.locator("#compare-out").inner_text()
    assert tab.used == set(controls_of(port, "Compare"))


def test_every_control_of_runs(open_page, port, runs):
    other = runs / "student"
    (other / "samples").mkdir(parents=True, exist_ok=True)
    (other / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "rate": 3.0}\n' * 2)
    for step, grey in ((1, 50), (2, 150)):
        sheet = encode_png(np.full((32, 64, 3), grey, np.uint8))
        (other / "samples" / f"step-{step:08d}.png").write_bytes(sheet)
    page = open_page("Runs")
    tab = Panel(page, "runs")
    page.wait_for_selector("#runs-plot canvas, #runs-plot svg")
    tab.choose("Run", "runs/student")
    page.wait_for_selector("#runs-sheet >> text=step 2")
    newest = page.locator("#runs-sheet img").get_attribute("src")
    tab.choose("Sample sheet", "step 1")
    page.wait_for_selector("#runs-sheet >> text=step 1")
    assert page.locator("#runs-sheet img").get_attribute("src") != newest
    tab.choose("Curve", "rate")
    page.wait_for_selector("#runs-plot >> text=rate")
    assert tab.used == set(controls_of(port, "Runs"))


def test_no_other_tab_is_there(port):
    config = Client(port, {})("GET", "/page/config").json()
    tabs = {c["props"]["label"] for c in config["components"] if c["type"] == "tabitem"}
    assert tabs == {"Generate", "Edit", "Compare", "Runs"}
