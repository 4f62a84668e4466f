"""Each sickness is provoked on purpose and named; clips that move as they should are let pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from vidcm.cli import export
from vidcm.codecs.causal_vae import CausalVAE
from vidcm.config import TrainConfig
from vidcm.errors import VidcmError
from vidcm.registry import build
from vidcm.store import read_weights, save_model
from vidcm.train import loop
from vidcm.train.denoiser_task import denoiser_task
from vidcm.train.engine import LocalEngine
from vidcm.train.health import (
    ALIKE,
    FLAT,
    LEAST_MOTION,
    MOST_MOTION,
    NOISE,
    STILL,
    check_finite,
    diagnose,
    logged_motion,
    vitals,
)
from vidcm.train.roles import assemble

CPU = torch.device("cpu")


def squares(side: int = 8, step: int = 3, contrast: int = 100, count: int = 5) -> Tensor:
    """A square crossing each clip on a grey ground, uint8 `(count 7 61 67 3)`."""
    frames = torch.full((count, 7, 61, 67, 3), 90, dtype=torch.uint8)
    for i, clip in enumerate(frames):
        for k, frame in enumerate(clip):
            x = 11 * i + k * step
            frame[9 * i : 9 * i + side, x % (67 - side) : x % (67 - side) + side] = 90 + contrast
    return frames


def noise(deviation: float = 60.0) -> Tensor:
    x = torch.randn(5, 7, 61, 67, 3, generator=torch.Generator().manual_seed(1))
    return (128 + deviation * x).round().clamp(0, 255).to(torch.uint8)


def ground(level: int) -> Tensor:
    return torch.full((5, 7, 61, 67, 3), level, dtype=torch.uint8)


def frozen(frames: Tensor) -> Tensor:
    return frames[:, :1].expand_as(frames).contiguous()


def one(found: list[str]) -> str:
    assert len(found) == 1, found
    assert "\n" not in found[0] and "; " in found[0], "what was seen; what usually causes it"
    return found[0]


# --- healthy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "clips",
    [squares(), squares(step=1), squares(side=29), squares(contrast=-90), squares(contrast=50)],
    ids=["squares", "slow", "large", "dark", "pale"],
)
def test_moving_squares_are_healthy(clips):
    assert diagnose(clips) == diagnose(clips, clips) == diagnose(clips[:1]) == []


def test_one_frame_need_not_move():
    pictures = squares()[:, :1]
    assert diagnose(pictures) == diagnose(pictures, pictures) == []


def test_a_wall_among_clips_is_no_sickness():
    clips = squares()
    clips[2] = 90
    assert diagnose(clips) == []


def test_healthy_clips_of_real_art(lpc_art):
    from vidcm.lpc.dataset import LPC

    frames = LPC(lpc_art).batch(3, range(6)).frames
    assert frames is not None and diagnose(frames) == []
    found = vitals(frames)
    assert found.smooth.min() > 2 * NOISE and found.spread.min() > 10 * FLAT
    assert found.motion.min() > 5 * STILL and found.apart > 20 * ALIKE


# --- sick -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flicker", [0, 1])
def test_clips_that_stand_still(flicker):
    clips = frozen(squares())
    clips += (torch.rand(clips.shape) < flicker * 0.03).to(torch.uint8)
    for reference in (None, squares()):
        assert one(diagnose(clips, reference)).startswith("5 of 5 clips stand still (frames differ")
    clips[:2] = squares()[:2]
    assert one(diagnose(clips)).startswith("3 of 5 clips stand still")
    clips[2] = squares()[2]
    assert diagnose(clips) == []


def test_a_still_teacher_is_blamed_for_a_still_student():
    clips = frozen(squares())
    assert "look at the data" in one(diagnose(clips))
    assert "so are the teacher's" in one(diagnose(clips, clips))


@pytest.mark.parametrize("share, sick", [(0.86, False), (0.72, True)])
def test_the_ratio_of_motion_to_the_reference(share, sick):
    """A paler square changes each pixel by as much less."""
    reference = squares()
    paler = (reference.float() - 90) * share + 90
    found = diagnose(paler.round().to(torch.uint8), reference)
    if sick:
        assert one(found).startswith(
            f"clips move 0.72 times as much as the teacher's, below {LEAST_MOTION}"
        )
    else:
        assert found == []


def test_one_solid_colour():
    clips = ground(90)
    for i in range(5):
        clips[i] += 20 * i
    assert one(diagnose(clips)).startswith("5 of 5 clips are one solid colour (pixels deviate by 0")
    clips += (torch.rand(clips.shape) < 0.5).to(torch.uint8)
    assert "one solid colour" in one(diagnose(clips, squares()))
    clips[:, ::2] += 40  # a fade is as empty
    assert "one solid colour" in one(diagnose(clips, squares()))


@pytest.mark.parametrize("deviation", [6.0, 20.0, 60.0])
def test_noise(deviation):
    for reference in (None, squares(side=29)):
        assert "5 of 5 clips are noise" in one(diagnose(noise(deviation), reference))
    still = frozen(noise(deviation))
    assert [s.split(" (")[0] for s in diagnose(still)] == [
        "5 of 5 clips are noise", "5 of 5 clips stand still",
    ]  # fmt: skip


def test_noise_in_latents_is_smooth_but_restless():
    """Blotches of 8x8 pixels, new in every frame, as a codec makes of them."""
    small = torch.randint(0, 256, (5, 7, 8, 9, 3), dtype=torch.uint8)
    blotches = small.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :61, :67].contiguous()
    assert vitals(blotches).smooth.min() > 0.8
    assert one(diagnose(blotches, squares())).endswith(
        "draws the noise levels that sampling visits"
    )


def test_all_prompts_alike():
    clip = squares()[:1]
    alike = clip.expand(5, -1, -1, -1, -1) + (torch.rand(5, 7, 61, 67, 3) < 0.5).to(torch.uint8)
    for reference in (None, squares()):
        assert one(diagnose(alike, reference)).startswith(
            "clips of all prompts and seeds are alike"
        )
    assert diagnose(clip) == []


def test_a_student_of_little_variety_is_measured_by_its_teacher():
    """A pale shadow of each background stays: too much for a threshold in grey levels alone."""
    reference, student = squares(), squares(count=1).repeat(5, 1, 1, 1, 1)
    for i in range(5):
        reference[i] += 20 * i
        student[i] += 4 * i
    assert diagnose(reference) == diagnose(student) == []
    assert one(diagnose(student, reference)).startswith("clips of all prompts and seeds are alike")


def test_thresholds_lie_between():
    """Well between, so that neither rounding nor a small picture decides."""
    healthy, dots = vitals(squares()), vitals(squares(side=2, step=1, contrast=150))
    assert dots.motion.min() > 1.2 * STILL and dots.spread.min() > 2 * FLAT
    assert (
        dots.smooth.min() == pytest.approx(0.5, abs=0.02)
        and abs(vitals(noise()).smooth).max() < 0.02
    )
    assert healthy.smooth.min() == pytest.approx(0.89, abs=0.01) and healthy.apart > 3 * ALIKE
    rounding = vitals(ground(90) + (torch.rand(5, 7, 61, 67, 3) < 0.5).to(torch.uint8))
    assert rounding.spread.max() == pytest.approx(0.5, abs=0.01) and rounding.apart < 0.6 * ALIKE


def test_the_guide_tells_of_every_warning_with_its_threshold():
    guide = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in guide.splitlines() if "| `" in line}
    alike = squares(count=1).repeat(5, 1, 1, 1, 1)
    shown = {
        f"less than {STILL}": frozen(squares()),
        f"below {LEAST_MOTION}": squares(contrast=60),
        f"above {MOST_MOTION:.0f}": squares(contrast=150, side=29),
        f"less than {FLAT:.0f} grey": ground(90)
        + torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1, 1) * 9,
        f"less than {NOISE}": noise(),
        f"less than {ALIKE:.0f} grey": alike,
    }
    for (title, line), (threshold, clips) in zip(rows.items(), shown.items(), strict=True):
        said = one(diagnose(clips, squares()))
        assert all(part in said for part in title.split(" ... ")), said
        assert threshold in line


@pytest.mark.parametrize(
    "frames, reference, message",
    [
        (torch.zeros(2, 3, 5, 7, 3), None, "expected uint8"),
        (torch.zeros(3, 5, 7, 3, dtype=torch.uint8), None, "expected uint8"),
        (torch.zeros(0, 3, 5, 7, 3, dtype=torch.uint8), None, "expected uint8"),
        (squares(), squares()[:3], "the reference is"),
    ],
)
def test_what_is_no_clips_is_refused(frames, reference, message):
    with pytest.raises(ValueError, match=message):
        diagnose(frames, reference)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite(value):
    latents = torch.zeros(3, 5, 2, 3, 4)
    check_finite(latents, "student, 4 steps")
    latents[1, 2, 1, 1, 1] = value
    with pytest.raises(VidcmError, match=r"of 1 of 3 clips \(student, 4 steps\) are not finite"):
        check_finite(latents, "student, 4 steps")


# --- in a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.parts(tmp_path_factory.mktemp("models"))


def ran(models: dict[str, Path], output: Path, **changes: Any) -> dict:
    """A run of one step; its last line of metrics.jsonl, the preview's."""
    keys: dict[str, Any] = dict(steps=1, batch_size=2, num_workers=0, sample_every=1)
    keys |= {"teacher": str(models["teacher"]), "codec": str(models["codec"])}
    config = TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective={"name": "consistency_tuning"},
        data={"name": "clips"},
        output=str(output),
        **{**keys, **changes},
    )
    made = denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)  # type: ignore[arg-type]
    engine = assemble(made.model, made.objective, config, CPU, LocalEngine)
    assert loop.train(config, made, engine, lambda *_: None) == 0
    return json.loads((output / "metrics.jsonl").read_text("utf-8").splitlines()[-1])


