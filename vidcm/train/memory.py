"""The memory of a training run, per rank, from its config alone.

Weights, gradients, optimizer and average follow from numbers of parameters and the ZeRO stage. What
a step needs beyond is counted by running it on the meta device (`meter`): exact but for the work
space of kernels and what an allocator loses to fragments. What the text tower of a public pipeline
computes with is not counted; its weights are. The buffers of DeepSpeed are those of 0.19.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vidcm.codecs.base import VideoCodec
from vidcm.config import TrainConfig
from vidcm.data.batch import Batch, MicroBatch
from vidcm.data.latents import LatentShards
from vidcm.diffusion.control import Control
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.errors import UsageError, VidcmError
from vidcm.families.text import PipelineText
from vidcm.objectives.base import STUDENT
from vidcm.registry import build
from vidcm.store import read_card
from vidcm.train.checkpoint_writer import state_size
from vidcm.train.denoiser_task import DenoiserParts, denoiser_parts
from vidcm.train.engine import TrainStep
from vidcm.train.layout import Layout
from vidcm.train.meter import META, backward, metered
from vidcm.train.roles import RoleObjective
from vidcm.train.setup import Models
from vidcm.train.tasks import make_model

CPU = torch.device("cpu")  # of draws and times, which methods decide by
CACHED = {"latents", "lpc_latents"}  # data that need no codec in a step
PREVIEWED = 6  # clips of a preview


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    Attributes:
        parts: What stays through a step, by name, all gradients included.
        work: Activations and everything else that comes and goes, at the peak of a step.
        preview: The most that rank 0 holds in a preview, parts included.
        checkpoint: A checkpoint, in the memory of rank 0's host.
    """

    parts: dict[str, int]
    work: int
    preview: int
    checkpoint: int

    @property
    def step(self) -> int:
        """The peak of a step."""
        return sum(self.parts.values()) + self.work

    @property
    def peak(self) -> int:
        """The peak of a run."""
        return max(self.step, self.preview)


class EmptyModels(Models):
    """Networks without data: of model folders the cards are read alone."""

    def build(self, spec: dict[str, Any]) -> Any:
        with META:
            model = super().build(spec)
        if isinstance(model, Denoiser) and isinstance(model.conditioner, PipelineText):
            model.conditioner = EmptyText(model.conditioner)
        return model

    def start(self, model: nn.Module, folder: str) -> None:
        pass

    start_text = start

    def load(self, folder: str, kind: type, device: torch.device) -> Any:
        model = self.build(read_card(folder)["spec"])
        if not isinstance(model, kind):
            raise UsageError(f"{folder} holds a {type(model).__name__}, not a {kind.__name__}")
        return model.eval().requires_grad_(False).float()


class EmptyText:
    """Tokens of full length without data, in the place of a pipeline's text tower."""

    def __init__(self, tower: PipelineText):
        self.tower, self.hidden_size = tower, tower.hidden_size
        self.max_words = tower.family.text_length

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        size = len(prompts), self.max_words
        tokens = torch.empty(*size, self.hidden_size, device=META)
        return tokens, torch.ones(size, dtype=torch.bool, device=META)


def estimate(
    config: TrainConfig, world: int = 1, clip: Sequence[int] | None = None, *, foreach: bool = True
) -> Memory:
    """The memory of a run that trains a denoiser.

    Args:
        config: Of the run, with precision fp32 or bf16.
        world: Number of ranks.
        clip: Frames, height and width; by default of the data's largest or first clip.
        foreach: Whether the optimizer works on all tensors at once, as on GPUs.

    Raises:
        UsageError: The parts of the config do not fit together, or the model is no denoiser.
    """
    if config.sequence_parallel > 1:
        raise UsageError(
            "the memory of sequence_parallel is not estimated; leave it out for an upper bound, "
            "with gradient_accumulation_steps that leave each rank the clips of a group"
        )
    models, layout = EmptyModels(), Layout(config, world, foreach=foreach)
    student = make_model(replace(config, compile=False), META, models)
    if not isinstance(student, Denoiser):
        raise UsageError(
            f"the memory of a {config.model['name']} is not estimated; denoisers' alone is"
        )
    found = denoiser_parts(config, student, META, models)
    data = _data(config, needed=clip is None)
    if clip is None:
        shape = _latent_shape(config, found.codec, data)
    else:
        shape = found.codec.latent_shape(*clip)
    steps = {STUDENT: TrainStep(student, found.objective, CPU)}
    shares = {STUDENT: layout.of(student)}
    for name, role in found.objective.roles.items():
        module = role.module.to(META)
        steps[name] = TrainStep(module, RoleObjective(role, student), CPU)
        shares[name] = layout.of(module, averaged=False)
    own, towers = shares[STUDENT], _towers(student, found.teacher)
    if isinstance(data, LatentShards) and data.text is not None:
        towers = []  # its tokens are read
    if config.data["name"] not in CACHED and student.control is not None:
        towers += [tower.without_data() for tower in student.control.towers()]
    parts = own.lasting | {
        "gradients": own.gradients,
        "further networks": sum(
            sum(share.lasting.values()) + share.left
            for name, share in shares.items()
            if name != STUDENT
        ),
        "target network": _bytes(student) if found.objective.target else 0,
        "teacher": _bytes(found.teacher) if found.teacher else 0,
        "codec": _bytes(found.codec),
        "text towers": sum(map(_bytes, towers)),
    }
    copy = _bytes(student)  # of a preview
    checkpoint = state_size(student, found.objective)
    for step in steps.values():
        step.bf16 = layout.bf16
        layout.cast(step.model)
    works, prompts = {}, [_longest_prompt(student)] * layout.micro
    latents = torch.empty(layout.micro, *shape, device=META)
    control = _control(student, shape, layout.micro)
    batch = Batch(prompts, latents=latents, control=control)
    for name, step in steps.items():
        share = shares[name]
        work = max(
            _step_work(step, config, batch, layout) - share.whole, share.update - share.gradients
        )
        # The turns of others are without the student's gradients.
        works[name] = work + share.gradients - share.left - own.gradients + own.left
    work = max(works.values())
    if config.data["name"] not in CACHED:
        work = max(work, _encode_work(found.codec, shape, layout.micro))
    preview = sum(parts.values()) - own.gradients + own.left + copy
    preview += _preview_work(student, found, shape)
    return Memory({k: v for k, v in parts.items() if v}, work, preview, checkpoint)


