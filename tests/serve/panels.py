"""A tab of the page as a user has it before him, with a list of the controls that he used."""

import json
import re
from collections.abc import Iterator
from typing import Any

from serve.browsing import sync_api, wait_for_videos
from serve.serving import Client

from vidcm.serve.page.mount import PATH

FIELDS = ("textbox", "number", "checkbox", "checkboxgroup", "radio", "dropdown", "slider", "file")


def controls_of(port: int, tab: str) -> list[str]:
    """The controls of a tab by the page's own list of its components, folds and buttons among them.

    Several of one name are counted: `From frame`, `From frame, 2`.
    """
    config = Client(port, {})("GET", f"{PATH}/config").json()
    components = {one["id"]: one for one in config["components"]}
    names: list[str] = []

    def walk(node: dict[str, Any], inside: bool) -> None:
        one = components.get(node["id"], {"type": "", "props": {}})
        kind, props = one["type"], one["props"]
        inside = inside or (kind == "tabitem" and props["label"] == tab)
        if inside and kind in (*FIELDS, "accordion"):
            names.append(props["label"])
        elif inside and kind == "button":
            names.append(props["value"])
        elif inside and kind == "html":
            # Of our own HTML, what is there from the start: the mask's tools.
            text = props.get("html_template") or ""
            names.extend(re.findall(r"<button[^>]*>([^<]+)", text))
            names.extend(re.findall(r"<label>([^<]+?) ?<input", text))
            names.extend("canvas" for _ in re.findall(r"<canvas", text))
        for child in node.get("children", []):
            walk(child, inside)

    walk(config["layout"], False)
    assert names
    return list(_numbered(names))


def _numbered(names: list[str]) -> Iterator[str]:
    for place, name in enumerate(names):
        count = names[:place].count(name) + 1
        yield name if count == 1 else f"{name}, {count}"


class Panel:
    """The chosen tab.

    Args:
        page: That shows it.
        name: Its name in the ids of its buttons.

    Attributes:
        used: Names of the controls that were used.
    """

    def __init__(self, page: "sync_api.Page", name: str):
        self.page, self.name = page, name
        self.used: set[str] = set()
        self._all = page.locator("[role=tabpanel]:visible")

    def field(self, name: str) -> "sync_api.Locator":
        """A control, which counts as used; `From frame, 2` is the second of that name."""
        self.used.add(name)
        found = re.fullmatch(r"(.*), (\d+)", name)
        label, number = found.groups() if found else (name, "1")
        return self._all.get_by_label(label, exact=True).nth(int(number) - 1)

    def fill(self, **values: object) -> None:
        """Write into text fields, by name with _ for spaces."""
        for name, value in values.items():
            self.write(name.replace("_", " "), value)

    def write(self, name: str, value: object) -> None:
        """Write into a text field."""
        self.field(name).fill(str(value))

    def press(self, name: str) -> None:
        """Press a button or a fold."""
        self.used.add(name)
        pattern = re.compile(rf"^{re.escape(name)}\W*$")
        self._all.get_by_role("button", name=pattern).first.click()

    def tick(self, name: str, on: bool = True) -> None:
        """Set a checkbox."""
        self.field(name).set_checked(on)

    def choose(self, name: str, option: str) -> None:
        """Choose from a list that opens."""
        self.field(name).click()
        self.page.get_by_role("option", name=option, exact=True).last.click()  # one may still close

    def radio(self, name: str, option: str) -> None:
        """Choose one of several that are in sight."""
        self.used.add(name)
        group = self._all.locator("fieldset", has_text=name)
        group.get_by_label(option, exact=True).check()

    def slide(self, name: str, value: int) -> None:
        """Move a slider to a value, by the arrow keys."""
        self.used.add(name)
        slider = self._all.get_by_label(f"range slider for {name}")
        slider.focus()
        for _ in range(20):
            there = int(slider.input_value())
            if there == value:
                return
            slider.press("ArrowRight" if there < value else "ArrowLeft")
        raise AssertionError(f"{name} is {slider.input_value()}")

    def upload(self, name: str, *files: tuple[str, bytes]) -> None:
        """Give files to a field, in place of those that are there."""
        self.used.add(name)
        block = self._all.locator(".block", has_text=name).last
        if (clear := block.get_by_label("Clear")).is_visible():
            clear.click()
        kinds = {"png": "image/png", "mp4": "video/mp4"}
        block.locator("input[type=file]").set_input_files(
            [{"name": n, "mimeType": kinds[n[-3:]], "buffer": data} for n, data in files]
        )
        block.locator(".file-preview").wait_for()

    def results(self, count: int) -> list[str]:
        """Press the first button; the ids of the jobs whose clips come."""
        out = f"#{self.name}-out"
        before, shown = self._ids(out), self.page.locator(out).inner_html()
        self.press(self.name.title())
        self.page.wait_for_selector(f"#{self.name}-go:not([disabled])")
        self.page.wait_for_function(
            f"""([before, shown]) => {{
              const html = document.querySelector("{out}").innerHTML;
              const found = (html.match(/videos\\/video_[0-9a-f]+/g) || []).map(x => x.slice(7));
              const wrong = html !== shown && html.includes("problem");
              return wrong || found.length && !before.includes(found[0]);
            }}""",
            arg=[before, shown],
        )
        problems = self.page.locator(f"{out} .problem").all_inner_texts()
        assert not problems, problems
        wait_for_videos(self.page, count, out)
        return self._ids(out)

    def problem(self) -> str:
        """Press the first button; what is wrong."""
        self.press(self.name.title())
        return self.page.locator(f"#{self.name}-out .problem").inner_text()

    def _ids(self, out: str) -> list[str]:
        found = re.findall(r"/v1/videos/(video_[0-9a-f]+)", self.page.locator(out).inner_html())
        return list(dict.fromkeys(found))


def as_text(value: Any) -> str:
    """A value in a form."""
    return value if isinstance(value, str) else json.dumps(value)
