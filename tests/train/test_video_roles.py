"""A student's run with further networks, from model folders to its end."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from vidcm.config import TrainConfig
from vidcm.errors import UsageError
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.train import checkpoint, loop
from vidcm.train.denoiser_task import denoiser_task
from vidcm.train.engine import LocalEngine
from vidcm.train.roles import assemble

CPU = torch.device("cpu")
CONSISTENCY = {"name": "consistency_tuning"}
EXTRAS = {"matching": {"steps": [1, 2]}, "adversarial": {"blocks": [0, 1]}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    parts = tiny.parts(tmp_path_factory.mktemp("models"))
    return {role: str(folder) for role, folder in parts.items()}


def task(models: dict[str, str], objective: dict, output: str = "", **changes: Any) -> Any:
    keys: dict[str, Any] = dict(steps=6, batch_size=2, num_workers=0, sample_every=6, log_every=1)
    config = TrainConfig(
        model=tiny.denoiser(guidance_embed=True),
        objective=objective,
        data={"name": "clips"},
        output=output,
        **{**keys, "teacher": models["teacher"], "codec": models["codec"], **changes},
    )
    torch.manual_seed(0)
    return config, denoiser_task(config, build("model", config.model), tiny.Clips(), CPU)


def test_the_fake_score_starts_as_the_teacher_and_is_told_scales(models: dict[str, str]) -> None:
    _, made = task(models, {"name": "distribution_matching"})
    fake, teacher = made.objective.roles["fake"].module, made.objective.teacher
    x, t = SampleRng(1, range(3)).normal(5, 2, 3, 4), torch.tensor([0.3, 0.6, 0.9])
    prompts, told = ["a man walks"] * 3, torch.tensor([1.0, 3.0, 5.0])
    with torch.no_grad():
        found = fake.predict(x, t, fake.encode(prompts, told)).x0
        assert torch.equal(found, teacher.predict(x, t, teacher.encode(prompts)).x0)
    assert fake.backbone.guidance is not None
    assert all(p.requires_grad for p in fake.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert made.objective.roles["fake"].module is fake, "made once"


def test_a_run_of_three_networks_exports_the_student_alone(
    models: dict[str, str], tmp_path: Path
) -> None:
    spec = {"name": "rcm", "student_update_freq": 3, "consistency": CONSISTENCY, **EXTRAS}
    config, made = task(models, spec, str(tmp_path))
    engine = assemble(made.model, made.objective, config, CPU, LocalEngine)
    final: list[dict] = []
    assert loop.train(config, made, engine, lambda weights, *_: final.append(weights)) == 0
    assert final[0].keys() == build("model", config.model).state_dict().keys()
    state = checkpoint.read(checkpoint.folder_of(tmp_path, 6))[0]
    assert set(state["roles"]) == {"fake", "critic"}
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    kinds = ["fake/loss", "critic/loss", "loss"] * 2
    assert all(kind in line for kind, line in zip(kinds, lines, strict=False))
    assert lines[-1].keys() >= {"preview/motion_ratio_1"}
    assert (tmp_path / "samples" / "step-00000006.png").is_file()


def test_without_a_teacher_it_is_refused(models: dict[str, str]) -> None:
    for name in ("distribution_matching", "adversarial"):
        with pytest.raises(UsageError, match=f"{name} needs a teacher"):
            task(models, {"name": name}, teacher=None)
