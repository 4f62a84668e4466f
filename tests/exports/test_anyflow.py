"""A flow map runs in diffusers' own pipeline, without code of ours."""

import pytest
import torch

from vidcm.codecs.base import VideoCodec
from vidcm.errors import UsageError
from vidcm.exports.run import export_student, verify
from vidcm.exports.student import load_student
from vidcm.generation import Generation
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.settings import PipelineSettings, TeacherSettings
from vidcm.store import load_model

PROMPT, SIZE = "a robot dances", {"num_frames": 9, "height": 32, "width": 32}


def target():
    return build("export_target", {"name": "anyflow"})


def test_clips_are_those_of_vidcm_at_any_number_of_steps(public, student_of, tmp_path):
    from diffusers import AnyFlowPipeline

    student = load_student(student_of("anyflow", sampler="flow_map"), storage="fp32")
    export_student(student, target(), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.py"))
    pipeline = AnyFlowPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    codec = load_model(public("anyflow") / "vae", VideoCodec)
    noise = SampleRng(5, [0]).normal(*codec.latent_shape(*SIZE.values()))
    settings = PipelineSettings(9, 32, 32, 8.0, student.settings, TeacherSettings(4, 1.0))
    clips = []
    for steps in (1, 2, 4):
        call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent"}
        theirs = pipeline(PROMPT, latents=noise, **call, **SIZE).frames
        generation = Generation.resolve(student.denoiser, codec, settings, "student", steps)
        with torch.no_grad():
            ours = generation.sample(generation.encode([PROMPT]), noise, SampleRng(0, [0]))
        assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()
        clips.append(ours)
    assert (clips[0] - clips[1]).abs().max() > 1e-3
    assert verify(tmp_path / "out").keys() >= {"1 step", "2 steps", "4 steps", "decoded"}


@pytest.mark.parametrize(
    "name, facts, shift, message",
    [
        ("wan", {}, None, "runs AnyFlowTransformer3DModel alone, .* is wan .*--to diffusers"),
        ("wan_image", {}, None, "runs AnyFlowTransformer3DModel alone, .* is wan .*--to diffusers"),
        ("wan_vace", {}, None, "runs AnyFlowTransformer3DModel alone, .* is wan_vace "),
        ("anyflow", {"sampler": "consistency"}, None, "samples flow maps, .* one of consistency"),
        ("anyflow", {"sampler": "flow_map", "lowest_sigma": 9.0}, None, "give --shift"),
    ],
)
def test_refusals(student_of, tmp_path, name, facts, shift, message):
    student = load_student(student_of(name, **facts), shift=shift)
    with pytest.raises(UsageError, match=message):
        export_student(student, target(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["diffusers", "comfy", "lora"])
def test_programs_that_would_drop_the_second_time_get_no_flow_map(student_of, tmp_path, other):
    student = load_student(student_of("anyflow", sampler="flow_map"))
    with pytest.raises(UsageError, match="two.*use --to anyflow|second time.*use --to anyflow"):
        export_student(student, build("export_target", {"name": other}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
