"""The projection loop in the closed-form Gaussian world, where conditional means are known."""

import pytest
import torch
from oracle import PATHS, Gaussian, start

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion import samplers
from vidcm.diffusion.paths import TrigFlow
from vidcm.diffusion.projection import Chain, ProjectedDenoiser
from vidcm.diffusion.times import shifted_timesteps, student_timesteps, to_path_time
from vidcm.editing.observations import LatentPrefix, ThroughPixels
from vidcm.editing.operators import BlockMean, Pixels
from vidcm.rng import SampleRng

SHAPE = (3, 5, 4, 6)  # c t h w


class Identity(VideoCodec):
    """A codec whose latents are the pixels."""

    time_stride = 1

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return video

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def known_pixels() -> Pixels:
    seen = torch.zeros(5, 4, 6, dtype=torch.bool)
    seen[:, :, :2] = seen[0] = True
    return Pixels(torch.randint(256, (5, 4, 6, 3), dtype=torch.uint8), seen)


@pytest.fixture(params=PATHS, ids=lambda path: type(path).__name__)
def path(request):
    return request.param


def teacher_times(path, steps: int) -> torch.Tensor:
    """Shifted, from where paths without an end are all but noise."""
    times = to_path_time(path, shifted_timesteps(steps, by=3.0))
    times[0] = min(times[0], to_path_time(path, [0.999])[0])
    return times


def draw(path, project, walker: str, steps: int, count: int = 24) -> torch.Tensor:
    world, rng = Gaussian(path, std=0.5), SampleRng(0, range(count))
    cond = world.encode([""] * count)
    noise = rng.normal(*SHAPE)
    if walker in samplers.SOLVERS:
        times, sampler = teacher_times(path, steps), samplers.SOLVERS[walker]
    else:
        times, sampler = to_path_time(path, student_timesteps(steps)), samplers.SAMPLERS[walker]
    return sampler(ProjectedDenoiser(world, project), start(path, noise, times), times, cond, rng)


@pytest.mark.parametrize(
    "walker, steps",
    [("consistency", 4), ("flow_map", 4), ("euler", 200), ("heun", 50), ("dpm", 25)],
)
def test_what_is_known_is_kept_and_the_rest_has_its_own_law(path, walker, steps):
    """Elements are independent, so the unknown ones keep mean 0.7 and deviation 0.5. There are
    4608: mean and deviation are known to 0.0074 and 0.0052, one standard error."""
    known = known_pixels()
    x = draw(path, ThroughPixels(Identity(), [known]), walker, steps)
    seen, near = known.mask.expand_as(x).bool(), 1e-5
    if walker in ("euler", "heun") and isinstance(path, TrigFlow):
        near = float(teacher_times(path, steps)[-2]) ** 2  # a straight last step on a circle
    torch.testing.assert_close(x[seen], known.y.expand_as(x)[seen], atol=near, rtol=0)
    assert float(x[~seen].mean()) == pytest.approx(0.7, abs=0.025)
    assert float(x[~seen].std()) == pytest.approx(0.5, abs=0.015)


def test_the_conditional_mean_under_block_means_is_right():
    """Given the mean m of four independent elements, each has the mean m, and what varies within a
    block keeps its deviation of 0.5 * sqrt(3 / 4)."""
    small = torch.randint(256, (5, 2, 3, 3), dtype=torch.uint8)
    known = BlockMean(small, torch.ones(5, 2, 3, dtype=torch.bool), 2)
    x = draw(PATHS[0], ThroughPixels(Identity(), [known]), "consistency", 8, count=128)
    wanted = known.restore(known.y)
    torch.testing.assert_close(known.observe(x), known.y.expand(128, -1, -1, -1, -1))
    assert float((x.mean(0) - wanted).abs().mean()) < 0.05
    assert float((x - wanted).std()) == pytest.approx(0.5 * 0.75**0.5, abs=0.03)


def test_one_projection_serves_both_a_prefix_and_pixels():
    prefix, known = torch.randn(1, 3, 2, 4, 6), known_pixels()
    project = Chain(ThroughPixels(Identity(), [known]), LatentPrefix(prefix))
    x0 = torch.randn(2, *SHAPE)
    found = project(x0)
    torch.testing.assert_close(found[:, :, :2], prefix.expand(2, -1, -1, -1, -1))
    torch.testing.assert_close(found[:, :, 2:], known.project(x0)[:, :, 2:])
    torch.testing.assert_close(project(found), found)


def test_what_is_known_walks_a_straight_line_to_data():
    """On the teacher's walk the known elements are noise of one draw at every time."""
    path, known = PATHS[0], known_pixels()
    world = Gaussian(path)
    flow = ProjectedDenoiser(world, ThroughPixels(Identity(), [known]))
    eps = torch.randn(1, *SHAPE)
    t = torch.tensor([0.8])
    x_t = path.add_noise(known.start(), eps, t)
    x_s = x_t - 0.5 * flow.velocity(x_t, t, world.encode([""]))
    expected = path.add_noise(known.start(), eps, torch.tensor([0.3]))
    seen = known.mask.expand_as(x_s).bool()
    torch.testing.assert_close(x_s[seen], expected[seen])