def test_a_preview_says_when_it_is_sick(models, tmp_path, monkeypatch, capsys):
    def still(codec: CausalVAE, latents: Tensor) -> Tensor:
        return (frozen(squares()).permute(0, 4, 1, 2, 3).float() / 127.5 - 1)[:, :, :5]

    monkeypatch.setattr(CausalVAE, "decode", still)
    line = ran(models, tmp_path / "run", preview_prompts=["a man walks"] * 5)
    assert line["preview/healthy"] == 0
    shown = [x for x in capsys.readouterr().err.splitlines() if "warning: " in x]
    starts = ("teacher, 25 steps", "student, 4 steps", "student, 2 steps", "student, 1 step")
    for said, start in zip(shown, starts, strict=True):
        assert said.startswith(f"warning: step-00000001.png: {start}: 5 of 5 clips stand still")
    assert "look at the data" in shown[0] and "so are the teacher's" in shown[1]


def test_a_healthy_preview_is_silent(models, tmp_path, monkeypatch, capsys):
    def moving(codec: CausalVAE, latents: Tensor) -> Tensor:
        return (squares().permute(0, 4, 1, 2, 3).float() / 127.5 - 1)[:, :, :5]

    monkeypatch.setattr(CausalVAE, "decode", moving)
    line = ran(models, tmp_path / "run", preview_prompts=["a man walks"] * 5)
    assert line["preview/healthy"] == 1 and line["preview/motion_ratio_1"] == 1
    assert "warning" not in capsys.readouterr().err


