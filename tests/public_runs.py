"""Runs of tiny public models, by the commands."""

import yaml

from vidcm.cli import train

CAPTION = "a red ball bounces left ."


def pipeline_of(folder):
    from diffusers import DiffusionPipeline

    found = DiffusionPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def run(tmp_path, public, latents, family="wan", objective=None, **more):
    """Train a student of a tiny public model by the command; returns the run's folder."""
    root = public(family)
    config = {
        "output": str(tmp_path / "run"),
        "steps": 2,
        "batch_size": 2,
        "model": {"name": "public_denoiser", "base": f"{root}/transformer", "guidance_scale": 4},
        "init": f"{root}/transformer",
        "teacher": f"{root}/transformer",
        "codec": f"{root}/vae",
        "objective": objective or {"name": "consistency_tuning", "guidance_range": [4, 4]},
        "data": {"name": "latents", "path": str(latents(family))},
        "preview_prompts": [CAPTION],
        "num_workers": 0,
        **more,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return train.main(["--config", str(path)]), tmp_path / "run"
