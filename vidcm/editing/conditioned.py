"""Given frames for models that were trained with them (`vidcm/diffusion/given_frames.py`): the network is shown them
clean and at time 0 at every step, where a model without can only have its guesses projected.

These denoisers are about what a network sees; what it says of given frames is for a projection to
overrule, so they go inside `Observing` or `ObservingFlow` with `GivenLatents` as the last of the
projections.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.chunked import encode_chunked
from vidcm.diffusion.base import Cond, DenoiserBase, Prediction
from vidcm.diffusion.given_frames import hold, kinds_of, trained_with
from vidcm.editing.scene import Scene
from vidcm.media.pixels import to_video
from vidcm.store import read_card

if TYPE_CHECKING:
    from vidcm.editing.walk import How
    from vidcm.pipeline import VideoPipeline


class GivenLatents:
    """Latent frames that are given, and their projection. latents: `(1 c t h w)`, of which `given`,
    bool `(t,)`, says which frames count. all: whether nothing else is known of the clip, so that no
    other projection is needed."""

    def __init__(self, latents: Tensor, given: Tensor, all: bool = True):
        self.latents, self.given, self.all = latents, given, all

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.given.view(-1, 1, 1), self.latents, x)

    def times(self, t: Tensor) -> Tensor:
        """Times `(b,)` per frame, `(b, t)`."""
        return hold(t, self.given.expand(len(t), -1))


class GivenFramesDenoiser(DenoiserBase):
    """A denoiser with given frames as input: they are clean and at time 0 in every evaluation.

    Its output on them is undefined and replaced by a projection: wrap it in `ProjectedDenoiser`
    with the same `GivenLatents`."""

    def __init__(self, denoiser: DenoiserBase, frames: GivenLatents):
        self.denoiser, self.frames, self.path = denoiser, frames, denoiser.path

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, s: Tensor | None = None) -> Prediction:
        target = None if s is None else self.frames.times(s)
        return self.denoiser.predict(self.frames(x_t), self.frames.times(t), cond, target)


def shown_to(pipe: "VideoPipeline", how: "How", scene: Scene) -> GivenLatents | None:
    """What the network is shown of a scene: its given latent frames, if it was trained with such;
    None leaves it all to projections."""
    trained = set() if how.zero_shot else trained_with(read_card(pipe.folder / how.role))
    frames = given_latents(scene, pipe.codec, pipe.device) if trained else None
    return frames if frames and kinds_of(frames.given) & trained else None


def given_latents(scene: Scene, codec: CausalVAE, device: torch.device) -> GivenLatents | None:
    """The latent frames of a scene whose frames are all seen whole; None where there is none, or
    less is known of them than pixels.

    Latents of frames after a gap depend a little on what fills it (of the bundled codec's, by 3 %
    of their spread): they are those of a clip whose gaps hold the nearest seen frame."""
    if scene.keeps != "pixels":
        return None
    seen = torch.from_numpy(scene.seen.all((1, 2)))
    given = torch.cat([seen[:1], seen[1:].view(-1, codec.time_stride).all(1)])
    if not given.any():
        return None
    place = torch.arange(len(seen))
    distance = (place[:, None] - place[seen]).abs()
    nearest = place[seen][distance.argmin(1)]
    video = to_video(torch.from_numpy(scene.frames)[nearest][None])
    held = torch.cat([given[:1], given[1:].repeat_interleave(codec.time_stride)])
    beyond = scene.ring or bool(scene.seen[~held.numpy()].any())
    return GivenLatents(encode_chunked(codec, video.to(device)), given.to(device), not beyond)
