"""A student of a public model, as exports read it."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.experts import Experts
from vidcm.diffusion.parameterization import FlowPrediction, VPrediction
from vidcm.diffusion.times import few_step_times, to_path_time
from vidcm.errors import UsageError
from vidcm.export import student_facts
from vidcm.families.base import Family
from vidcm.families.component import read_config
from vidcm.families.denoiser import PublicDenoiser
from vidcm.families.pipeline_folder import INDEX
from vidcm.registry import lookup
from vidcm.settings import StudentSettings
from vidcm.store import load_model, read_card

PREFIX = "backbone.transformer."
PREDICTIONS = {FlowPrediction: "flow_prediction", VPrediction: "v_prediction"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PublicStudent:
    """A student with the weights that an export stores.

    Attributes:
        folder: Its model folder.
        card: The model card.
        denoiser: The model, in float32.
        settings: Its sampling.
        dtype: Precision that exports store.
        low: The student below the boundary of noise, where a pipeline has two networks.
    """

    folder: Path
    card: dict[str, Any]
    denoiser: PublicDenoiser
    settings: StudentSettings
    dtype: torch.dtype
    low: "PublicStudent | None" = None

    @cached_property
    def sampled(self) -> Denoiser:
        """What is sampled: the model, or both."""
        if self.low is None:
            return self.denoiser
        assert self.base is not None
        boundary = read_config(self.base.parent, INDEX)["boundary_ratio"]
        return Experts(self.denoiser, self.low.denoiser, boundary)

    @property
    def family(self) -> Family:
        return self.denoiser.backbone.family

    @property
    def transformer(self) -> Any:
        """diffusers' module."""
        return self.denoiser.backbone.transformer

    @property
    def base(self) -> Path | None:
        """The folder `transformer` that it is a student of, if it has the text tower of one."""
        base = self.card["spec"].get("base")
        return None if base is None else Path(base)

    @property
    def step_counts(self) -> list[int]:
        """Numbers of steps that it can be sampled with."""
        phases = self.settings.phases
        return [phases] if phases else list(range(1, self.settings.max_inference_steps + 1))

    @property
    def high_steps(self) -> int:
        """Of its default steps those above the boundary between two networks."""
        assert self.base is not None
        boundary = read_config(self.base.parent, INDEX)["boundary_ratio"]
        times = few_step_times(
            self.settings, self.settings.num_inference_steps, self.denoiser.first_time
        )
        return sum(time >= boundary for time in times)

    @property
    def checked_counts(self) -> list[int]:
        """Those that an export is compared at."""
        return [n for n in self.step_counts if n in (1, 2, 4)] or self.step_counts

    @property
    def prediction_type(self) -> str:
        """What the network predicts, in diffusers' words."""
        return PREDICTIONS[type(self.denoiser.parameterization)]

    def times(self, steps: int) -> Tensor:
        """Times of its steps on its path, float32."""
        found = few_step_times(self.settings, steps, self.denoiser.first_time)
        return to_path_time(self.denoiser.path, found).float()

    def schedule(self, steps: int) -> dict[str, list[float]]:
        """Times on the network's clock, and scales of data and noise in its input."""
        network, path, t = self.denoiser.parameterization, self.denoiser.path, self.times(steps)
        alpha, sigma = path.alpha(t), path.sigma(t)
        size = network.size(alpha, sigma)
        clock = network.clock(alpha, sigma).float()
        return {
            "timesteps": clock.tolist(),
            "alphas": (alpha / size).tolist(),
            "sigmas": (sigma / size).tolist(),
        }

    @cached_property
    def kept_precise(self) -> tuple[str, ...]:
        """Parts of names that diffusers keeps in float32."""
        return tuple(type(self.transformer)._keep_in_fp32_modules or ())

    def stored(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor in the precision of the export."""
        precise = any(part in name.split(".") for part in self.kept_precise)
        return tensor if precise else tensor.to(self.dtype)

    def round_weights(self) -> None:
        """Give the model the weights that exports in this precision have."""
        for name, p in self.transformer.named_parameters():
            p.data = self.stored(name, p.data).float()
        if self.low is not None:
            self.low.round_weights()

    def weights(self) -> dict[str, Tensor]:
        """The network's tensors as an export stores them, by diffusers' names."""
        return {k: self.stored(k, v) for k, v in self.transformer.state_dict().items()}


def load_student(
    folder: str | Path, steps: int = 4, shift: float | None = None, storage: str = "bf16"
) -> PublicStudent:
    """Load a student for an export.

    Args:
        folder: Its model folder.
        steps: Default number of steps, which consumers are told.
        shift: Resolution shift of its times (default: its own, or its pipeline's).
        storage: A key of `DTYPES`.

    Raises:
        UsageError: The folder holds no student of a public model, or it has other steps or times.
        VidcmError: It is damaged.
    """
    card = read_card(folder)
    kind: Any = lookup("model", card["spec"].get("name"))
    if not issubclass(kind, PublicDenoiser) or not kind.spec_is_student(card["spec"]):
        what = "a teacher" if issubclass(kind, PublicDenoiser) else f"a {kind.__name__}"
        raise UsageError(
            f"{folder} holds {what}; this export is for students of public models, whose spec has "
            "base and guidance_scale (others: vidcm export --codec --teacher --student)"
        )
    model: PublicDenoiser = load_model(folder, PublicDenoiser)
    settings = StudentSettings(
        steps, float(card["spec"]["guidance_scale"]), **student_facts(folder)
    )
    settings = _with_shift(settings, shift, folder)
    student = PublicStudent(Path(folder), card, model, settings, DTYPES[storage])
    if steps not in student.step_counts:
        known = ", ".join(map(str, student.step_counts))
        raise UsageError(f"--steps is {steps}, but {folder} is a student of {known} steps; use it")
    if settings.timesteps and settings.timesteps[0] != 1:
        raise UsageError(
            f"{folder} starts at time {settings.timesteps[0]:g}; pipelines of public models start "
            "from pure noise, time 1"
        )
    return student


def with_low(high: PublicStudent, low: PublicStudent) -> PublicStudent:
    """The students of both networks of a pipeline as one.

    Raises:
        UsageError: They are not of the two networks of one pipeline, or are sampled otherwise.
    """
    parts = [None if one.base is None else one.base.resolve() for one in (high, low)]
    root = None if parts[0] is None else parts[0].parent
    if root is None or parts != [root / "transformer", root / "transformer_2"]:
        raise UsageError(
            "--student and --student-2 must be students of transformer and transformer_2 of one "
            f"pipeline, and are of {high.base} and {low.base}"
        )
    if not read_config(root, INDEX).get("boundary_ratio"):
        raise UsageError(f"{root} has no boundary_ratio between two networks")
    own, other = (replace(one.settings, guidance_scale=1.0) for one in (high, low))
    own, other = (replace(one, guidance_range=(1.0, 1.0)) for one in (own, other))
    if own != other:
        raise UsageError(
            f"{high.folder} is sampled by {own.sampler} at other times or steps than {low.folder} "
            f"by {other.sampler}; train both with the same objective"
        )
    return replace(high, low=low)


def _with_shift(
    settings: StudentSettings, shift: float | None, folder: str | Path
) -> StudentSettings:
    if shift is None:
        return settings
    if settings.timesteps:
        times = ", ".join(f"{t:.4g}" for t in settings.timesteps)
        raise UsageError(f"{folder} was trained for the times {times}; leave out --shift")
    return replace(settings, shift=shift, lowest_sigma=None)
