"""Adherence against oracles: true clips, wrong ones, damaged ones, other ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vidcm.lpc.adherence import (
    attribute_questions,
    chance_score,
    fill_open_attributes,
    grade,
    summarize_grades,
    wilson,
)


def drawn(lpc, count: int, seed: int = 0):
    return [lpc.sample(np.random.default_rng([seed, i]), "heldout") for i in range(count)]


@pytest.fixture(scope="module")
def world(puppets):
    combinations = drawn(puppets, 24)
    return (
        puppets,
        combinations,
        [attribute_questions(puppets, c) for c in combinations],
        puppets.render(combinations),
    )


def score(lpc, questions_of, frames) -> float:
    return summarize_grades(grade(questions_of, frames, lpc.attributes), lpc.attributes)["score"]


def test_true_clips_are_right_everywhere(world):
    lpc, _, questions_of, frames = world
    found = summarize_grades(grade(questions_of, frames, lpc.attributes), lpc.attributes)
    assert found["score"] == found["all_correct"] == found["low"] == found["high"] == 1
    assert set(found["attributes"]) == set(lpc.attributes)


def test_the_true_clip_of_a_wrong_value_is_read_as_that_value(world):
    lpc, combinations, questions_of, _ = world
    checked = 0
    for combination, questions in zip(combinations[:6], questions_of, strict=False):
        for name, question in questions.items():
            for value, other in enumerate(lpc.alternatives(combination, name)):
                clip = lpc.render([other])[0].numpy()
                same = [
                    i for i, s in enumerate(question.pixels) if (s == question.pixels[value]).all()
                ]
                assert question.values[value] == other[name]
                assert question.nearest_value(clip) in same
                checked += value != question.answer
    assert checked > 80


def test_attributes_that_cannot_be_seen_have_no_question(world):
    lpc, combinations, questions_of, frames = world
    grades = grade(questions_of, frames, lpc.attributes)
    falls = [c["action"] == "hurt" for c in combinations]
    dresses = [c["torso"] == "red_dress" for c in combinations]
    assert any(falls) and any(dresses)
    at = lpc.attributes.index
    assert np.isnan(grades[:, at("direction")]).tolist() == falls
    assert np.isnan(grades[:, at("legs")]).tolist() == dresses
    assert not np.isnan(grades[:, at("background")]).any()


def test_only_pixels_and_frames_where_alternatives_differ_count(world):
    _, _, questions_of, frames = world
    for questions, clip in zip(questions_of[:5], frames.numpy(), strict=False):
        for question in questions.values():
            noise = np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8)
            noise.reshape(-1, 3)[question.positions] = clip.reshape(-1, 3)[question.positions]
            assert question.nearest_value(noise) == question.answer
            assert (question.pixels != question.pixels[0]).any((0, 2)).all()


def test_noise_and_blur_of_a_codec_change_nothing(world):
    lpc, _, questions_of, frames = world
    noise = torch.randn(frames.shape) * 12
    assert score(lpc, questions_of, (frames + noise).clamp(0, 255).to(torch.uint8)) > 0.99
    pixels = frames.float().permute(0, 1, 4, 2, 3).flatten(0, 1)
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    soft = soft.unflatten(0, frames.shape[:2]).permute(0, 1, 3, 4, 2).to(torch.uint8)
    assert score(lpc, questions_of, soft) > 0.99


def test_other_clips_score_about_chance(world):
    lpc, _, questions_of, _ = world
    others = lpc.render(drawn(lpc, len(questions_of), seed=1))
    assert score(lpc, questions_of, others) == pytest.approx(chance_score(questions_of), abs=0.12)
    grey = torch.full_like(others, 127)
    assert score(lpc, questions_of, grey) < 0.6


def test_open_attributes_are_read_off_the_clip(world):
    lpc, combinations, _, _ = world
    combination = next(
        c for c in combinations if c["action"] != "hurt" and c["torso"] != "red_dress"
    )
    shown = next(c for c in lpc.alternatives(combination, "background")[::-1])
    shown = lpc.alternatives(shown, "skin")[-1]
    clip = lpc.render([shown])[0].numpy()
    assert fill_open_attributes(lpc, combination, ["skin", "background"], clip) == shown
    assert fill_open_attributes(lpc, combination, [], clip) == combination


def test_real_art_true_and_swapped(small_art):
    combinations = drawn(small_art, 6)
    questions_of = [attribute_questions(small_art, c) for c in combinations]
    frames = small_art.render(combinations)
    assert score(small_art, questions_of, frames) == 1
    assert score(small_art, questions_of, frames.roll(1, 0)) < 0.7


def test_summary_by_hand():
    grades = np.array([[1, np.nan], [1, 0], [0, np.nan], [1, 1]])
    found = summarize_grades(grades, ["a", "b"])
    assert found["attributes"]["a"]["score"] == 0.75 and found["attributes"]["a"]["questions"] == 4
    assert found["attributes"]["b"]["score"] == 0.5 and found["attributes"]["b"]["questions"] == 2
    assert found["score"] == 0.625 and found["all_correct"] == 0.5
    assert 0 <= found["low"] < 0.625 < found["high"] <= 1
    assert summarize_grades(grades, ["a", "b"]) == found
    assert summarize_grades(np.full((3, 2), np.nan), ["a", "b"])["score"] is None


def test_wilson_is_the_textbook_interval_and_covers():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 7)[0] == 0 and wilson(7, 7)[1] == 1
    rng = np.random.default_rng(0)
    draws = rng.binomial(60, 0.9, 2000)
    inside = [low <= 0.9 <= high for low, high in (wilson(int(k), 60) for k in draws)]
    assert 0.92 < np.mean(inside) < 0.98


def test_bootstrap_covers_the_mean_of_correlated_marks():
    rng, inside = np.random.default_rng(0), []
    for trial in range(40):
        easy = rng.random((80, 1)) < 0.5  # clips differ in difficulty, their grades agree
        grades = (rng.random((80, 5)) < np.where(easy, 0.9, 0.5)).astype(float)
        found = summarize_grades(grades, list("abcde"), seed=trial)
        inside.append(found["low"] <= 0.7 <= found["high"])
    assert np.mean(inside) > 0.85
