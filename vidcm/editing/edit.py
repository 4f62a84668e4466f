"""Editing: tasks and clips to a scene, a scene to clips."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vidcm.codecs.causal_vae import CausalVAE
from vidcm.codecs.chunked import encode_chunked
from vidcm.editing.between import interpolate
from vidcm.editing.conditioned import shown_to
from vidcm.editing.joins import drawn_to_start
from vidcm.editing.operators import Operator, Ring
from vidcm.editing.projection import Chain, LatentPrefix, Project, ThroughPixels, decoded
from vidcm.editing.scene import Canvas, Scene, Task, check, compose
from vidcm.editing.tasks import Interpolate
from vidcm.editing.walk import How, text, walk
from vidcm.errors import UsageError
from vidcm.media.pixels import to_frames, to_video
from vidcm.media.write import check_clip
from vidcm.registry import build, lookup
from vidcm.rng import SampleRng

if TYPE_CHECKING:
    from vidcm.media.clips import Clips
    from vidcm.pipeline import VideoPipeline

Asked = str | Mapping[str, Any]

# How alike a guess errs in neighbouring frames. Of 0, 0.6, 0.9, 0.97 and 1, the best PSNR of what
# the bundled model fills in between, after and before given frames.
CARRY = 0.9
MOST = 2**25  # pixels of all frames of an edit, 200 bytes each; more if the model itself makes more


def tasks_of(asked: Asked | Sequence[Asked]) -> dict[str, Task]:
    """Tasks by name, of names or of specs (`{"name": "upscale", "factor": 4}`), one or several.

    Raises UsageError for an unknown name or option, or a task asked twice."""
    several = [asked] if isinstance(asked, str | Mapping) else list(asked)
    tasks: dict[str, Task] = {}
    for one in several:
        spec = {"name": one} if isinstance(one, str) else dict(one)
        task = build("task", spec)
        if spec["name"] in tasks:
            raise UsageError(f"the task {spec['name']} is asked for twice; name it once")
        tasks[spec["name"]] = task
    if not tasks:
        raise UsageError("there is no task; name at least one")
    return tasks


def canvas_of(
    pipe: "VideoPipeline",
    role: str = "student",
    height: int | None = None,
    width: int | None = None,
) -> Canvas:
    """What a pipeline makes, of its own size or another. Raises UsageError for a size that the
    strides of codec and network do not divide."""
    stride, whole = pipe.codec.time_stride, pipe.windowed(role)
    pipe.latent_shape(role, None, height, width)
    frames, *own = (pipe.settings[k] for k in ("frames", "height", "width"))
    size = height or own[0], width or own[1]
    most = max(MOST, frames * math.prod(own)) // math.prod(size)

    def fit(frames: int) -> int:
        latents = math.ceil((frames - 1) / stride) + 1
        return (whole.room(latents) - 1) * stride + 1

    return Canvas(frames, *size, stride, fit, most)


class Known:
    """What is known of a scene, on a device: its operators, and the projection of latents.

    Raises UsageError when no clip can show all that is known."""

    def __init__(self, scene: Scene, codec: CausalVAE, device: torch.device):
        frames, seen = torch.from_numpy(scene.frames), torch.from_numpy(scene.seen)
        self.codec, self.operators = codec, list[Operator]()
        if scene.seen.any():
            options = {"block_mean": {"size": scene.size}, "pixels": {"carry": CARRY}}
            kind = lookup("operator", scene.keeps)
            also = options.get(scene.keeps, {})
            self.operators.append(kind(frames.to(device), seen.to(device), **also))
        if scene.ring:
            self.operators.append(Ring(_share(scene).to(device), len(frames)))
        prefix = _prefix(scene, codec.time_stride)
        self.prefix = to_video(frames[None, :prefix]).to(device) if prefix else None

    @property
    def project(self) -> Project:
        """Latents to the latents that agree with what is known."""
        parts: list[Project] = []
        if self.operators:
            parts.append(ThroughPixels(self.codec, self.operators))
        if self.prefix is not None:
            parts.append(LatentPrefix(encode_chunked(self.codec, self.prefix)))
        return Chain(*parts)

    def start(self) -> Tensor:
        """Latents `(1 c t h w)` of what the first operator knows, mid-grey elsewhere."""
        return encode_chunked(self.codec, self.operators[0].start())

    def finish(self, video: Tensor) -> Tensor:
        """Decoded clips to uint8 `(b t h w 3)` that keep what is known exactly."""
        for operator in self.operators:
            video = operator.blend(video)
        frames = to_frames(video)
        for operator in self.operators:
            frames = operator.exact(frames)
        return frames


def _share(scene: Scene) -> Tensor:
    """Which end of a ring gives way, from which of them are known; `(h w)`."""
    seen = torch.from_numpy(scene.seen).repeat_interleave(scene.size, 1)
    seen = seen.repeat_interleave(scene.size, 2)
    if both := int((seen[0] & seen[-1]).sum()):
        raise UsageError(
            f"a loop whose first and last frames are both given cannot close ({both} pixels of "
            "each); give a clip some frames shorter than what the model makes, or loop it alone"
        )
    free = (1 - seen[0].float() + seen[-1].float()) / 2
    return free.square()  # 1/4 where neither is: the first, in a latent of its own, is the crisper


def _prefix(scene: Scene, stride: int) -> int:
    """How many first frames are seen whole, when that is all that is seen and fills latent frames."""
    whole = scene.seen.all((1, 2)).reshape(-1)
    count = int(whole.sum())
    plain = scene.keeps == "pixels" and whole[:count].all() and not scene.seen[count:].any()
    return count if plain and count and (count - 1) % stride == 0 else 0


def edit(
    pipe: "VideoPipeline",
    asked: Asked | Sequence[Asked],
    clips: Sequence[np.ndarray],
    prompts: str | Sequence[str],
    seed: int | Sequence[int],
    how: How,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> "Clips":
    """See `VideoPipeline.edit`."""
    if not how.teacher and (phases := pipe.settings["student"].get("phases")):
        raise UsageError(
            f"the student of {pipe.folder} was trained in {phases} phases and never guesses the "
            "clean clip, which editing needs; use a student of another objective, or the teacher"
        )
    tasks = tasks_of(asked)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    check_texts(texts)
    for clip in clips:
        check_clip(clip, (3,))
    for task in tasks.values():
        if isinstance(task, Interpolate):
            if others := [name for name in tasks if tasks[name] is not task]:
                raise UsageError(
                    f"interpolate stands alone, without {', '.join(others)}; do one, then the other "
                    "with its result"
                )
            if (frames, height, width) != (None, None, None):
                raise UsageError(
                    "interpolate makes clips of the model's own frames and size; leave frames, "
                    "height and width out"
                )
            check(tasks, len(clips))
            return interpolate(
                pipe, task, clips, texts, [seed] if isinstance(seed, int) else list(seed), how
            )
    seeds = [seed + i for i in range(len(texts))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(texts):
        raise UsageError(f"{len(seeds)} seeds for {len(texts)} prompts; give one, or one for each")
    own = canvas_of(pipe, how.role, height, width)
    return render(pipe, *compose(tasks, clips, own, frames), texts, seeds, how)


def check_texts(prompts: list[str]) -> None:
    """Refuse what no text tower should be given; the empty prompt leaves all open."""
    from vidcm.conditioning.prompts import check_prompts

    check_prompts(["any" if p == "" else p for p in prompts])


@torch.no_grad()
def render(
    pipe: "VideoPipeline",
    canvas: Canvas,
    scene: Scene,
    prompts: list[str],
    seeds: list[int],
    how: How,
) -> "Clips":
    """Clips of a scene, one for each prompt and seed."""
    from vidcm.media.clips import Clips, Clock
    from vidcm.rng import SampleRngs

    given = bool(scene.seen.any()) or scene.strength is not None or scene.noise is not None
    how, codec, device = how.settled(pipe, given), pipe.codec, pipe.device
    clock = Clock(device)
    cond = text(pipe, how, prompts)
    clock("text")
    known, whole = Known(scene, codec, device), pipe.windowed(how.role)
    shape = codec.latent_shape(canvas.frames, canvas.height, canvas.width)
    rng, until = whole.recurring(SampleRngs(seeds, device)), 1.0
    noise = rng.normal(*shape)
    begin = known.start() if known.operators else torch.zeros(1, *shape, device=device)
    if scene.strength is not None:
        begin, until = encode_chunked(codec, _given(scene).to(device)), scene.strength
    elif scene.noise is not None:
        video = _given(scene).to(device)
        ratio = _ratio(codec, video, scene.noise)
        begin, until = encode_chunked(codec, video), ratio / (1 + ratio)
        noise = torch.zeros_like(noise)
    shown = shown_to(pipe, how, scene)
    project = (
        known.project if shown is None else shown if shown.all else Chain(shown, known.project)
    )
    clock("encode")
    x = walk(pipe, how, cond, begin.expand_as(noise), noise, until, project, rng, shown)
    clock("denoise")
    made = known.finish(decoded(codec, x)).cpu().numpy()
    clock("decode")
    frames = _assemble(scene, made)
    if scene.closes:
        frames = to_frames(drawn_to_start(to_video(torch.from_numpy(frames)))).numpy()
    evaluations = how.evaluations(pipe) * len(whole.windows(*shape[1:]))
    return Clips(frames, prompts, seeds, pipe.settings["fps"], evaluations, clock.seconds)


def _given(scene: Scene) -> Tensor:
    """The given frames as a video, enlarged where they are small."""
    frames = scene.frames.repeat(scene.size, 1).repeat(scene.size, 2)
    return to_video(torch.from_numpy(frames)[None])


def _ratio(codec: CausalVAE, video: Tensor, noise: float) -> float:
    """sigma / alpha of latents whose pixels hold so many grey levels of noise: what more of the
    same noise does to them."""
    more = SampleRng(0, [0], video.device).normal(*video.shape[1:]) * (noise / 127.5)
    off = encode_chunked(codec, video + more) - encode_chunked(codec, video)
    return float(off.square().mean().sqrt())


def _assemble(scene: Scene, made: np.ndarray) -> np.ndarray:
    """What is made, cut, between the frames that the model did not see."""
    around = [
        np.zeros((0, *made.shape[2:]), np.uint8) if frames is None else frames
        for frames in (scene.before, scene.after)
    ]
    before, after = (np.broadcast_to(frames, (len(made), *frames.shape)) for frames in around)
    return np.concatenate([before, made[:, : scene.last], after], 1)
