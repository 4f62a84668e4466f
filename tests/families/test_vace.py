"""Clips that follow a control clip are those of diffusers' own pipeline, step for step."""

import numpy as np
import pytest
import torch
from PIL import Image
from public_runs import CAPTION, pipeline_of, run

from vidcm.cli import generate
from vidcm.diffusion import samplers
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.errors import UsageError, VidcmError
from vidcm.media.write import write_clip
from vidcm.models.nag import AttentionGuidance
from vidcm.pipeline import VideoPipeline

NEGATIVE, GUIDANCE, STEPS, SIZE = "a robot", 4.0, 4, (9, 32, 48)
CALL = dict(zip(("num_frames", "height", "width"), SIZE, strict=True))


def clip(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)


def mask() -> np.ndarray:
    found = np.zeros(SIZE, bool)
    found[3:, 5:20, 7:31] = True
    return found


@pytest.mark.parametrize("scale", [1.0, [0.5, 1.5]])
def test_guided_sampling_is_the_pipelines(public, scale):
    folder = public("wan_vace")
    theirs, pipe, steps, ours = pipeline_of(folder), VideoPipeline.from_pretrained(folder), [], []
    teacher, codec = pipe.model("teacher"), pipe.codec
    noise = torch.randn(1, *codec.latent_shape(*SIZE))

    def record(pipe, step, time, tensors):
        steps.append(tensors["latents"].clone())
        return {}

    frames = theirs(
        CAPTION,
        negative_prompt=NEGATIVE,
        video=[Image.fromarray(frame) for frame in clip()],
        mask=[Image.fromarray(np.uint8(255) * part) for part in mask()],
        conditioning_scale=scale,
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        latents=noise.clone(),
        callback_on_step_end=record,
        output_type="pt",
        **CALL,
    ).frames
    times = theirs.scheduler.sigmas.tolist()
    scales = scale if isinstance(scale, list) else [scale]
    with torch.no_grad():
        tensors = torch.from_numpy(clip())[None], torch.from_numpy(mask())[None]
        control = teacher.control.of_control_clips(codec, *tensors, scales)
        cond = teacher.encode([CAPTION]).with_control(control)
        guided = CFGDenoiser(teacher, GUIDANCE, teacher.encode([NEGATIVE]))
        x = samplers.euler(guided, noise, times, cond, on_step=lambda i, t, x: ours.append(x) or x)
        video = codec.decode(x)
    for theirs, mine in zip(steps, ours, strict=True):
        assert (theirs - mine).abs().max() < 2e-5 * theirs.abs().max()
    assert (video - (frames.movedim(1, 2) * 2 - 1)).abs().max() < 1e-4


def test_the_call_takes_control_clips_and_pictures(public):
    pipe = VideoPipeline.from_pretrained(public("wan_vace"))
    call = CALL | {"num_inference_steps": 2, "use_teacher": True, "output_type": "latent"}
    plain = pipe(CAPTION, control_video=clip(), **call).frames
    others = [
        pipe(CAPTION, control_video=clip(1), **call).frames,
        pipe(CAPTION, control_video=clip(), control_mask=mask(), **call).frames,
        pipe(CAPTION, control_video=clip(), control_scale=0.2, **call).frames,
        pipe(CAPTION, image=clip()[0], **call).frames,
    ]
    for other in others:
        assert (plain - other).abs().max() > 1e-3
    # A picture is a control clip that is known in its first frame.
    first, unknown = clip().copy(), np.ones(SIZE, bool)
    first[1:], unknown[0] = 127, False
    same = pipe(CAPTION, control_video=first, control_mask=unknown, **call).frames
    assert torch.allclose(same, others[-1], atol=5e-2)


def test_attention_guidance_covers_the_branch(public):
    """With the prompt itself as the negative one nothing moves, in blocks of either kind."""
    pipe = VideoPipeline.from_pretrained(public("wan_vace"))
    teacher = pipe.model("teacher")
    x, t = torch.randn(1, *pipe.codec.latent_shape(*SIZE)), torch.tensor([0.7])
    with torch.no_grad():
        control = teacher.control.of_pictures(pipe.codec, torch.from_numpy(clip())[:1], SIZE[0])
        cond = teacher.encode([CAPTION]).with_control(control)
        plain = teacher.velocity(x, t, cond)
        same = teacher.guided_by_attention(teacher.encode([CAPTION]), AttentionGuidance())
        other = teacher.guided_by_attention(teacher.encode(["a robot"]), AttentionGuidance())
        assert torch.allclose(same.velocity(x, t, cond), plain, atol=1e-5)
        assert not torch.allclose(other.velocity(x, t, cond), plain, rtol=1e-3)


@pytest.mark.parametrize("name", ["consistency_tuning", "continuous_consistency"])
def test_students_are_trained(tmp_path, public, controlled, name):
    objective = {"name": name, "guidance_range": [4, 4]}
    code, folder = run(tmp_path, public, controlled, "wan_vace", objective)
    assert code == 0 and (folder / "final" / "model.json").is_file()


def test_the_command(tmp_path, public):
    write_clip(clip(), tmp_path / "lines.mp4", fps=16)
    words = ["--checkpoint", str(public("wan_vace")), "--teacher", "--steps", "1"]
    words += ["--prompt", CAPTION, "--frames", "9", "--size", "32x48"]
    words += ["--control-video", str(tmp_path / "lines.mp4"), "--control-scale", "0.8"]
    output = tmp_path / "clip.mp4"
    assert generate.main([*words, "--control-mask", "8,8,16,16", "--output", str(output)]) == 0
    assert output.is_file()


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("wan_vace", {}, "needs a control clip or a picture"),
        ("wan", {"control_video": clip()}, "takes no control clip"),
        ("wan_image", {"control_video": clip()}, "takes a picture, and no control clip"),
        ("wan_vace", {"control_video": clip()[:5]}, "5 frames and the clip 9"),
        ("wan_vace", {"control_mask": mask()}, "of a control_video"),
        ("wan_vace", {"control_scale": 2.0, "image": clip()[0]}, "of a control_video"),
        ("wan_vace", {"control_video": clip(), "image": clip()[0]}, "either an image"),
        ("wan_vace", {"control_video": clip(), "control_mask": mask()[:, :8]}, "bool"),
        ("wan_vace", {"control_video": clip(), "control_scale": [1.0] * 3}, "3 numbers.* 2 layers"),
        ("wan_vace", {"control_video": clip(), "control_scale": -1.0}, "control_scale"),
        ("wan_vace", {"control_video": 7}, "control_video does not fit"),
        ("wan_vace", {"control_video": "nowhere.mp4"}, "nowhere.mp4"),
    ],
)
def test_refusals(public, family, given, message):
    pipe = VideoPipeline.from_pretrained(public(family))
    with pytest.raises(VidcmError, match=message):
        pipe(CAPTION, use_teacher=True, num_inference_steps=1, **given, **CALL)


def test_what_the_network_itself_refuses(public):
    pipe = VideoPipeline.from_pretrained(public("wan_vace"))
    teacher, x = pipe.model("teacher"), torch.randn(1, *pipe.codec.latent_shape(*SIZE))
    with torch.no_grad():
        with pytest.raises(UsageError, match="needs a control clip"):
            teacher.velocity(x, torch.tensor([0.5]), teacher.encode([""]))
        control = teacher.control.of_pictures(pipe.codec, torch.from_numpy(clip())[:1], SIZE[0])
        with pytest.raises(UsageError, match="one time for all frames"):
            cond = teacher.encode([""]).with_control(control)
            teacher.velocity(x, torch.tensor([[0.0, 0.5, 0.5]]), cond)
