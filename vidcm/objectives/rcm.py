"""Consistency with regularisers on the student's own samples (RECIPES B.6, B.7).

With distribution matching it is rCM (Zheng et al. 2025, arXiv 2510.08431): consistency covers every
mode but blurs, matching sharpens but drops some; the sum does neither. With an adversarial term it
is SANA-Sprint (Chen et al. 2025, arXiv 2503.09641). Without consistency, and with both, it is DMD2
in full (Yin et al. 2024, arXiv 2405.14867).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.samplers import student_settings
from vidcm.errors import UsageError
from vidcm.objectives.base import (
    STUDENT,
    Joint,
    Loss,
    Objective,
    Role,
    check_period,
    target_network_of,
    whose_turn,
)
from vidcm.objectives.target_network import TargetNetwork
from vidcm.registry import build
from vidcm.rng import SampleRng


class RegularisedConsistency:
    """teacher, make_fake: handed on to the terms. consistency: spec of an objective without further
    networks, such as consistency_tuning. matching, adversarial: options of `distribution_matching`
    and `adversarial`, with a `weight` (1 if not given; a weight of 0 leaves the term out). every:
    the student has one turn in so many, the further networks share the others. start: the share of
    the run after which the regularisers set in; before it there is consistency alone.

    Raises UsageError when nothing is left to train for, or a spec or number makes no sense.
    """

    def __init__(
        self,
        teacher: Denoiser | None,
        make_fake: Callable[[], Denoiser] | None = None,
        consistency: dict | None = None,
        matching: dict | None = None,
        adversarial: dict | None = None,
        student_update_freq: int = 5,
        start: float = 0.0,
    ):
        self.student_update_freq, self.start = student_update_freq, start
        self.consistency: Objective | None = None
        if consistency is not None:
            self.consistency = build(
                "objective", _spec("consistency", consistency), teacher=teacher
            )
            kind = type(self.consistency)
            plain = student_settings(self.consistency)["sampler"] == "consistency"
            plain = plain and "teacher" in inspect.signature(kind).parameters  # it makes students
            if hasattr(kind, "roles") or not plain:
                raise UsageError(
                    f"consistency cannot be {consistency['name']}; use one without further networks "
                    "whose students are sampled by noising again, such as consistency_tuning"
                )
        self.terms: dict[str, tuple[float, Joint]] = {}
        known = {"distribution_matching": ("matching", matching)}
        known |= {"adversarial": ("adversarial", adversarial)}
        for name, (option, given) in known.items():
            if given is None:
                continue
            spec = {"name": name, **_spec(option, given)}
            weight = spec.pop("weight", 1.0)
            if not isinstance(weight, int | float) or isinstance(weight, bool) or weight < 0:
                raise UsageError(f"{option}.weight is {weight!r}; it must be a number, 0 or above")
            if weight:
                context = {
                    "teacher": teacher,
                    "make_fake": make_fake,
                    "student_update_freq": student_update_freq,
                }
                self.terms[option] = weight, build("objective", spec, **context)
        if not 0 <= start < 1:
            raise UsageError(f"start {start} is not in [0, 1)")
        if self.consistency is None and (start or not self.terms):
            raise UsageError("without consistency, give matching or adversarial, and start 0")
        check_period(student_update_freq, len(self.terms))

    def check(self, config: TrainConfig) -> None:
        """Raises UsageError where the consistency term would be unsound in such a run."""
        if check := getattr(self.consistency, "check", None):
            check(config)

    @property
    def roles(self) -> dict[str, Role]:
        return {k: v for _, term in self.terms.values() for k, v in term.roles.items()}

    @property
    def held(self) -> TargetNetwork | None:
        """What the consistency term holds."""
        return target_network_of(self.consistency)

    def turn(self, step: int, progress: float) -> str:
        if progress < self.start:
            return STUDENT
        return whose_turn(step, self.student_update_freq, list(self.roles))

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        losses: list[Loss] = []
        if self.consistency is not None:
            losses.append(self.consistency(model, batch, progress, rng))
        if progress >= self.start:
            for name, (weight, term) in self.terms.items():
                found = term(model, batch, progress, rng)
                logs = {**found.logs, name: found.total.detach()}
                losses.append(Loss(weight * found.total, logs))
        total, logs = losses[0].total, dict(losses[0].logs)
        for loss in losses[1:]:
            total, logs = total + loss.total, logs | loss.logs
        return Loss(total, logs)


def _spec(option: str, given: Any) -> dict:
    if not isinstance(given, Mapping):
        raise UsageError(f"{option} is {given!r}; expected a group of options")
    return dict(given)
