"""Where names become objects: one table, one `build`. A new component is one line here.

An entry is `module:Class`, or `module:Class.from_spec` where that class method takes its options.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vidcm.errors import UsageError
from vidcm.schema import convert, suggest

TABLE: dict[str, dict[str, str]] = {
    "model": {
        "causal_vae": "vidcm.codecs.causal_vae:CausalVAE",
        "denoiser": "vidcm.diffusion.denoiser:Denoiser.from_spec",
        "public_denoiser": "vidcm.families.denoiser:PublicDenoiser.from_spec",
        "public_codec": "vidcm.families.codec:PublicCodec.from_spec",
        "attribute_net": "vidcm.lpc.attribute_net:AttributeNet",
        "caption_reader": "vidcm.lpc.caption_reader:CaptionReader",
    },
    "task_builder": {  # of training, by the name of the model
        "causal_vae": "vidcm.train.codec_task:codec_task",
        "denoiser": "vidcm.train.denoiser_task:denoiser_task",
        "public_denoiser": "vidcm.train.denoiser_task:denoiser_task",
        "attribute_net": "vidcm.lpc.naming_task:naming_task",
        "caption_reader": "vidcm.lpc.naming_task:caption_task",
    },
    "backbone": {"dit": "vidcm.models.dit:DiT"},
    "conditioner": {"hashed_words": "vidcm.conditioning.text:HashedWords"},
    "family": {  # of public models, by the class of diffusers
        "WanTransformer3DModel": "vidcm.families.wan:Wan",
        "AutoencoderKLWan": "vidcm.families.wan:Wan",
        "WanVACETransformer3DModel": "vidcm.families.wan:WanVACE",
        "AnyFlowTransformer3DModel": "vidcm.families.wan:AnyFlow",
        "LTXVideoTransformer3DModel": "vidcm.families.ltx:LTX",
        "AutoencoderKLLTXVideo": "vidcm.families.ltx:LTX",
        "CogVideoXTransformer3DModel": "vidcm.families.cogvideox:CogVideoX",
        "AutoencoderKLCogVideoX": "vidcm.families.cogvideox:CogVideoX",
    },
    "folder_format": {  # of models that vidcm did not write
        "component": "vidcm.families.component:ComponentFolder",
        "pipeline": "vidcm.families.pipeline_folder:settings_of",
        "hub": "vidcm.families.pipeline_folder:snapshot",
    },
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
        "progressive_distillation": "vidcm.objectives.progressive_distillation:ProgressiveDistillation",  # noqa: E501
        "flow_map": "vidcm.objectives.flow_map:FlowMap",
        "continuous_consistency": "vidcm.objectives.continuous_consistency:ContinuousConsistency",
        "distribution_matching": "vidcm.objectives.distribution_matching:DistributionMatching",
        "adversarial": "vidcm.objectives.adversarial:Adversarial",
        "rcm": "vidcm.objectives.rcm:RegularisedConsistency",
        "attribute_naming": "vidcm.lpc.attribute_naming:AttributeNaming",
        "caption_naming": "vidcm.lpc.attribute_naming:CaptionNaming",
    },
    "derivative": {
        "exact": "vidcm.diffusion.derivative:Exact",
        "finite_difference": "vidcm.diffusion.derivative:FiniteDifference",
    },
    "data": {
        "lpc": "vidcm.lpc.dataset:LPC",
        "lpc_captions": "vidcm.lpc.dataset:LPCCaptions",
        "lpc_latents": "vidcm.lpc.latents:LPCLatents",
        "folder": "vidcm.data.folder:VideoFolder",
        "latents": "vidcm.data.latents:LatentShards",
    },
    "filter": {
        "shot_cuts": "vidcm.data.filters:ShotCuts",
        "still": "vidcm.data.filters:Still",
        "black": "vidcm.data.filters:Black",
        "near_duplicates": "vidcm.data.filters:NearDuplicates",
        "text_overlays": "vidcm.data.filters:TextOverlays",
    },
    "prompt_reader": {"lpc": "vidcm.lpc.prompt_reader:PromptReader"},
    "features": {
        "lpc": "vidcm.lpc.features:LpcFeatures",
        "timm": "vidcm.metrics.features:TimmFeatures",
    },
    "export_target": {
        "diffusers": "vidcm.exports.diffusers_folder:DiffusersFolder",
        "anyflow": "vidcm.exports.anyflow:AnyFlowFolder",
        "comfy": "vidcm.exports.comfy:ComfyFile",
        "lora": "vidcm.exports.lora:LoraUpdate",
        "safetensors": "vidcm.exports.native:NativeFolder",
    },
    "operator": {
        "pixels": "vidcm.editing.operators:Pixels",
        "luminance": "vidcm.editing.operators:Luminance",
        "block_mean": "vidcm.editing.operators:BlockMean",
        "periodic": "vidcm.editing.operators:Periodic",
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


def check_name(kind: str, spec: Any) -> str:
    """The registered name in a spec, without importing its class. Raises UsageError."""
    known = TABLE[kind]
    if not isinstance(spec, Mapping):
        raise UsageError(f"the {kind} is {spec!r}; write it as {{name: {spec}}}")
    if "name" not in spec:
        raise UsageError(f"the {kind} has no name (known: {', '.join(sorted(known))})")
    name = spec["name"]
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"unknown {kind} {name!r}{suggest(str(name), list(known))}")
    return name


def lookup(kind: str, name: str) -> type:
    """The class registered as `name` of `kind`. Raises UsageError with the nearest name."""
    module, _, attribute = TABLE[kind][check_name(kind, {"name": name})].partition(":")
    return getattr(import_module(module), attribute.partition(".")[0])


def _constructor(kind: str, name: str) -> Any:
    """The class, or its class method that takes a spec's options."""
    method = TABLE[kind][check_name(kind, {"name": name})].partition(".from_spec")[1]
    cls: Any = lookup(kind, name)
    return cls.from_spec if method else cls


def options_of(kind: str, name: str) -> dict[str, inspect.Parameter]:
    """The options of a registered class, by name."""
    return dict(inspect.signature(_constructor(kind, name)).parameters)


def build(kind: str, spec: Mapping[str, Any], **context: Any) -> Any:
    """Build the object that `spec` describes.

    Args:
        kind: A key of `TABLE`.
        spec: `name` and options of the constructor, as plain data.
        context: Arguments that only the program can give; the constructor gets those it takes.

    Raises:
        UsageError: The name or an option is unknown or missing, or a value has another type.
    """
    name = check_name(kind, spec)
    options = {k: v for k, v in spec.items() if k != "name"}
    parameters = options_of(kind, name)
    for key, value in options.items():
        if key not in parameters or key in context:
            known = [p for p in parameters if p not in context]
            raise UsageError(f"{kind} {name!r} has no option {key!r}{suggest(str(key), known)}")
        options[key] = convert(parameters[key].annotation, value, f"{kind} {name!r}: {key}")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in options and key not in context:
            raise UsageError(f"{kind} {name!r} needs the option {key!r}")
    return _constructor(kind, name)(
        **options, **{k: v for k, v in context.items() if k in parameters}
    )
