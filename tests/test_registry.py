"""Every name leads to a documented class, and what `build` is told is checked."""

import inspect
import math

import pytest

from vidcm.errors import UsageError
from vidcm.registry import TABLE, build, lookup

NAMES = [(kind, name) for kind, names in TABLE.items() for name in names]


@pytest.mark.parametrize("kind, name", NAMES, ids=[f"{k}-{n}" for k, n in NAMES])
def test_every_name_imports_and_its_options_are_explained(kind, name):
    cls = lookup(kind, name)
    functions = kind in ("task_builder", "folder_format")
    assert (inspect.isclass(cls) or functions) and cls.__doc__
    # Options are told apart from each other in the docstring, or it says what there is to choose.
    options = [p for p in inspect.signature(cls).parameters if p not in ("args", "kwargs")]
    for option in options:
        assert inspect.signature(cls).parameters[option].kind is not inspect.Parameter.VAR_KEYWORD
    module = inspect.getmodule(cls)
    assert module is not None and module.__doc__
    assert TABLE[kind][name].removesuffix(".from_spec") == f"{cls.__module__}:{cls.__name__}"


@pytest.mark.parametrize(
    "kind, spec, message",
    [
        ("path", {}, "the path has no name .known: rectified_flow, trig_flow"),
        ("path", {"name": "trigflow"}, "unknown path 'trigflow'; did you mean 'trig_flow'"),
        ("path", {"name": None}, "unknown path None"),
        ("path", {"name": ["a"]}, r"unknown path \['a'\]"),
        (
            "model",
            {"name": "causal_vae", "channel": 3},
            "no option 'channel'; did you mean 'channels'",
        ),
        ("model", {"name": "causal_vae", 3: 3}, "no option 3"),
        (
            "model",
            {"name": "causal_vae", "channels": "3"},
            "'causal_vae': channels: '3' is not int",
        ),
        ("model", {"name": "causal_vae", "channels": True}, "channels: True is not int"),
        ("model", {"name": "attribute_net"}, "needs the option 'classes'"),
        ("objective", {"name": "flow_matching", "p_mean": "0"}, "p_mean: '0' is not float"),
        ("objective", {"name": "consistency_tuning", "teacher": None}, "no option 'teacher'"),
        ("data", {"name": "latents", "path": 3}, r"path: 3 is not str \| "),
        (
            "data",
            {"name": "lpc", "art": "/nowhere"},
            "art is not at /nowhere, where data.art or --art says",
        ),
        ("objective", {"name": "flow_matching", "p_mean": 1e30}, "p_mean is 1e\\+30 .* at most 20"),
        ("objective", {"name": "flow_matching", "p_std": 21.0}, "p_std 21; .* at most 20"),
        ("objective", {"name": "flow_matching", "p_mean": math.nan}, "p_mean: nan is not a finite"),
        (
            "objective",
            {"name": "flow_map", "guidance_range": 3},
            r"guidance_range: 3 is not tuple\[float, float",
        ),
        (
            "objective",
            {"name": "flow_map", "guidance_range": ["a", 3]},
            r"guidance_range: \['a', 3\] is not",
        ),
        (
            "objective",
            {"name": "flow_map", "guidance_range": [True, 3]},
            "guidance_range: .* is not tuple",
        ),
        ("objective", {"name": "adversarial", "blocks": [0.5]}, "blocks: 0.5 is not int"),
        ("data", {"name": "folder", "root": "x", "num_frames": 5, "size": 16}, "size: 16 is not"),
        ("model", {"name": "causal_vae", "widths": [48]}, r"widths \[48\], .*: use three of each"),
        ("model", {"name": "causal_vae", "channels": 0}, "channels 0, .* above 0"),
        ("conditioner", {"name": "hashed_words", "num_heads": 0}, "num_heads 0, max_words 64"),
        (
            "conditioner",
            {"name": "hashed_words", "hidden_size": 33, "num_heads": 2},
            "hidden_size 33 over 2 heads",
        ),
    ],
)
def test_refusals(kind, spec, message):
    context = {"teacher": None} if kind == "objective" else {}
    with pytest.raises(UsageError, match=message):
        build(kind, spec, **context)


@pytest.mark.parametrize(
    "options", [{"num_heads": 0}, {"num_layers": 0}, {"mlp_ratio": -1.0}, {"hidden_size": 0}]
)
def test_a_backbone_of_nothing_is_refused(options):
    with pytest.raises(UsageError, match="all must be above 0"):
        build("backbone", {"name": "dit", **options}, channels=5, context=32)


@pytest.mark.parametrize("patch", [[1, 2], [0, 1, 1]])
def test_a_patch_is_three_numbers(patch):
    with pytest.raises(UsageError, match=r"is not \[frames, height, width\]"):
        build("backbone", {"name": "dit", "patch_size": patch}, channels=5, context=32)


def test_whole_numbers_pass_for_floats_and_context_reaches_whoever_takes_it():
    found = build("objective", {"name": "flow_matching", "p_mean": 1}, teacher="ignored")
    assert found.p_mean == 1 and type(found.p_mean) is float
    teacher = object()
    assert build("objective", {"name": "consistency_tuning"}, teacher=teacher).teacher is teacher