def _step_work(step: TrainStep, config: TrainConfig, batch: Batch, layout: Layout) -> int:
    """The most that the passes of a step hold, with the gradients that they leave."""
    if layout.stage >= 2:  # a gradient goes to its owner as soon as it is there
        for parameter in step.model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    part = MicroBatch(batch, config.seed, list(range(layout.micro)))
    with metered() as meter:
        for _ in range(min(config.gradient_accumulation_steps, 2)):
            loss, logs = step(part, 1 - 1 / config.steps)
            backward(loss)
            del loss, logs
    read = batch.control.tensors() if batch.control else {}
    return sum(x.nbytes for x in (batch.latents, *read.values()) if x is not None) + meter.peak


@torch.no_grad()
def _preview_work(student: Denoiser, found: DenoiserParts, shape: Sequence[int]) -> int:
    """The most that sampling and decoding the clips of a preview hold."""
    x, t = torch.empty(PREVIEWED, *shape, device=META), torch.ones(PREVIEWED)
    sampled = found.teacher or student
    control = _control(student, shape, PREVIEWED)
    with metered() as meter:
        cond = sampled.encode([_longest_prompt(sampled)] * PREVIEWED).with_control(control)
        if found.teacher or found.objective.sampling is None:
            CFGDenoiser(sampled, 3.0, cond).predict(x, t, cond)
        else:
            sampled.predict(x, t, cond)
        found.codec.decode(x)
    return x.numel() * x.element_size() + meter.peak


def _control(network: Denoiser, shape: Sequence[int], clips: int) -> Control | None:
    """What a network needs beside text, without data."""
    source = network.control
    if source is None or not source.required:
        return None
    sizes = source.sizes(shape).items()
    return Control(**{name: torch.empty(clips, *size, device=META) for name, size in sizes})


@torch.no_grad()
def _encode_work(codec: VideoCodec, shape: Sequence[int], clips: int) -> int:
    """The most that encoding the clips of a step holds."""
    frames = (shape[1] - 1) * codec.time_stride + 1
    with metered() as meter:
        size = frames, shape[2] * codec.stride, shape[3] * codec.stride
        codec.encode(torch.empty(clips, 3, *size, device=META))
    return meter.peak


def _data(config: TrainConfig, *, needed: bool) -> Any:
    """The data set; None for one that is not needed and is not there or takes long to open."""
    if needed:
        return build("data", config.data, batch_size=config.batch_size)
    if config.data["name"] == "latents":
        with suppress(VidcmError):
            return build("data", config.data, batch_size=config.batch_size)
    return None


def _latent_shape(config: TrainConfig, codec: VideoCodec, data: Any) -> tuple[int, ...]:
    """Latents `(c, t, h, w)` of the largest or first clip of the data."""
    if isinstance(data, LatentShards):
        return max(data.shapes, key=math.prod)
    first = data.batch(config.seed, [0])
    if first.latents is not None:
        return tuple(first.latents.shape[1:])
    return codec.latent_shape(*first.frames.shape[1:4])


def _towers(*networks: Denoiser | None) -> list[nn.Module]:
    """The text towers of pipelines, each once, without data."""
    texts = [n.conditioner for n in networks if n and isinstance(n.conditioner, EmptyText)]
    return [tower.without_data() for tower in {t.tower.root: t.tower for t in texts}.values()]


def _longest_prompt(network: Denoiser) -> str:
    return " ".join(["word"] * network.conditioner.max_words)


def _bytes(module: nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in [*module.parameters(), *module.buffers()])
