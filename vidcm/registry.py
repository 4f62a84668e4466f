"""Where names become objects: one table, one `build`. A new component is one line here."""

import difflib
import inspect
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from vidcm.errors import UsageError

TABLE: dict[str, dict[str, str]] = {
    "model": {
        "causal_vae": "vidcm.codecs.causal_vae:CausalVAE",
        "denoiser": "vidcm.diffusion.denoiser:Denoiser",
        "attribute_net": "vidcm.lpc.attribute_net:AttributeNet",
        "caption_reader": "vidcm.lpc.caption_reader:CaptionReader",
    },
    "backbone": {"dit": "vidcm.models.dit:DiT"},
    "conditioner": {"hashed_words": "vidcm.conditioning.text:HashedWords"},
    "path": {
        "rectified_flow": "vidcm.diffusion.paths:RectifiedFlow",
        "trig_flow": "vidcm.diffusion.paths:TrigFlow",
        "variance_exploding": "vidcm.diffusion.paths:VarianceExploding",
    },
    "objective": {
        "autoencoding": "vidcm.objectives.autoencoding:Autoencoding",
        "flow_matching": "vidcm.objectives.flow_matching:FlowMatching",
        "consistency_tuning": "vidcm.objectives.consistency_tuning:ConsistencyTuning",
        "latent_consistency": "vidcm.objectives.latent_consistency:LatentConsistency",
        "phased_consistency": "vidcm.objectives.phased_consistency:PhasedConsistency",
        "progressive_distillation": "vidcm.objectives.progressive_distillation:ProgressiveDistillation",
        "flow_map": "vidcm.objectives.flow_map:FlowMap",
        "continuous_consistency": "vidcm.objectives.continuous_consistency:ContinuousConsistency",
        "distribution_matching": "vidcm.objectives.distribution_matching:DistributionMatching",
        "adversarial": "vidcm.objectives.adversarial:Adversarial",
        "rcm": "vidcm.objectives.rcm:RegularisedConsistency",
        "attribute_naming": "vidcm.lpc.attribute_naming:AttributeNaming",
        "caption_naming": "vidcm.lpc.caption_naming:CaptionNaming",
    },
    "derivative": {
        "exact": "vidcm.diffusion.derivative:Exact",
        "finite_difference": "vidcm.diffusion.derivative:FiniteDifference",
    },
    "data": {
        "lpc": "vidcm.lpc.dataset:LPC",
        "lpc_captions": "vidcm.lpc.dataset:LPCCaptions",
        "folder": "vidcm.data.folder:VideoFolder",
        "latents": "vidcm.data.latents:LatentShards",
    },
    "operator": {
        "pixels": "vidcm.editing.operators:Pixels",
        "luminance": "vidcm.editing.operators:Luminance",
        "block_mean": "vidcm.editing.operators:BlockMean",
        "ring": "vidcm.editing.operators:Ring",
    },
    "task": {
        "inpaint": "vidcm.editing.tasks:Inpaint",
        "outpaint": "vidcm.editing.tasks:Outpaint",
        "colorize": "vidcm.editing.tasks:Colorize",
        "upscale": "vidcm.editing.tasks:Upscale",
        "interpolate_frames": "vidcm.editing.timing:InterpolateFrames",
        "extend": "vidcm.editing.timing:Extend",
        "extend_backward": "vidcm.editing.timing:ExtendBackward",
        "inbetween": "vidcm.editing.timing:Inbetween",
        "loop": "vidcm.editing.timing:Loop",
        "animate": "vidcm.editing.timing:Animate",
        "image": "vidcm.editing.tasks:Image",
        "variation": "vidcm.editing.tasks:Variation",
        "interpolate": "vidcm.editing.tasks:Interpolate",
        "denoise": "vidcm.editing.tasks:Denoise",
    },
}


def suggest(word: str, known: list[str]) -> str:
    """A did-you-mean tail for error messages, with the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint} (known: {', '.join(sorted(known))})"


def lookup(kind: str, name: str) -> type:
    """The class registered as `name` of `kind`. Raises UsageError with the nearest name."""
    known = TABLE[kind]
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"unknown {kind} {name!r}{suggest(str(name), list(known))}")
    module, _, attribute = known[name].partition(":")
    return getattr(import_module(module), attribute)


def build(kind: str, spec: Mapping[str, Any], **context: Any) -> Any:
    """Make what `spec` describes: `name`, and the options of its constructor; `context` are
    arguments that only the program can give. Raises UsageError for an unknown name or option."""
    if not isinstance(spec, Mapping):
        raise UsageError(f"the {kind} is {spec!r}; write it as {{name: {spec}}}")
    options = dict(spec)
    if "name" not in options:
        raise UsageError(f"the {kind} has no name (known: {', '.join(sorted(TABLE[kind]))})")
    cls = lookup(kind, options.pop("name"))
    parameters = {n: p for n, p in inspect.signature(cls).parameters.items() if p.kind not in _REST}
    for key, value in options.items():
        if key not in parameters or key in context:
            known = [p for p in parameters if p not in context]
            raise UsageError(
                f"{kind} {spec['name']!r} has no option {key!r}{suggest(str(key), known)}"
            )
        _check_plain(f"{kind} {spec['name']!r}: {key}", value, parameters[key].annotation)
    missing = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and name not in options and name not in context
    ]
    if missing:
        raise UsageError(f"{kind} {spec['name']!r} needs the option {missing[0]!r}")
    return cls(**options, **{k: v for k, v in context.items() if k in parameters})


_REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = {float: int | float, Path: str | Path} | {k: k for k in (int, bool, str, NoneType)}


def _check_plain(where: str, value: Any, kind: Any) -> None:
    """Refuse a value of another type where the constructor asks for plain values, or for lists."""
    if not _fits(value, kind):
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        raise UsageError(f"{where}: {value!r} is not {name.replace('collections.abc.', '')}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind; what is neither plain nor a list, its owner checks."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is UnionType:
        return any(_fits(value, k) for k in args)
    if origin in (tuple, list, Sequence):
        kinds = args if origin is tuple else args * len(value) if isinstance(value, _LIST) else ()
        return (
            isinstance(value, _LIST) and len(value) == len(kinds) and all(map(_fits, value, kinds))
        )
    flag = isinstance(value, bool) and kind is not bool  # True is an int to Python
    return kind not in _PLAIN or isinstance(value, _PLAIN[kind]) and not flag


_LIST = list | tuple
