"""Cases with known truth, and the numbers made of them."""

import json

import numpy as np
import pytest

from vidcm.editing.cases import CASES
from vidcm.editing.evaluate import _filled, _off, _psnr, _seam, table
from vidcm.metrics.adherence import Question


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 16, 24, 3), np.uint8)


@pytest.mark.parametrize("task", CASES)
def test_a_baseline_keeps_what_is_given(task, truth):
    case = CASES[task](truth)
    assert case.spec["name"] == task and case.baseline.shape == truth.shape
    np.testing.assert_array_equal(case.baseline[case.kept], truth[case.kept])
    assert _psnr(truth, truth, case) == 100 and _psnr(case.baseline, truth, case) < 40
    assert _seam(truth, truth, case.kept) in (1.0, None)
    if task not in ("denoise",):
        assert _off(truth, case) <= 0.5  # of block means: rounding


def test_what_is_lost_shows(truth):
    case = CASES["inpaint"](truth)
    wrong = truth.copy()
    wrong[0, 0, 0] ^= 8
    assert _off(wrong, case) == 8
    grey = CASES["colorize"](truth)
    assert _off(grey.baseline, grey) == 0 and _off(truth // 2, grey) > 50


def test_blended_frames_lie_between(truth):
    case = CASES["interpolate_frames"](truth)
    middle = (truth[0].astype(float) + truth[2]) / 2
    assert np.abs(case.baseline[1] - middle).max() <= 0.5
    held = CASES["extend"](truth)
    assert (held.baseline[5:] == truth[4]).all()


def test_only_what_is_filled_in_is_asked_about(truth):
    case = CASES["extend"](truth)  # frames 0-4 are given
    area = 16 * 24
    shown = np.zeros((2, 2, 3), np.uint8)
    shown[1] = 255
    where = np.array([3, 6 * area + 1], np.int32)
    given = Question(["a", "b"], 0, where[:1], shown[:, :1])
    found = _filled({"x": Question(["a", "b"], 0, where, shown), "y": given}, case)
    assert list(found) == ["x"] and found["x"].where.tolist() == [6 * area + 1]


def test_a_table_has_a_line_for_each_row():
    found = {
        "method": "constant fill", "psnr": 12.3, "ssim": 0.5, "adherence": None, "kept": 0.0,
        "seam": None, "motion": 1.25, "seconds": 0.5,
    }  # fmt: skip
    results = {
        "protocol": {"count": 2, "seed": 0},
        "model": {"name": "m"},
        "environment": {"commit": None, "dirty": None, "cpu": "c", "threads": 1, "torch": "t"},
        "tasks": {"inpaint": {"baseline": found, "student-4": found | {"method": "student-4"}}},
    }
    text = table(json.loads(json.dumps(results)))
    assert "| inpaint: baseline (constant fill) | 12.3 | 0.500 | - | 0 | - | 1.25 | 0.50 |" in text
    assert "| inpaint: student-4 |" in text and "2 held-out combinations" in text
