"""Options that no objective can make sense of are refused by name when it is built."""

import pytest

from vidcm.errors import UsageError
from vidcm.registry import build

TUNING = {"name": "consistency_tuning"}


@pytest.mark.parametrize(
    "name",
    [
        *("flow_matching", "consistency_tuning", "continuous_consistency"),
        *("distribution_matching", "adversarial"),
    ],
)
def test_a_deviation_is_not_negative(name):
    with pytest.raises(UsageError, match="std is -0.5; a deviation of ln sigma must be 0 or above"):
        build("objective", {"name": name, "p_std": -0.5}, teacher=None)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("consistency_tuning", {"huber_c": -1e-3}, "huber_c -0.001, max_weight"),
        ("consistency_tuning", {"max_weight": 0}, "use huber_c from 0 and max_weight above 0"),
        ("autoencoding", {"crop": -8}, "crop -8 is not a multiple"),
        ("autoencoding", {"windows": 0}, "windows 0, tries 3: both must be at least 1"),
        ("autoencoding", {"tries": 0}, "windows 1, tries 0: both must be at least 1"),
        ("autoencoding", {"kl": -1.0}, "kl -1.0: weights must be 0 or above"),
        ("attribute_naming", {"shift": -1}, "shift is -1; it must be a number of pixels"),
        ("flow_map", {"derivative": []}, r"derivative: \[\] is not dict"),
        ("rcm", {"consistency": {"name": "flow_matching"}}, "consistency cannot be flow_matching"),
        ("rcm", {"consistency": {"name": "autoencoding"}}, "consistency cannot be autoencoding"),
    ],
)
def test_senseless_options_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        build("objective", {"name": name, **options}, teacher=None)