def test_a_teacher_s_preview_is_looked_at_too(models, tmp_path):
    config = TrainConfig(
        model=tiny.denoiser(),
        objective={"name": "flow_matching"},
        data={"name": "clips"},
        output=str(tmp_path),
        steps=1,
        codec=str(models["codec"]),
    )
    made = denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)  # type: ignore[arg-type]
    weights, sheet = made.model.state_dict(), tmp_path / "sheet.png"
    assert made.preview(weights, sheet).keys() == {"preview/motion", "preview/healthy"}
    sheet.unlink()
    spoilt = {k: torch.full_like(v, float("nan")) for k, v in weights.items()}
    with pytest.raises(VidcmError, match=r"6 of 6 clips \(teacher, 25 steps\) are not finite"):
        made.preview(spoilt, sheet)
    assert not sheet.exists()


# --- at the export --------------------------------------------------------------------------------


def logs(run: Path, *lines: dict | str) -> Path:
    """A run's metrics.jsonl; texts go in as they are."""
    texts = [x if isinstance(x, str) else json.dumps(x) for x in lines]
    (run / "metrics.jsonl").write_text("\n".join(texts), "utf-8")
    return run / "metrics.jsonl"


def ratios(step: int, four: float, one: float) -> dict:
    return {"step": step, "preview/motion_ratio_4": four, "preview/motion_ratio_1": one}


def test_the_last_ratios_of_a_run(tmp_path):
    assert logged_motion(tmp_path / "metrics.jsonl") == {}
    log = logs(tmp_path, ratios(10, 0.4, 0.3), ratios(20, 0.9, 0.85), {"step": 25, "loss": 1.0})
    names = ("preview/motion_ratio_4", "preview/motion_ratio_1")
    assert logged_motion(log) == dict(zip(names, (0.9, 0.85), strict=True))
    assert logged_motion(log, step=19) == dict(zip(names, (0.4, 0.3), strict=True))
    logs(tmp_path, "[1]", ratios(30, float("nan"), 0.7), '{"step": 40, "preview/motion_ra')
    assert logged_motion(log) == {"preview/motion_ratio_1": 0.7}


def test_a_still_student_is_not_exported_unawares(models, tmp_path, capsys):
    run, output = tmp_path / "run", tmp_path / "out"
    spec = json.loads((models["student"] / "model.json").read_text("utf-8"))["spec"]
    save_model(run / "final", spec, read_weights(models["student"]), metadata={"step": 20})
    arguments = tiny.export_arguments(models | {"student": run / "final"}, output)
    log = logs(run, ratios(10, 0.9, 0.9), ratios(20, 0.9, 0.79), ratios(30, 0.9, 0.9))
    assert export.main(arguments) == 2
    error = capsys.readouterr().err
    assert f"moves 0.79 times as much as its teacher (preview/motion_ratio_1 in {log})" in error
    assert "below 0.8; train on, or export it all the same with --allow-still" in error
    assert error.count("\n") == 1 and not output.exists()
    assert export.main([*arguments, "--allow-still"]) == 0
    logs(run, ratios(20, 0.9, 0.8))
    assert export.main([*arguments, "--overwrite"]) == 0
