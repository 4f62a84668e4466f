"""Given frames: known latent frames, which the network sees clean while it generates the others.

They are at time 0 of their own: time per frame (Chen et al. 2024, arXiv 2407.01392), random masks
of past and future frames (Voleti et al. 2022, arXiv 2205.09853). A mask is bool, True where a frame
is given; None stands for no frame of any sample.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vidcm.config import TrainConfig
from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.paths import ProbPath
from vidcm.diffusion.shapes import like
from vidcm.errors import UsageError
from vidcm.rng import SampleRng
from vidcm.schema import suggest
from vidcm.store import read_card

KINDS = ("first", "last", "both", "random")


class GivenFrames:
    """Draws which latent frames of training samples are given.

    "first" is a beginning of any length, "last" an end, "both" frames at each end, "random" any
    subset. At least one frame stays unknown; clips too short for the drawn kind get no given
    frames.

    Args:
        shares: Share of samples by kind, at most 1 in all; the other samples get no given frames.

    Raises:
        UsageError: A kind is unknown, or the shares make no sense.
    """

    def __init__(self, shares: Mapping[str, float] | None = None):
        if shares is not None and not isinstance(shares, Mapping):
            raise UsageError(f"given_frames is {shares!r}; write it as {{first: 0.3, last: 0.1}}")
        self.shares = dict(shares or {})
        for kind, share in self.shares.items():
            if kind not in KINDS:
                raise UsageError(
                    f"given_frames has no kind {kind!r}{suggest(str(kind), list(KINDS))}"
                )
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                raise UsageError(
                    f"given_frames.{kind} is {share!r}; it must be a share of samples, 0 to 1"
                )
        if (total := sum(self.shares.values())) > 1 + 1e-6:
            raise UsageError(
                f"the shares of given_frames add up to {total:g}; they must not exceed 1"
            )

    @property
    def kinds(self) -> set[str]:
        """The kinds that are drawn at all."""
        return {kind for kind, share in self.shares.items() if share}

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def draw(self, rng: SampleRng, frames: int) -> Tensor | None:
        """A mask `(b, frames)`; None, and nothing drawn, without shares."""
        if not self:
            return None
        u, v, w, *ranks = rng.uniform(3 + frames).unbind(1)
        place = torch.arange(frames, device=u.device)
        count = 1 + _below(v, frames - 1)
        ends = 2 + _below(v, frames - 2)
        left = 1 + _below(w, ends - 1)
        masks = {
            "first": place < count,
            "last": place >= frames - count,
            "both": (frames > 2) & ((place < left) | (place >= frames - ends + left)),
            "random": torch.stack(ranks, 1).argsort(1).argsort(1) < count,
        }
        given, reached = torch.zeros(len(u), frames, dtype=torch.bool, device=u.device), 0.0
        for kind, share in self.shares.items():
            drawn = (reached <= u) & (u < reached + share)
            given |= drawn[:, None] & masks[kind] & (frames > 1)
            reached += share
        return given

    def check(self, config: TrainConfig) -> None:
        """Refuse a run whose given frames the network or the teacher would not see.

        Raises:
            UsageError: The run cannot use them.
        """
        patch = config.model.get("backbone", {}).get("patch_size", (1,))
        if self and patch[0] != 1:
            raise UsageError(
                "objective.given_frames needs tokens of one latent frame, and "
                f"model.backbone.patch_size is {list(patch)}; let it begin with 1"
            )
        if self and config.teacher is not None:
            known = read_card(config.teacher)["spec"].get("given_frames", ())
            if unknown := sorted(self.kinds.difference(known)):
                raise UsageError(
                    f"objective.given_frames asks for {', '.join(unknown)}, which the teacher "
                    f"{config.teacher} was not trained with; train one with the same given_frames, "
                    "or go without a teacher"
                )


def _below(u: Tensor, count: Tensor | int) -> Tensor:
    """Whole numbers 0 .. count - 1 of uniform `(b,)` ones, `(b, 1)`; 0 where count is 0."""
    return (u[:, None] * count).floor()


def hold(t: Tensor, given: Tensor | None) -> Tensor:
    """Times `(b,)` per frame `(b, t)`: 0 where given. They stay as they are without a mask."""
    return t if given is None else t[:, None].masked_fill(given, 0)


def free_mean(x: Tensor, given: Tensor | None) -> Tensor:
    """The mean of `x (b c t h w)` over the frames of each sample that are not given, `(b,)`."""
    if given is None:
        return x.flatten(1).mean(1)
    free = (~given).to(x.dtype)
    return (x.mean((1, 3, 4)) * free).sum(1) / free.sum(1)


def kinds_of(given: Tensor) -> set[str]:
    """The kinds that a mask `(t,)` is of; none when all frames are given, or no frame is."""
    marks = given.tolist()
    free = [i for i, mark in enumerate(marks) if not mark]
    if len(free) in (0, len(marks)):
        return set()
    whole = free[-1] - free[0] + 1 == len(free)
    kinds = {"random"}
    if whole and free[-1] == len(marks) - 1:
        kinds.add("first")
    elif whole and free[0] == 0:
        kinds.add("last")
    elif whole:
        kinds.add("both")
    return kinds


class GivenLatents:
    """Given latent frames of a clip, and the projection onto them.

    Args:
        latents: `(1, c, t, h, w)`; only given frames count.
        given: bool `(t,)`, True where a frame is given.
        complete: Whether they are all that is known of the clip, so that no other projection is
            needed.
    """

    def __init__(self, latents: Tensor, given: Tensor, complete: bool = True):
        self.latents, self.given, self.complete = latents, given, complete

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.given.view(-1, 1, 1), self.latents, x)

    def times(self, t: Tensor) -> Tensor:
        """Times `(b,)` per frame `(b, t)`: 0 where given."""
        return hold(t, self.given.expand(len(t), -1))


class GivenFramesDenoiser(DenoiserBase):
    """A denoiser with given frames as input: they are clean and at time 0 in every evaluation.

    Its output on them is undefined: wrap it in `ProjectedDenoiser` with the same `GivenLatents`.

    Args:
        denoiser: A denoiser trained with given frames.
        frames: The given frames.
    """

    def __init__(self, denoiser: DenoiserBase, frames: GivenLatents):
        self.denoiser, self.frames, self.path = denoiser, frames, denoiser.path

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        target = None if s is None else self.frames.times(s)
        return self.denoiser.predict(self.frames(x_t), self.frames.times(t), cond, target)


class FirstFrames:
    """The first latent frames of each sample, which a network sees clean and which stay.

    Args:
        latents: `(b, c, k, h, w)`.
        frames: Latent frames of the clips.
    """

    def __init__(self, latents: Tensor, frames: int):
        self.latents, self.count = latents, latents.shape[2]
        self.given = torch.arange(frames, device=latents.device) < self.count

    def __call__(self, x: Tensor) -> Tensor:
        """Clips `(b c t h w)` with these frames."""
        return torch.cat([self.latents.to(x), x[:, :, self.count :]], 2)

    def times(self, t: Tensor) -> Tensor:
        """Times `(b,)` or `(b, t)` per frame: 0 where given."""
        own = t[:, None].expand(-1, len(self.given)) if t.ndim == 1 else t
        return own.masked_fill(self.given, 0)

    def prediction(self, found: Prediction, x_t: Tensor, t: Tensor, path: ProbPath) -> Prediction:
        """A prediction in which the frames are as given, and their noise leads from them to x_t.

        They then stay on their line from data to noise, for every sampler and objective. At t = 0
        there is no noise, and it is taken for 0.

        Args:
            found: The network's.
            x_t: Noisy latents `(b c t h w)`.
            t: Their times.
            path: Of both.
        """
        alpha, sigma = (like(f(t), x_t) for f in (path.alpha, path.sigma))
        x0 = self(found.x0)
        line = (x_t - alpha * x0) / torch.where(sigma == 0, torch.inf, sigma)
        mark = self.given.view(-1, 1, 1)
        eps = torch.where(mark, line, found.eps)
        return Prediction(x0, eps, torch.where(mark, path.velocity(x0, line, t), found.v))
