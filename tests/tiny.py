"""Models small enough for tests to build by the dozen, and a whole pipeline of them."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from vidcm.cli import export
from vidcm.data.batch import Batch
from vidcm.data.latents import write_index
from vidcm.data.shards import write_shard
from vidcm.pipeline import VideoPipeline
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.settings import PipelineSettings, StudentSettings, TeacherSettings
from vidcm.store import save_model

CODEC = {
    "name": "causal_vae",
    "channels": 5,
    "widths": [48, 24, 16],
    "encoder_depths": [1, 0, 0],
    "decoder_depths": [0, 1, 0],
}
TEXT = {
    "name": "hashed_words",
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "buckets": 127,
    "max_words": 11,
}
SIZE = {"frames": 5, "height": 16, "width": 24}


def settings(num_frames: int = 5, **student) -> PipelineSettings:
    """Settings of clips of 64x64, for stand-ins of a pipeline; `student`: its options."""
    own = StudentSettings(4, 1.0, **student)
    return PipelineSettings(num_frames, 64, 64, 8.0, own, TeacherSettings(50, 1.0))


def denoiser(*, guidance_embed: bool = False, channels: int = 5, **options) -> dict:
    """The spec of a small denoiser; `options` go to its backbone."""
    backbone = {
        "name": "dit",
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "patch_size": [1, 1, 1],
        **options,
    }
    if guidance_embed:
        backbone["guidance_embed"] = True
    return {"name": "denoiser", "backbone": backbone, "conditioner": TEXT, "channels": channels}


def shaken(model: nn.Module, by: float = 0.1, seed: int = 0) -> nn.Module:
    """Every parameter moved at random: what starts at zero (adaLN-zero) shows what it does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return model


def save(folder: Path, spec: dict, seed: int = 0) -> Path:
    """A model folder with shaken weights."""
    torch.manual_seed(seed)
    model = build("model", spec)
    if spec["name"] == "causal_vae":
        model.init_from_pca(torch.rand(4, 3, 9, 32, 32) * 2 - 1)
    else:
        shaken(model, 0.2, seed)
    save_model(folder, spec, model.state_dict())
    return folder


def parts(folder: Path) -> dict[str, Path]:
    """Model folders of a codec, a teacher and a student that fit together."""
    specs = {"codec": CODEC, "teacher": denoiser(), "student": denoiser(guidance_embed=True)}
    return {role: save(folder / role, spec, i) for i, (role, spec) in enumerate(specs.items())}


def export_arguments(models: dict[str, Path], output: Path, **size: int) -> list[str]:
    """The words of `vidcm export` that make a pipeline of models, of `SIZE` unless `size` differs."""
    options = {**models, "output": output, **SIZE, **size, "teacher-steps": 3, "steps": 2}
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def pipeline(folder: Path, **size: int) -> Path:
    """A pipeline folder of `SIZE` unless `size` differs, made by the export command."""
    words = export_arguments(parts(folder / "models"), folder / "pipeline", **size)
    assert export.main(words) == 0
    return folder / "pipeline"


def load(folder: Path, **size: int) -> VideoPipeline:
    """That pipeline, loaded."""
    return VideoPipeline.from_pretrained(pipeline(folder, **size), device="cpu")


class Clips:
    """Noise as clips."""

    def batch(self, seed: int, positions) -> Batch:
        places = list(positions)
        pixels = SampleRng(seed, places).uniform(5, 16, 24, 3) * 255
        return Batch(["a man walks"] * len(places), frames=pixels.to(torch.uint8))


def latent_cache(
    folder: Path,
    parts: Iterable[tuple[torch.Tensor, list[list[str]]]],
    codec: str,
    about: dict | None = None,
) -> Path:
    """A latent cache of a shard for each part, latents `(n c t h w)` and captions."""
    shards = []
    for i, (latents, captions) in enumerate(parts):
        name = f"shard-{i:06d}.safetensors"
        write_shard(folder / name, latents, captions)
        size = (folder / name).stat().st_size
        shards.append(
            {"name": name, "clips": len(latents), "shape": list(latents.shape[1:]), "bytes": size}
        )
    write_index(folder, shards, codec, about or {})
    return folder
