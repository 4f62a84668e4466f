"""Sampling of one model of a pipeline: role, steps, guidance, times and solver, resolved once.

`VideoPipeline.__call__` and editing both sample through a `Generation`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from vidcm.arguments import integer, real_number
from vidcm.codecs.base import VideoCodec
from vidcm.codecs.chunked import decode_chunked
from vidcm.diffusion import samplers
from vidcm.diffusion.base import Cond, DenoiserBase
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.given_frames import GivenFramesDenoiser, GivenLatents
from vidcm.diffusion.guidance import CFGDenoiser, NegativePromptStudent
from vidcm.diffusion.projection import Project, ProjectedDenoiser
from vidcm.diffusion.times import few_step_times, shifted_timesteps, to_path_time
from vidcm.diffusion.windows import PromptSchedule, Windowed
from vidcm.errors import UsageError
from vidcm.media.pixels import to_frames
from vidcm.media.sizes import check_size
from vidcm.models.nag import AttentionGuidance
from vidcm.models.offload import Offload
from vidcm.rng import Noise
from vidcm.settings import MAX_GUIDANCE, MAX_STEPS, PipelineSettings


@dataclass(frozen=True)
class Generation:
    """How a teacher or a student of a pipeline samples.

    Attributes:
        model: The denoiser.
        codec: Its codec.
        settings: Settings of the pipeline.
        role: "student" or "teacher".
        num_inference_steps: Evaluations of a student, intervals of a teacher's solver.
        guidance_scale: Embedded guidance of a student, classifier-free guidance of a teacher.
        solver: The teacher's ODE solver.
        default_guidance: Whether the scale is the checkpoint's own.
        nag: Attention guidance against negative prompts, of a student; None for guidance of its
            predictions.
        offload: What moves the parts of the model to their device; None if they stay.
    """

    model: Denoiser
    codec: VideoCodec
    settings: PipelineSettings
    role: str
    num_inference_steps: int
    guidance_scale: float
    solver: str
    default_guidance: bool
    nag: AttentionGuidance | None = None
    offload: Offload | None = None

    @classmethod
    def resolve(
        cls,
        model: Denoiser,
        codec: VideoCodec,
        settings: PipelineSettings,
        role: str,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        negative_prompt_method: str | None = None,
        nag_scale: float | None = None,
        offload: Offload | None = None,
    ) -> Self:
        """Fill in the checkpoint's own numbers for None.

        Raises:
            UsageError: A number is of another type or out of range, or the solver unknown.
        """
        own, phases = settings.of(role), settings.student.phases
        steps = own.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = own.guidance_scale if guidance_scale is None else guidance_scale
        solver = settings.teacher.solver if solver is None else solver
        steps = integer("num_inference_steps", steps, 1, MAX_STEPS)
        scale = real_number("guidance_scale", scale, 0, MAX_GUIDANCE)
        if role == "student" and phases is not None and steps != phases:
            raise UsageError(
                f"num_inference_steps is {steps}, but this student was trained in {phases} phases "
                f"of one step each; use {phases}"
            )
        low, high = model.guidance_scales or (0.0, math.inf)
        if guidance_scale is None:
            scale = min(max(scale, low), high)
        if not low <= scale <= high:
            raise UsageError(
                f"guidance_scale is {scale:g}, but this student has {low:g} built in; leave it out"
            )
        if not isinstance(solver, str) or solver not in samplers.SOLVERS:
            raise UsageError(f"solver is {solver!r}; use {', '.join(samplers.SOLVERS)}")
        default = guidance_scale is None
        nag = AttentionGuidance.choose(model.guidance_scales, negative_prompt_method, nag_scale)
        return cls(model, codec, settings, role, steps, scale, solver, default, nag, offload)

    def with_low_guidance(self) -> "Generation":
        """The same at a student's lowest guidance scale, if the scale is the checkpoint's own.

        Where frames are given, guidance of a student adds nothing but grain.
        """
        if self.role == "teacher" or not self.default_guidance:
            return self
        low = max(1.0, self.settings.student.guidance_range[0])
        return replace(self, guidance_scale=min(self.guidance_scale, low))

    @property
    def device(self) -> torch.device:
        """Where the model works."""
        return self.offload.device if self.offload else next(self.model.parameters()).device

    @cached_property
    def denoiser(self) -> Windowed:
        """The model for clips of any size: beyond the largest trained shape in windows of it."""
        return self._windowed(self.model)

    def _windowed(self, model: Denoiser) -> Windowed:
        largest = map(max, zip(*self.settings.shapes, strict=True))
        return Windowed(model, self.codec.latent_shape(*largest)[1:])

    def latent_shape(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int, int]:
        """Latents `(c, t, h, w)` of a clip; None for the checkpoint's own numbers.

        Raises:
            UsageError: The strides of codec and network do not divide a number.
        """
        sizes = zip((num_frames, height, width), self.settings.size, strict=True)
        frames, height, width = (own if value is None else value for value, own in sizes)
        patch = self.model.backbone.patch_size
        check_size(height, width, self.codec.stride * math.lcm(*patch[1:]))
        return self.codec.latent_shape(frames, height, width)

    def pixel_shape(self, latents: Sequence[int]) -> tuple[int, int, int]:
        """Frames, height and width of a clip of latents `(t, h, w)`."""
        frames = (latents[0] - 1) * self.codec.time_stride + 1
        return frames, latents[1] * self.codec.stride, latents[2] * self.codec.stride

    def latent_position(self, frame: int) -> float:
        """Position of a pixel frame in latent frames; the first is a latent frame of its own."""
        return (frame - 1) / self.codec.time_stride + 1

    def encode(self, prompts: Sequence[str] | Cond) -> Cond:
        """Prompts, or their embeddings, to a condition with this guidance scale.

        Args:
            prompts: One per sample.
        """
        cond = prompts if isinstance(prompts, Cond) else self.model.encode(prompts)
        scale = torch.full((len(cond),), self.guidance_scale, dtype=torch.float32)
        return replace(
            cond, guidance_scale=scale.to(self.device) if self.role == "student" else None
        )

    def scheduled(self, first: Cond, schedule: Sequence[tuple[int, Sequence[str]]]) -> Cond:
        """A condition whose prompt changes along every clip.

        Args:
            first: The condition that clips begin with.
            schedule: (frame, a prompt for each clip) of the prompts that take over.
        """
        if not schedule:
            return first
        later = [self.encode(prompts) for _, prompts in schedule]
        places = [self.latent_position(frame) for frame, _ in schedule]
        return PromptSchedule.of(first, list(zip(places, later, strict=True)))

    def timesteps(self, start: float = 1.0) -> list[float]:
        """Times of the sampler on the model's path.

        Args:
            start: Where it begins, as a share of rectified-flow time from data to noise.
        """
        steps, student = self.num_inference_steps, self.settings.student
        if self.role == "teacher":
            grid = shifted_timesteps(steps, by=self.settings.teacher.shift).tolist()
        else:
            grid = few_step_times(student, steps, self.model.first_time)
        if start < 1:
            grid = [start * t / grid[0] for t in grid]
        return to_path_time(self.model.path, grid).tolist()

    def sample(
        self,
        cond: Cond,
        noise: Tensor | None,
        rng: Noise,
        *,
        negative_prompt: str | Cond = "",
        init_latents: Tensor | None = None,
        start: float = 1.0,
        project: Project | None = None,
        given: GivenLatents | None = None,
        on_step: samplers.OnStep = samplers.keep,
    ) -> Tensor:
        """Clean latents `(b, c, t, h, w)`.

        Args:
            cond: One condition per sample, of `encode`.
            noise: Unit noise `(b, c, t, h, w)`; None if `init_latents` are as noisy as `start`
                says already. Nothing is added then, and a student follows its flow map.
            rng: Noise that a consistency student adds between steps.
            negative_prompt: The prompt to move away from, or its embedding, one sample.
            init_latents: Clean latents to begin from, shaped like the noise (default: zeros).
            start: Noise put on them, as a share of rectified-flow time; 0 gives them back.
            project: Projection of every prediction of the clean latents.
            given: Given frames for a model that was trained with them.
            on_step: Called after every step.
        """
        init = (
            torch.zeros_like(noise) if noise is not None and init_latents is None else init_latents
        )
        assert init is not None
        if start == 0:
            return project(init) if project else init
        added = torch.zeros_like(init) if noise is None else noise
        denoiser, sampler = self._guided(len(init), negative_prompt), self._sampler(noise is None)
        if given is not None:
            denoiser = GivenFramesDenoiser(denoiser, given)
        if project is not None:
            denoiser = ProjectedDenoiser(denoiser, project)
        times = self.timesteps(start if noise is not None or self.role == "teacher" else 1.0)
        if noise is None and self.role == "student" and start < 1:
            times = self._lowered(times, start)
        t = torch.full((len(init),), times[0], dtype=torch.float32, device=init.device)
        x = self.model.path.add_noise(init, added, t)
        return sampler(denoiser, x, times, cond, rng, on_step)

    def _guided(self, count: int, negative_prompt: str | Cond) -> DenoiserBase:
        """The denoiser with guidance, which at scale 1 takes no further evaluation."""
        scale = self.guidance_scale
        if self.nag and negative_prompt:
            negative = self._negative(negative_prompt)
            return self._windowed(self.model.guided_by_attention(negative, self.nag))
        if scale == 1 or (self.role == "student" and not negative_prompt):
            return self.denoiser
        negative = self._negative(negative_prompt).repeat(count)
        if self.role == "teacher":
            return CFGDenoiser(self.denoiser, scale, negative)
        return NegativePromptStudent(
            self.denoiser, negative, self.model.encode([""] * count), scale
        )

    def _negative(self, prompt: str | Cond) -> Cond:
        return prompt if isinstance(prompt, Cond) else self.model.encode([prompt])

    def _sampler(self, noise_free: bool) -> samplers.Sampler:
        if self.role == "teacher":
            return samplers.SOLVERS[self.solver]
        return samplers.SAMPLERS["flow_map" if noise_free else self.settings.student.sampler]

    def _lowered(self, times: list[float], start: float) -> list[float]:
        """A student's times, with sigma / alpha lowered by one factor to begin at `start`."""
        path = self.model.path
        ratio = path.sigma_ratio(torch.tensor(times, dtype=torch.float64))
        return path.t_from_sigma(ratio * min(1.0, start / (1 - start) / float(ratio[0]))).tolist()

    def evaluations(self, shape: Sequence[int], negative_prompt: str | Cond = "") -> int:
        """Network evaluations of a clip, those of guidance and of every window counted.

        Args:
            shape: `(t, h, w)` of its latents.
            negative_prompt: As in `sample`.
        """
        steps = self.num_inference_steps
        if self.nag:
            branches = 1
        elif self.role == "teacher":
            steps = 2 * steps - 1 if self.solver == "heun" else steps
            branches = 2
        else:
            branches = 3 if negative_prompt else 1
        windows = self.denoiser.windows(shape[0], shape[1], shape[2])
        return steps * (1 if self.guidance_scale == 1 else branches) * len(windows)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels uint8 `(b, t, h, w, 3)` on the CPU, piece by piece."""
        pieces = decode_chunked(self.codec, latents)
        return torch.cat([to_frames(video).cpu() for video in pieces], dim=1)
