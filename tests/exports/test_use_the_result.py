"""What docs/use-the-result.md tells to type is typed, on tiny models; what it says of others is so."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_docs import blocks

from vidcm.cli import main

DOCUMENT = Path("docs/use-the-result.md")
SMALL = {"81": "9", "480": "32", "832": "32"}


def small(text: str) -> str:
    return re.sub(r"\b(81|480|832)\b", lambda m: SMALL[m[1]], text)


@pytest.fixture
def reader(public, student_of, tmp_path, monkeypatch):
    """The folder of somebody who has trained two students."""
    shutil.copytree(public("wan_comfy"), tmp_path / "wan")
    for name, facts in (("wan_comfy", {}), ("anyflow", {"sampler": "flow_map"})):
        run = tmp_path / "runs" / name.removesuffix("_comfy") / "student"
        shutil.copytree(student_of(name, **facts), run / "final")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_and_programs_run(reader):
    typed, names = [], {}
    for block in blocks(DOCUMENT):
        if block.language == "python":
            exec(compile("\n" * block.line + small(block.text), str(DOCUMENT), "exec"), names)
            continue
        for words in block.commands():
            assert words[0] == "vidcm", words
            words = shlex.split(small(shlex.join(words)))[1:]
            assert main([*words, *(["--device", "cpu"] if words[0] == "generate" else [])]) == 0
            typed.append(words[0])
    assert typed.count("export") >= 6 and typed.count("generate") == 2
    assert names["clips"].frames.shape == (1, 9, 32, 32, 3)
    assert names["frames"].shape == (9, 32, 32, 3) and np.isfinite(names["frames"]).all()
    assert names["made"].frames[0].shape == (9, 32, 32, 3)
    layer = "blocks.1.attn1.to_q.weight"
    file, student = names["network"].get_parameter(layer), names["pipe"].transformer
    assert torch.allclose(file.float(), student.get_parameter(layer).float(), atol=1e-2)
    assert names["base"].get_active_adapters()
    for film in ("clip.mp4", "ball.mp4", "lora.mp4"):
        assert (reader / film).stat().st_size > 0


def rows() -> dict[str, list[str]]:
    """The table of schedulers: the cells of each by its name."""
    text = (Path(__file__).parents[2] / DOCUMENT).read_text("utf-8")
    lines = re.findall(r"^\| `(\w+Scheduler)` \| (.*) \|$", text, re.M)
    return {name: cells.split(" | ") for name, cells in lines}


@pytest.mark.parametrize("name", sorted(n for n in rows() if n != "FewStepScheduler"))
def test_stock_schedulers_have_the_times_of_the_table(name):
    import diffusers

    options = {"shift": 3.0}
    if name.startswith("UniPC"):
        options = {"flow_shift": 3.0, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = getattr(diffusers, name)(**options)
    for steps, cell in zip((1, 2, 4), rows()[name], strict=False):
        scheduler.set_timesteps(steps)
        expected = [float(t) for t in cell.split(", ")]
        assert scheduler.timesteps.tolist() == pytest.approx(expected, abs=0.06)


def test_which_stock_schedulers_repeat_a_clip(public):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(public("wan"))
    pipeline.set_progress_bar_config(disable=True)
    import diffusers

    size = {"num_frames": 9, "height": 16, "width": 16, "output_type": "latent"}
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"):
        pipeline.scheduler = getattr(diffusers, name)(shift=3.0)
        first, second = (
            pipeline(
                "a robot",
                num_inference_steps=2,
                guidance_scale=1.0,
                generator=torch.Generator().manual_seed(1),
                **size,
            ).frames
            for _ in range(2)
        )
        assert np.array_equal(first, second) == (rows()[name][3] != "not seeded")
