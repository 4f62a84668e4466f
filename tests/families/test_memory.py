"""The memory that a dry run foretells for public models, against what torch's allocator sees."""

from dataclasses import replace

import peaks
import pytest
import tiny
from tiny_public import TEXT

from vidcm.config import LoraConfig, TrainConfig
from vidcm.families.component import read_config
from vidcm.train.memory import estimate

CLIP = (9, 32, 32)


def config_of(folder, model, **changes) -> TrainConfig:
    plain = dict(
        model={"name": "public_denoiser", **model},
        objective={"name": "flow_matching"},
        data={"name": "latents", "path": "none"},
        output="none",
        steps=10,
        batch_size=4,
        codec=str(folder / "vae"),
    )
    return TrainConfig(**plain | changes)


def test_a_public_student_has_one_frozen_text_tower(public) -> None:
    from diffusers import WanPipeline

    base = str(public("wan") / "transformer")
    config = config_of(
        public("wan"),
        {"base": base, "guidance_scale": 2.0},
        objective={"name": "consistency_tuning", "guidance_range": [2.0, 2.0]},
        teacher=base,
        lora=LoraConfig(4, 4),
    )
    parts = estimate(config, 1, CLIP).parts
    real = WanPipeline.from_pretrained(public("wan"))
    sizes = {"text towers": real.text_encoder, "teacher": real.transformer, "codec": real.vae}
    for name, module in sizes.items():
        tensors = [*module.parameters(), *module.buffers()]
        assert parts[name] == pytest.approx(sum(x.nbytes for x in tensors), rel=0.01), name
    assert parts["gradients"] < parts["weights"] / 2


def test_the_estimate_of_a_public_architecture(public) -> None:
    """With a small text tower that is trained along."""
    architecture = read_config(public("wan") / "transformer")
    architecture |= {"num_attention_heads": 8, "ffn_dim": 512}
    tower = {**tiny.TEXT, "max_words": 7}
    config = config_of(public("wan"), {"config": architecture, "conditioner": tower})
    for chosen in (config, replace(config, activation_checkpointing=True)):
        found = estimate(chosen, 1, (17, 64, 64), foreach=False)
        measured = peaks.of_a_run(chosen, (17, 64, 64))
        assert found.step == pytest.approx(measured, rel=0.1)


def test_an_architecture_without_a_folder(public) -> None:
    """Sizes of a real network, from its config alone."""
    from diffusers import WanTransformer3DModel

    wide = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 1, "text_dim": TEXT}
    conditioner = {"name": "hashed_words", "hidden_size": TEXT, "num_layers": 0, "num_heads": 1}
    architecture = {"_class_name": WanTransformer3DModel.__name__, **wide}
    config = config_of(
        public("wan"),
        {"config": architecture, "conditioner": conditioner},
        batch_size=8,
        activation_checkpointing=True,
        zero=2,
        precision="bf16",
    )
    one, two = (estimate(config, world, CLIP) for world in (4, 8))
    assert one.parts["weights"] > 2 * 40 * 128 * (40 * 128 * 8 + 2 * 13824)
    assert two.parts["optimizer"] == pytest.approx(one.parts["optimizer"] / 2, rel=1e-6)
