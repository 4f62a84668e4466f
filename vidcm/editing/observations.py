"""What is known of a scene, as projections of latents and as exact pixels of the result."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidcm.codecs.base import VideoCodec
from vidcm.codecs.chunked import decode_chunked, encode_chunked
from vidcm.diffusion.given_frames import GivenLatents, kinds_of
from vidcm.diffusion.projection import Chain, Project
from vidcm.editing.operators import Operator, Periodic
from vidcm.editing.scene import Scene
from vidcm.errors import UsageError
from vidcm.media.pixels import to_frames, to_video
from vidcm.registry import lookup

# Correlation of a prediction's errors in neighbouring frames. Of 0, 0.6, 0.9, 0.97 and 1, the best
# PSNR of the bundled model between, after and before given frames.
CARRY = 0.9


class LatentPrefix:
    """Projection onto the leading latent frames of a known clip.

    A causal codec encodes them alike whatever follows, so they are imposed without decoding.

    Args:
        latents: `(1, c, t, h, w)`, t at most that of the clips.
    """

    def __init__(self, latents: Tensor):
        self.latents = latents

    def __call__(self, x0: Tensor) -> Tensor:
        known = self.latents.expand(len(x0), -1, -1, -1, -1)
        return torch.cat([known, x0[:, :, known.shape[2] :]], 2)


class ThroughPixels:
    """Projection of latents through pixels: decode, apply operators in turn, encode."""

    def __init__(self, codec: VideoCodec, operators: Sequence[Operator]):
        self.codec, self.operators = codec, tuple(operators)

    def __call__(self, x0: Tensor) -> Tensor:
        video = decoded(self.codec, x0)
        for operator in self.operators:
            video = operator.project(video)
        return encode_chunked(self.codec, video)


def decoded(codec: VideoCodec, latents: Tensor) -> Tensor:
    """`codec.decode(latents)` of clips of any length, piece by piece."""
    return torch.cat(list(decode_chunked(codec, latents)), 2)


class Observations:
    """The observations of a scene on a device: operators, and the projection of latents.

    Args:
        scene: The scene.
        codec: The codec of the latents.
        device: Where to compute.

    Raises:
        UsageError: No clip can agree with all observations.
    """

    def __init__(self, scene: Scene, codec: VideoCodec, device: torch.device):
        frames, known = torch.from_numpy(scene.frames), torch.from_numpy(scene.known)
        self.codec, self.operators = codec, list[Operator]()
        if scene.known.any():
            options = {"block_mean": {"size": scene.size}, "pixels": {"carry": CARRY}}
            kind = lookup("operator", scene.operator)
            more = options.get(scene.operator, {})
            self.operators.append(kind(frames.to(device), known.to(device), **more))
        if scene.periodic:
            self.operators.append(Periodic(_ring_share(scene).to(device), len(frames)))
        prefix = _prefix(scene, codec.time_stride)
        self.prefix = to_video(frames[None, :prefix]).to(device) if prefix else None

    @property
    def project(self) -> Project:
        """Projection of latents onto those that agree with the observations."""
        parts: list[Project] = []
        if self.operators:
            parts.append(ThroughPixels(self.codec, self.operators))
        if self.prefix is not None:
            parts.append(LatentPrefix(encode_chunked(self.codec, self.prefix)))
        return Chain(*parts)

    def init_latents(self) -> Tensor:
        """Latents `(1, c, t, h, w)` of the first operator's observations, mid-grey elsewhere."""
        return encode_chunked(self.codec, self.operators[0].start())

    def finish(self, video: Tensor) -> Tensor:
        """Decoded clips to uint8 `(b, t, h, w, 3)` that agree with the observations exactly."""
        for operator in self.operators:
            video = operator.blend(video)
        frames = to_frames(video)
        for operator in self.operators:
            frames = operator.exact(frames)
        return frames


def _ring_share(scene: Scene) -> Tensor:
    """How much each end of a loop gives way, `(h w)`, by which of them is known."""
    known = torch.from_numpy(scene.known).repeat_interleave(scene.size, 1)
    known = known.repeat_interleave(scene.size, 2)
    if both := int((known[0] & known[-1]).sum()):
        raise UsageError(
            f"a loop whose first and last frames are both given cannot close ({both} pixels of "
            "each); give a clip some frames shorter than what the model makes, or loop it alone"
        )
    free = (1 - known[0].float() + known[-1].float()) / 2
    # 1/4 where neither is known: the first frame, in a latent of its own, is the sharper one.
    return free.square()


def _prefix(scene: Scene, stride: int) -> int:
    """The number of leading known frames; 0 where more is known, or they fill no latent frames."""
    complete = scene.known.all((1, 2)).reshape(-1)
    count = int(complete.sum())
    plain = scene.operator == "pixels" and complete[:count].all() and not scene.known[count:].any()
    return count if plain and count and (count - 1) % stride == 0 else 0


def network_input(
    scene: Scene, kinds: frozenset[str], codec: VideoCodec, device: torch.device
) -> GivenLatents | None:
    """Given latent frames for a model that was trained with such.

    Args:
        scene: The scene.
        kinds: Kinds of given frames the model was trained with.
        codec: The codec of the latents.
        device: Where to compute.

    Returns:
        The frames, or None where projections have to do.
    """
    frames = given_latents(scene, codec, device) if kinds else None
    return frames if frames and kinds_of(frames.given) & kinds else None


def given_latents(scene: Scene, codec: VideoCodec, device: torch.device) -> GivenLatents | None:
    """The latent frames of a scene whose frames are known entirely.

    Latents of frames after a gap depend a little on the gap (of the bundled codec's, by 3 % of
    their spread): they are those of a clip whose gaps hold the nearest known frame.

    Returns:
        The frames; None where no frame is known, or less of one than its pixels.
    """
    if scene.operator != "pixels":
        return None
    known = torch.from_numpy(scene.known.all((1, 2)))
    given = torch.cat([known[:1], known[1:].view(-1, codec.time_stride).all(1)])
    if not given.any():
        return None
    place = torch.arange(len(known))
    distance = (place[:, None] - place[known]).abs()
    nearest = place[known][distance.argmin(1)]
    video = to_video(torch.from_numpy(scene.frames)[nearest][None])
    covered = torch.cat([given[:1], given[1:].repeat_interleave(codec.time_stride)])
    beyond = scene.periodic or bool(scene.known[~covered.numpy()].any())
    return GivenLatents(encode_chunked(codec, video.to(device)), given.to(device), not beyond)
