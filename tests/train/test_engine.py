"""One optimiser step in one process: what counts as bad, what is averaged, what decays."""

import copy
import math

import pytest
import torch
from torch import nn
from train import ranks

from vidcm.config import OptimizerConfig
from vidcm.data.batch import Batch, MicroBatch
from vidcm.objectives.base import Loss
from vidcm.rng import SampleRng
from vidcm.train.engine import LocalEngine, TrainStep
from vidcm.train.optimizers import make_optimizer


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_step_is_bad_by_its_loss_or_its_gradient_alone(spoilt: str) -> None:
    def objective(model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        total = ranks.regression(model, batch, progress, rng).total
        root = (total - total.detach()).sqrt()  # 0, with a slope that is not finite
        return Loss(total + math.inf if spoilt == "loss" else total + root)

    chosen, model = ranks.config(), ranks.Tiny()
    engine = LocalEngine(TrainStep(model, ranks.Plain(objective), ranks.CPU), chosen)
    before = copy.deepcopy(engine.weights(ema=False))
    part = MicroBatch(ranks.Points().batch(5, range(8)), 5, list(range(8)))
    report = engine.step([part], 0.0, 0.1, 0)
    assert not report.applied and math.isfinite(report.loss) == (spoilt == "gradient")
    assert all(torch.equal(v, before[k]) for k, v in engine.weights(ema=False).items())


def test_what_ran_without_gradients_first_still_learns_in_bf16() -> None:
    """As a student that is its own target; torch before 2.11 lost its gradients without a word."""

    def objective(model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        with torch.no_grad():
            target = model(batch.latents.flatten(1)).float()
        loss = ranks.regression(model, batch, progress, rng)
        return Loss(loss.total + (target - target).sum())

    step = TrainStep(ranks.Tiny(), ranks.Plain(objective), ranks.CPU)
    engine = LocalEngine(step, ranks.config(precision="bf16"))
    part = MicroBatch(ranks.Points().batch(5, range(8)), 5, list(range(8)))
    assert engine.step([part], 0.0, 0.1, 0).applied
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in engine.parameters.values())


def test_the_average_lags_by_its_decay_and_is_what_goes_out() -> None:
    chosen = ranks.config(ema_decay=0.7)
    engine, trained = ranks.local(chosen), {"first.weight", "first.bias", "last.weight", "scale"}
    expected = engine.weights(ema=True)
    for step in (0, 1, 3, 4):  # the data of 2 are bad
        ranks.run(engine, chosen, step, step + 1)
        now, average = engine.weights(ema=False), engine.weights(ema=True)
        expected = {k: 0.7 * v + 0.3 * now[k] for k, v in expected.items()}
        for name in now:
            torch.testing.assert_close(average[name], expected[name], rtol=1e-5, atol=1e-7)
            assert torch.equal(average[name], now[name]) == (name not in trained)


def test_gradients_are_the_mean_of_the_parts_and_last_one_step() -> None:
    """Two parts are one batch, whatever was left of the step before."""
    weights = []
    for accumulation in (1, 2):
        chosen = ranks.config(gradient_accumulation_steps=accumulation)
        engine = ranks.local(chosen)
        norms = [norm for *_, norm, _ in ranks.run(engine, chosen, 0, 2)]
        weights.append((torch.tensor(norms), *engine.weights(ema=False).values()))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)
    fresh = ranks.local(ranks.config())
    fresh.module.model.load_state_dict(ranks.local(ranks.config()).weights(ema=False))
    for p in fresh.parameters.values():
        p.grad = torch.full_like(p, 1e3)
    ((*_, norm, _),) = ranks.run(fresh, ranks.config(), 0, 1)
    assert norm == pytest.approx(float(weights[0][0][0]), rel=1e-5)


def test_gradients_are_clipped_by_their_norm() -> None:
    """A spike moves the weights no further. Cases: R06."""
    engine, chosen = ranks.local(ranks.config()), ranks.config()
    assert chosen.optimizer.max_grad_norm == 0.5
    ((*_, norm, _),) = ranks.run(engine, chosen, 0, 1)
    left = torch.stack([p.grad.norm() for p in engine.parameters.values() if p.grad is not None])
    assert norm > 0.6 and float(left.norm()) == pytest.approx(0.5, rel=1e-4)


def test_matrices_decay_and_vectors_do_not() -> None:
    optimizer = make_optimizer(ranks.Tiny(), OptimizerConfig(weight_decay=0.3, betas=(0.5, 0.8)))
    decays = {p.ndim: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays == {2: 0.3, 1: 0.0}
    assert {tuple(g["betas"]) for g in optimizer.param_groups} == {(0.5, 0.8)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bf16_is_for_the_objective_alone(precision: str) -> None:
    seen = []

    def objective(model: nn.Module, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        seen.append(torch.is_autocast_enabled("cpu"))
        return ranks.regression(model, batch, progress, rng)

    chosen = ranks.config(precision=precision)
    step = TrainStep(ranks.Tiny(), ranks.Plain(objective), ranks.CPU)
    engine = LocalEngine(step, chosen, averaged=False)
    assert ranks.run(engine, chosen, 0, 1)[0][-1]
    assert seen == [precision == "bf16"] and not torch.is_autocast_enabled("cpu")
    assert {v.dtype for v in engine.weights(ema=False).values()} == {torch.float32}
