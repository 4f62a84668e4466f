"""Few-step sampling of a distilled video model in the pipelines of diffusers.

This file travels in the folder `scheduler` of exported models and needs diffusers alone. The times
of every number of steps are written in `scheduler_config.json`.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor


def generators_of(latents: Tensor) -> list[torch.Generator]:
    """A generator for each sample, seeded by its latents.

    Pipelines give schedulers no generator, so the noise of later steps follows from that of the
    first: the same seed is the same clip, in any batch.

    Args:
        latents: The noise that sampling starts from, one row per sample.
    """
    rows = latents.detach().to("cpu", torch.float32).contiguous()
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in rows]
    return [torch.Generator().manual_seed(int.from_bytes(d[:7], "little")) for d in digests]


def draw(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Unit noise `(b, *shape)`, drawn on the CPU so that every device gets the same."""
    return torch.stack([torch.randn(*shape, generator=g) for g in generators])


class FewStepScheduler(SchedulerMixin, ConfigMixin):
    """As many evaluations as steps, each of which predicts the clean clip x0 and the noise eps.

    From latents a x0 + s eps a stochastic step goes to a' x0 + s' eps' with fresh noise eps' (Song
    et al. 2023, arXiv 2303.01469, algorithm 1), another one to a' x0 + s' eps; the last to x0.

    Args:
        schedules: For each number of steps, as text, lists `timesteps` (what the network is told),
            `alphas` and `sigmas` (a and s) of those steps.
        prediction_type: "flow_prediction" for eps - x0 of latents with a + s = 1, "v_prediction"
            for a eps - s x0 of latents with a^2 + s^2 = 1.
        stochastic: Whether steps add fresh noise.
        num_train_timesteps: The time of pure noise.
    """

    _compatibles: list[str] = []
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        schedules: dict[str, dict[str, list[float]]],
        prediction_type: str = "flow_prediction",
        stochastic: bool = True,
        num_train_timesteps: int = 1000,
    ):
        self.timesteps, self.sigmas = torch.empty(0), torch.empty(0)
        self.step_index: int | None = None
        self.begin_index: int | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Take up the times of a number of steps.

        Args:
            num_inference_steps: One of those in `schedules`.
            device: Of the times.
            sigmas: LTX's pipeline gives its stock grid instead of a number; its length counts.
            mu: The shift of that grid, which these times do not use.

        Raises:
            ValueError: The model has no times for this number.
        """
        count = len(sigmas) if num_inference_steps is None and sigmas is not None else None
        key = str(num_inference_steps if count is None else count)
        schedules: dict[str, Any] = self.config["schedules"]
        if key not in schedules:
            raise ValueError(
                f"this model has no times for {key} steps; use num_inference_steps="
                f"{', '.join(schedules)}"
            )
        found = schedules[key]
        self._alphas, self._sigmas = [*found["alphas"], 1.0], [*found["sigmas"], 0.0]
        self.timesteps = torch.tensor(found["timesteps"], dtype=torch.float32, device=device)
        self.sigmas = torch.tensor(self._sigmas, dtype=torch.float32)
        self.step_index = self.begin_index = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """The step that sampling starts at."""
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Latents are the network's input as they are."""
        return sample

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """The latents of the next time.

        Args:
            model_output: Of the network.
            timestep: The time of the latents, which follow one another from the first on.
            sample: Latents, one row per clip.
            return_dict: A `SchedulerOutput` instead of a tuple.
        """
        if self.step_index is None:
            self.step_index = self.begin_index or 0
            self._generators = generators_of(sample)
        a, s = self._alphas[self.step_index], self._sigmas[self.step_index]
        self.step_index += 1
        to_a, to_s = self._alphas[self.step_index], self._sigmas[self.step_index]
        z, out = sample.float(), model_output.float()
        flow = self.config["prediction_type"] == "flow_prediction"
        x0 = z - s * out if flow else a * z - s * out
        eps = z + a * out if flow else s * z + a * out
        if self.config["stochastic"] and to_s:
            eps = draw(self._generators, sample.shape[1:]).to(sample.device)
        after = (to_a * x0 + to_s * eps).to(sample.dtype)
        return SchedulerOutput(prev_sample=after) if return_dict else (after,)
