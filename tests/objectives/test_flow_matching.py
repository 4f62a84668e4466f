"""Flow matching: its minimiser is the exact velocity, its times follow the law it names."""

import pytest
import torch
from oracle import PATHS, Gaussian

from vidcm.data.batch import Batch
from vidcm.diffusion.paths import RectifiedFlow
from vidcm.errors import UsageError
from vidcm.objectives.flow_matching import FlowMatching
from vidcm.rng import SampleRng

PLACES = range(600)


def batch(world: Gaussian, places=PLACES, prompt: str = "") -> Batch:
    x0 = world.means[prompt] + world.std * SampleRng(8, places).normal(2, 3, 2, 5).double()
    return Batch([prompt] * len(x0), latents=x0)


def loss(model, world: Gaussian, places=PLACES, **options) -> float:
    rng = SampleRng(1, places)
    return float(FlowMatching(**options)(model, batch(world, places), 0.0, rng).total)


class Changed(Gaussian):
    """A velocity slightly off: scaled and shifted."""

    def __init__(self, path, gain: float = 1.0, bias: float = 0.0):
        super().__init__(path)
        self.gain, self.bias = gain, bias

    def velocity(self, x_t, t, cond):
        return self.gain * super().velocity(x_t, t, cond) + self.bias


@pytest.mark.parametrize("path", PATHS, ids=[type(p).__name__ for p in PATHS])
def test_nothing_beats_the_exact_velocity(path):
    world = Gaussian(path)
    best = loss(world, world)
    for other in ({"gain": 0.97}, {"gain": 1.03}, {"bias": 0.05}, {"bias": -0.05}):
        assert loss(Changed(path, **other), world) > best


def test_the_loss_is_the_posterior_variance_of_the_velocity():
    """E |v - E v|^2 = std^2 / d^2 on the rectified path: (eps - x0 given x_t) = Wronskian std / d."""
    world = Gaussian(RectifiedFlow())
    t = torch.sigmoid(SampleRng(1, PLACES).normal())
    expected = float((world.std / world.spread(t)).square().mean())
    assert loss(world, world) == pytest.approx(expected, rel=0.03)


def test_log_bins_hold_their_part_of_the_loss():
    world, rng = Gaussian(RectifiedFlow()), SampleRng(1, PLACES)
    t = torch.sigmoid(SampleRng(1, PLACES).normal())
    found = FlowMatching()(world, batch(world), 0.0, rng)
    assert list(found.logs) == [f"loss_t/{i / 8:.3f}" for i in range(8)]
    counts = torch.histc(t, 8, 0, 1)
    parts = torch.stack([v.double() for v in found.logs.values()])
    assert float((parts * counts).sum() / counts.sum()) == pytest.approx(float(found.total))


@pytest.mark.parametrize("dropout, low, high", [(0.0, 0, 0), (0.3, 0.24, 0.36)])
def test_dropout_empties_its_share_of_prompts(dropout, low, high):
    world, seen = Gaussian(RectifiedFlow(), means={"": 0.7, "up": 0.7}), []

    class Listening(Gaussian):
        def encode(self, prompts, guidance_scale=None):
            seen.extend(prompts)
            return super().encode(prompts, guidance_scale)

    listener = Listening(world.path, means=world.means)
    FlowMatching(prompt_dropout=dropout)(
        listener, batch(world, prompt="up"), 0.0, SampleRng(1, PLACES)
    )
    assert low <= seen.count("") / len(seen) <= high and set(seen) <= {"", "up"}


def test_a_batch_split_over_ranks_has_the_same_loss():
    world = Gaussian(RectifiedFlow())
    whole = loss(world, world, range(12))
    parts = [loss(world, world, range(start, start + 4)) for start in (0, 4, 8)]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_a_dropout_that_leaves_no_prompt_is_refused(dropout):
    with pytest.raises(UsageError, match=r"prompt_dropout is .*; it must be in \[0, 1\)"):
        FlowMatching(prompt_dropout=dropout)
