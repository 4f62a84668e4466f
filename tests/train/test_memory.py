"""The memory that a dry run foretells, against the peaks that torch's allocator sees."""

import gc
import re
from pathlib import Path
from typing import Any

import peaks
import pytest
import tiny
import torch

from vidcm.cli import train as command
from vidcm.config import LoraConfig, TrainConfig
from vidcm.errors import UsageError
from vidcm.train.dry_run import report
from vidcm.train.memory import estimate

TEACHER = Path(__file__).resolve().parents[2] / "configs" / "lpc" / "teacher.yaml"
SCALES = {"guidance_range": [1.0, 2.0]}
STUDENT = tiny.denoiser(guidance_embed=True, hidden_size=128, num_layers=2)
TUNING = {"name": "consistency_tuning", **SCALES}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.parts(tmp_path_factory.mktemp("models"))


def config(models: dict[str, Path], **changes: Any) -> TrainConfig:
    return peaks.config({k: str(v) for k, v in models.items()}, **changes)


CASES: dict[str, dict[str, Any]] = {
    "teacher": {
        "teacher": None,
        "objective": {"name": "flow_matching"},
        "model": tiny.denoiser(hidden_size=128, num_layers=2),
    },
    "checkpointing": {"activation_checkpointing": True},
    "accumulation": {"gradient_accumulation_steps": 4},
    "derivative": {"objective": {"name": "continuous_consistency", **SCALES}},
    "target": {"objective": {"name": "progressive_distillation", **SCALES}},
    "lora": {"lora": LoraConfig(4, 4), "model": tiny.denoiser(guidance_embed=True)},
}


def test_what_ran_before_does_not_change_a_measured_peak() -> None:
    """What an earlier measured run left in cycles, and is freed at any time, is not taken off."""

    def leave_garbage() -> None:
        cycle: list[Any] = [torch.empty(2**20)]
        cycle.append(cycle)

    def work() -> torch.Tensor:
        gc.collect()
        return torch.empty(1000)

    assert peaks.peak(leave_garbage) == 2**22
    assert peaks.peak(work) == 4000


@pytest.mark.parametrize("case", CASES)
def test_the_estimate_is_the_measured_peak(models: dict[str, Path], case: str) -> None:
    chosen = config(models, **CASES[case])
    found = estimate(chosen, 1, peaks.CLIP, foreach=False)
    assert found.step == pytest.approx(peaks.of_a_run(chosen), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        {"name": "latent_consistency", "target_decay": 0.9, **SCALES},
        {"name": "phased_consistency", **SCALES},
        {"name": "flow_map", **SCALES},
        {"name": "distribution_matching", **SCALES},
        {"name": "adversarial", "blocks": [0, 1], **SCALES},
        {"name": "rcm", "consistency": TUNING, "matching": SCALES, "student_update_freq": 2},
    ],
    ids=lambda objective: objective["name"],
)
def test_the_estimate_of_other_methods(models: dict[str, Path], objective: dict) -> None:
    two_times = objective["name"] == "flow_map"
    backbone = {**STUDENT["backbone"], "two_times": two_times}
    chosen = config(models, objective=objective, model={**STUDENT, "backbone": backbone})
    found = estimate(chosen, 1, peaks.CLIP, foreach=False)
    assert found.step == pytest.approx(peaks.of_a_run(chosen), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_estimate_of_a_rank(models: dict[str, Path], stage: int, precision: str) -> None:
    pytest.importorskip("deepspeed", reason="needs deepspeed: pip install -e '.[train]'")
    if not stage and precision == "bf16":
        return  # runs as stage 1
    chosen = config(models, zero=stage, precision=precision)
    found = estimate(chosen, 2, peaks.CLIP, foreach=False)
    measured = peaks.of_ranks(chosen, models["teacher"].parent)
    assert found.step == pytest.approx(measured, rel=0.1)


def test_a_preview_holds_a_copy_and_its_clips(models: dict[str, Path]) -> None:
    """More clips at once or a larger one is more; weights alone are the least."""
    small, large = (
        estimate(config(models), 1, clip, foreach=False) for clip in ((5, 16, 24), (9, 32, 48))
    )
    assert small.preview > sum(small.parts.values()) - small.parts["gradients"]
    assert large.preview > small.preview and large.work > 4 * small.work


def test_nothing_is_computed_with_weights(models: dict[str, Path], tmp_path: Path) -> None:
    """Cards are enough: model folders without their weights give the same numbers."""
    cards = {}
    for role, folder in models.items():
        cards[role] = tmp_path / role
        cards[role].mkdir()
        (cards[role] / "model.json").write_bytes((folder / "model.json").read_bytes())
    assert estimate(config(cards), 1, peaks.CLIP) == estimate(config(models), 1, peaks.CLIP)


def test_the_report_names_changes_that_help(models: dict[str, Path]) -> None:
    wide = tiny.denoiser(guidance_embed=True, hidden_size=8192, num_layers=2, num_heads=64)
    chosen = config(models, model=wide, batch_size=8, activation_checkpointing=True)
    text = "\n".join(report(chosen, 8, peaks.CLIP, foreach=True))
    first, *later = re.findall("fits on (\\d+) GB", text)
    assert int(first) > int(later[-1]) and "precision=bf16" in text and "zero=2" in text
    peaks_in_turn = [float(x) for x in re.findall("([0-9.]+) GiB   (?:fits|does)", text)]
    assert peaks_in_turn == sorted(peaks_in_turn, reverse=True)


def test_the_command_reads_no_weights_and_no_data(models: dict[str, Path], capsys) -> None:
    parts = [f"{key}={models[role]}" for key, role in (("codec", "codec"), ("init", "teacher"))]
    words = ["--config", str(TEACHER), "--dry-run", "--clip", "9x64x64"]
    small = ["model.channels=5", "batch_size=2", *parts, "init_text=missing", "data.path=missing"]
    assert command.main([*words, "--device", "cpu", *small]) == 0
    printed = capsys.readouterr().out
    assert "1 rank, fp32" in printed and "peak of a step" in printed and "fits on 24 GB" in printed
    assert "copy for a checkpoint" in printed
    assert command.main([*words, "--device", "cpu", *small, "async_checkpoints=false"]) == 0
    assert "copy for a checkpoint" not in capsys.readouterr().out
    assert command.main([*words[:2], "--world", "2", *small]) == 2
    assert "add --dry-run" in capsys.readouterr().err


def test_what_is_refused(models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="does not divide"):
        estimate(config(models), 3, peaks.CLIP)
    with pytest.raises(UsageError, match="denoisers' alone"):
        estimate(config(models, model=tiny.CODEC, objective={"name": "autoencoding"}, teacher=None))
