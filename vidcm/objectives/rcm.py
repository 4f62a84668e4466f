"""Consistency with regularisers on the student's own samples (RECIPES B.6, B.7).

With distribution matching it is rCM (Zheng et al. 2025, arXiv 2510.08431): consistency covers every
mode but blurs, matching sharpens but drops some; the sum does neither. With an adversarial term it
is SANA-Sprint (Chen et al. 2025, arXiv 2503.09641). Without consistency, and with both, it is DMD2
in full (Yin et al. 2024, arXiv 2405.14867).
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from vidcm.config import TrainConfig
from vidcm.data.batch import Batch
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.objectives.base import STUDENT, Loss, Objective, Role, check_period
from vidcm.objectives.common import StudentObjective
from vidcm.registry import build
from vidcm.rng import SampleRng

REGULARISERS = {"matching": "distribution_matching", "adversarial": "adversarial"}


class RegularisedConsistency(Objective):
    """The sum of a consistency loss and regularisers.

    Args:
        teacher: For the terms.
        make_fake: For distribution matching.
        consistency: Spec of an objective without further networks, such as consistency_tuning.
        matching: Options of `distribution_matching` and a `weight`, 1 by default; 0 drops the term.
        adversarial: Options of `adversarial` and a `weight`, likewise.
        student_update_freq: The student has one step in so many, the further networks share the
            others.
        start: Share of the run after which the regularisers set in.

    Raises:
        UsageError: No term is left, or an option makes no sense.
    """

    trains = Denoiser
    uses_teacher = True

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
        self.consistency = _consistency(consistency, teacher)
        self.terms: dict[str, tuple[float, StudentObjective]] = {}
        for option, options in (("matching", matching), ("adversarial", adversarial)):
            if options is None:
                continue
            spec = {"name": REGULARISERS[option], **_group(option, options)}
            weight = spec.pop("weight", 1.0)
            if not isinstance(weight, int | float) or isinstance(weight, bool) or weight < 0:
                raise UsageError(f"{option}.weight is {weight!r}; it must be a number, 0 or above")
            if weight:
                context = {"make_fake": make_fake, "student_update_freq": student_update_freq}
                self.terms[option] = weight, build("objective", spec, teacher=teacher, **context)
        if not 0 <= start < 1:
            raise UsageError(f"start {start} is not in [0, 1)")
        if self.consistency is None and (start or not self.terms):
            raise UsageError("without consistency, give matching or adversarial, and start 0")
        self.role_names = tuple(n for _, term in self.terms.values() for n in term.role_names)
        check_period(student_update_freq, len(self.role_names))
        first = self._objectives()[0]
        self.guidance_range, self.given_mask = first.guidance_range, first.given_mask
        self.target = first.target

    def _objectives(self) -> list[StudentObjective]:
        consistency = [self.consistency] if self.consistency else []
        return consistency + [term for _, term in self.terms.values()]

    @property
    def sampling(self) -> dict[str, Any]:
        return {k: v for objective in self._objectives() for k, v in objective.sampling.items()}

    @property
    def roles(self) -> dict[str, Role]:
        return {k: v for _, term in self.terms.values() for k, v in term.roles.items()}

    def turn(self, step: int, progress: float) -> str:
        return STUDENT if progress < self.start else super().turn(step, progress)

    def check(self, config: TrainConfig) -> None:
        for objective in self._objectives():
            objective.check(config)

    def before_step(self, student: nn.Module, progress: float) -> None:
        for objective in self._objectives():
            objective.before_step(student, progress)

    def __call__(self, model: Denoiser, batch: Batch, progress: float, rng: SampleRng) -> Loss:
        losses: list[Loss] = []
        if self.consistency is not None:
            losses.append(self.consistency(model, batch, progress, rng))
        if progress >= self.start:
            for name, (weight, term) in self.terms.items():
                loss = term(model, batch, progress, rng)
                losses.append(Loss(weight * loss.total, loss.logs | {name: loss.total.detach()}))
        total, logs = losses[0].total, dict(losses[0].logs)
        for loss in losses[1:]:
            total, logs = total + loss.total, logs | loss.logs
        return Loss(total, logs)


def _consistency(spec: dict | None, teacher: Denoiser | None) -> StudentObjective | None:
    """The consistency term of a spec."""
    if spec is None:
        return None
    objective = build("objective", _group("consistency", spec), teacher=teacher)
    plain = isinstance(objective, StudentObjective) and not objective.role_names
    if not plain or objective.sampling["sampler"] != "consistency":
        raise UsageError(
            f"consistency cannot be {spec['name']}; use one without further networks whose "
            "students are sampled by noising again, such as consistency_tuning"
        )
    return objective


def _group(option: str, options: Any) -> dict:
    if not isinstance(options, Mapping):
        raise UsageError(f"{option} is {options!r}; expected a group of options")
    return dict(options)
