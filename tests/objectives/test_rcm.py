"""Regularised consistency is the sum of its terms, and each term alone at its limits."""

import pytest
import tiny
import torch
from torch import Tensor

from vidcm.data.batch import Batch
from vidcm.errors import UsageError
from vidcm.objectives.base import STUDENT
from vidcm.objectives.rcm import RegularisedConsistency
from vidcm.objectives.target_network import EmaTarget
from vidcm.registry import build
from vidcm.rng import SampleRng

PLACES = range(4)
TUNING = {"name": "consistency_tuning", "stages": 3}
CONTINUOUS = {"name": "continuous_consistency"}


@pytest.fixture(scope="module")
def context() -> dict:
    teacher = tiny.shaken(build("model", tiny.denoiser())).requires_grad_(False)

    def make_fake():
        return tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)), seed=4)

    return {"teacher": teacher, "make_fake": make_fake}


def outcome(objective, progress: float = 0.5) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients on a student that is always the same."""
    torch.manual_seed(3)
    student = tiny.shaken(build("model", tiny.denoiser(guidance_embed=True)), seed=3)
    x = SampleRng(77, PLACES).normal(5, 1, 2, 3)
    given = Batch(["an orc walks left", "a man falls", "", "a lady"], latents=x)
    total = objective(student, given, progress, SampleRng(1, PLACES)).total
    grads = torch.autograd.grad(total, list(student.parameters()), allow_unused=True)
    return total.detach(), [g for g in grads if g is not None]


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))


@pytest.mark.parametrize("spec", [TUNING, CONTINUOUS], ids=["discrete", "continuous"])
def test_weight_0_is_consistency_to_the_bit(context, spec):
    silent = {"matching": {"weight": 0.0}, "adversarial": {"weight": 0, "blocks": [0]}}
    rcm = RegularisedConsistency(**context, consistency=spec, **silent)
    assert rcm.roles == {} and rcm.turn(0, 0.0) == STUDENT == rcm.turn(4, 0.9)
    assert_same(outcome(rcm), outcome(build("objective", spec, **context)))


def test_before_the_start_it_is_consistency_to_the_bit(context):
    rcm = RegularisedConsistency(**context, consistency=TUNING, matching={}, start=0.6)
    assert_same(outcome(rcm), outcome(build("objective", TUNING, **context)))
    assert not torch.equal(outcome(rcm, 0.6)[0], outcome(rcm, 0.59)[0])
    assert {rcm.turn(step, 0.59) for step in range(9)} == {STUDENT}
    assert [rcm.turn(step, 0.6) for step in range(5)] == ["fake"] * 4 + [STUDENT]


def test_without_consistency_it_is_distribution_matching_to_the_bit(context):
    rcm = RegularisedConsistency(**context, matching={"steps": [2]})
    alone = build("objective", {"name": "distribution_matching", "steps": [2]}, **context)
    assert_same(outcome(rcm), outcome(alone))
    assert list(rcm.roles) == list(alone.roles) == ["fake"]


def test_it_is_the_sum_of_its_terms(context):
    extra = {"matching": {"weight": 3.0}, "adversarial": {"weight": 0.25, "blocks": [0, 1]}}
    rcm = RegularisedConsistency(**context, consistency=TUNING, **extra)
    terms = {name: term for name, (_, term) in rcm.terms.items()}

    def apart(model, batch, progress, rng):  # the draws of one term follow those of the last
        total = build("objective", TUNING, **context)(model, batch, progress, rng)
        total.total = total.total + 3.0 * terms["matching"](model, batch, progress, rng).total
        total.total = total.total + 0.25 * terms["adversarial"](model, batch, progress, rng).total
        return total

    assert_same(outcome(rcm), outcome(apart))
    logs = rcm(
        build("model", tiny.denoiser(guidance_embed=True)),
        Batch([""] * 4, latents=torch.zeros(4, 5, 1, 2, 3)),
        0.5,
        SampleRng(1, PLACES),
    ).logs
    assert {"consistency_error", "matching", "score_gap", "adversarial", "critic_score"} <= set(
        logs
    )
    assert not any(v.requires_grad for v in logs.values())


def test_further_networks_share_the_turns(context):
    rcm = RegularisedConsistency(
        **context, matching={}, adversarial={"blocks": [0]}, student_update_freq=5
    )
    turns = [rcm.turn(step, 0.0) for step in range(10)]
    assert turns == ["fake", "critic", "fake", "critic", STUDENT] * 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "without consistency, give matching or adversarial"),
        ({"matching": {}, "start": 0.1}, "without consistency, .* start 0"),
        ({"matching": {"weight": 0}}, "without consistency"),
        ({"consistency": "consistency_tuning"}, "consistency is 'consistency_tuning'; expected a"),
        ({"consistency": {"name": "consistency"}}, "unknown objective 'consistency'"),
        ({"consistency": TUNING, "matching": 1.0}, "matching is 1.0; expected a group"),
        ({"consistency": TUNING, "matching": {"weight": "1"}}, "matching.weight is '1'"),
        ({"consistency": TUNING, "adversarial": {"weight": -1}}, "adversarial.weight is -1"),
        (
            {"consistency": TUNING, "matching": {"student_update_freq": 3}},
            "no option 'student_update_freq'",
        ),
        ({"consistency": TUNING, "matching": {"step": [1]}}, "no option 'step'; did you mean 'st"),
        ({"consistency": TUNING, "start": 1.0}, "start 1.0 is not in"),
        (
            {"matching": {}, "adversarial": {}, "student_update_freq": 2},
            "3 networks need at least 3 turns",
        ),
        (
            {"consistency": {"name": "rcm", "matching": {}}, "matching": {}},
            "consistency cannot be rcm",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        RegularisedConsistency(None, **options)


def test_the_target_is_the_consistency_term_s():
    spec = {"name": "latent_consistency", "target_decay": 0.9}
    target = RegularisedConsistency(None, consistency=spec, adversarial={}).target
    assert isinstance(target, EmaTarget) and target.decay == 0.9
    assert RegularisedConsistency(None, consistency=TUNING, adversarial={}).target is None
    assert RegularisedConsistency(None, adversarial={}).target is None
