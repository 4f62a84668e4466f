"""Two networks, one for high noise and one below, as in Wan 2.2 A14B."""

import json

import pytest
import torch
from public_runs import CAPTION, pipeline_of, run

from vidcm.cli import export, generate
from vidcm.diffusion import samplers
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.pipeline import VideoPipeline
from vidcm.registry import build


def test_guided_sampling_is_the_pipelines(public):
    folder = public("wan_experts")
    theirs, ours = pipeline_of(folder), VideoPipeline.from_pretrained(folder).model("teacher")
    noise = torch.randn(1, 16, 3, 4, 4)
    found = theirs(
        CAPTION,
        negative_prompt="a robot",
        num_frames=9,
        height=32,
        width=32,
        guidance_scale=4.0,
        num_inference_steps=4,
        latents=noise.clone(),
        output_type="latent",
    ).frames
    times = theirs.scheduler.sigmas.tolist()
    used = [time >= 0.875 for time in times[:-1]]
    assert any(used) and not all(used)
    with torch.no_grad():
        guided = CFGDenoiser(ours, 4.0, ours.encode(["a robot"]))
        x = samplers.euler(guided, noise, times, ours.encode([CAPTION]))
    assert (x - found).abs().max() < 2e-5 * found.abs().max()


def test_a_batch_on_both_sides_is_each_expert_on_its_side(public):
    model = VideoPipeline.from_pretrained(public("wan_experts")).model("teacher")
    x, t, cond = (
        torch.randn(3, 16, 3, 4, 4),
        torch.tensor([0.9, 0.2, 0.875]),
        model.encode([CAPTION] * 3),
    )
    with torch.no_grad():
        both = model.velocity(x, t, cond)
        for row, expert in enumerate((model.high, model.low, model.high)):
            part = slice(row, row + 1)
            alone = expert.velocity(x[part], t[part], cond.rows(part))
            assert torch.allclose(both[part], alone, atol=1e-5)


def test_trained_phases_are_drawn_alone():
    objective = build(
        "objective",
        {"name": "phased_consistency", "phases": 4, "intervals": 48, "trained_phases": [2, 3]},
        teacher=None,
    )
    low, high = objective.trained_intervals
    index = torch.arange(low + 1, high + 1)
    assert (low, high) == (24, 48) and objective.edge(index).unique().tolist() == [24, 36]


def test_each_expert_is_trained_on_its_phases_and_both_are_exported(tmp_path, public, latents):
    """Shift 6.9 puts the middle of four phases right below the boundary of 0.875."""
    root, finals = public("wan_experts"), {}
    for part, phases in (("transformer", [2, 3]), ("transformer_2", [0, 1])):
        base = f"{root}/{part}"
        (tmp_path / part).mkdir()
        code, folder = run(
            tmp_path / part, public, latents, "wan_experts",
            model={"name": "public_denoiser", "base": base, "guidance_scale": 4},
            init=base,
            teacher=base,
            objective={
                "name": "phased_consistency", "phases": 4, "shift": 6.9,
                "trained_phases": phases, "guidance_range": [4, 4],
            },
        )  # fmt: skip
        assert code == 0
        finals[part] = folder / "final"
    words = [
        f"--codec={root}/vae",
        f"--teacher={root}/transformer",
        f"--teacher-2={root}/transformer_2",
        f"--student={finals['transformer']}",
        f"--student-2={finals['transformer_2']}",
        "--boundary=0.875",
    ]
    shape = ["--frames", "9", "--height", "32", "--width", "32", "--allow-still"]
    pipe, output = tmp_path / "pipe", tmp_path / "clip.mp4"
    assert export.main([*words, *shape, "--output", str(pipe)]) == 0
    settings = json.loads((pipe / "pipeline.json").read_text())
    assert settings["boundary_ratio"] == 0.875 and len(settings["student"]["timesteps"]) == 4
    model, sides = VideoPipeline.from_pretrained(pipe).model("student"), []
    for time in settings["student"]["timesteps"]:
        sides.append(time >= model.boundary)
    assert sides == [True, True, False, False]
    words = ["--checkpoint", str(pipe), "--prompt", CAPTION, "--output", str(output)]
    assert generate.main(words) == 0 and output.is_file()


def test_half_a_pair_is_refused(tmp_path, public, capsys):
    root = public("wan_experts")
    words = [
        f"--codec={root}/vae",
        f"--teacher={root}/transformer",
        f"--student={root}/transformer",
    ]
    assert export.main([*words, "--boundary=0.875", f"--output={tmp_path / 'out'}"]) == 2
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize("phases", [[3, 1], [0, 4], [-1, 2]])
def test_phases_that_are_none(phases):
    from vidcm.errors import UsageError

    spec = {"name": "phased_consistency", "trained_phases": phases}
    with pytest.raises(UsageError, match="use a first and a last one of 0 to 3"):
        build("objective", spec, teacher=None)
