"""Clips that begin with a picture are those of diffusers' own pipeline, step for step."""

import numpy as np
import pytest
import torch
from PIL import Image
from public_runs import CAPTION, pipeline_of

from vidcm.diffusion import samplers
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.windows import Windowed
from vidcm.errors import UsageError, VidcmError
from vidcm.pipeline import VideoPipeline
from vidcm.rng import SampleRng

NEGATIVE, GUIDANCE, STEPS, SIZE = "a robot", 4.0, 4, (9, 32, 32)
FAMILIES = ["wan_image", "wan_image_experts", "wan_5b"]


def picture(seed: int = 0, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def reference(folder, noise, image):
    """Latents of diffusers' pipeline after each step, its times, and its frames."""
    from diffusers import WanImageToVideoPipeline

    theirs, steps = pipeline_of(folder), []
    if type(theirs) is not WanImageToVideoPipeline:  # the same folder serves both
        theirs = WanImageToVideoPipeline(
            **{k: v for k, v in theirs.components.items() if k != "transformer_2"},
            expand_timesteps=True,
        )
        theirs.set_progress_bar_config(disable=True)

    def record(pipe, step, time, tensors):
        steps.append(tensors["latents"].clone())
        return {}

    frames = theirs(
        Image.fromarray(image),
        CAPTION,
        negative_prompt=NEGATIVE,
        num_frames=SIZE[0],
        height=SIZE[1],
        width=SIZE[2],
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        latents=noise.clone(),
        callback_on_step_end=record,
        output_type="pt",
    ).frames
    return steps, theirs.scheduler.sigmas.tolist(), frames


@pytest.mark.parametrize("family", FAMILIES)
def test_guided_sampling_is_the_pipelines(public, family):
    pipe, image = VideoPipeline.from_pretrained(public(family)), picture()
    teacher, codec = pipe.model("teacher"), pipe.codec
    shape = codec.latent_shape(*SIZE)
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    steps, times, frames = reference(public(family), noise, image)
    ours, first = [], 1 if family == "wan_5b" else 0  # there the first frame is junk until the end
    with torch.no_grad():
        control = teacher.control.of_pictures(codec, torch.from_numpy(image)[None], SIZE[0])
        cond = pipe.encode_prompt(CAPTION, use_teacher=True).with_control(control)
        guided = CFGDenoiser(teacher, GUIDANCE, teacher.encode([NEGATIVE]))
        x = samplers.euler(guided, noise, times, cond, on_step=lambda i, t, x: ours.append(x) or x)
        video = codec.decode(x)
    for theirs, mine in zip(steps, ours, strict=True):
        gap = (theirs - mine)[:, :, first:].abs().max()
        assert gap < 2e-5 * theirs.abs().max()
    assert (video - (frames.movedim(1, 2) * 2 - 1)).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_call_takes_pictures(public, family):
    pipe = VideoPipeline.from_pretrained(public(family))
    noise = torch.randn(1, *pipe.codec.latent_shape(*SIZE))
    call = dict(zip(("num_frames", "height", "width"), SIZE, strict=True))
    call |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "use_teacher": True}
    call |= {"negative_prompt": NEGATIVE, "latents": noise, "output_type": "latent"}
    found = pipe(CAPTION, image=picture(), **call).frames
    generation = pipe.generation("teacher", STEPS, GUIDANCE)
    model, image = generation.model, torch.from_numpy(picture())[None]
    with torch.no_grad():
        control = model.control.of_pictures(pipe.codec, image, SIZE[0])
        guided = CFGDenoiser(model, GUIDANCE, model.encode([NEGATIVE]))
        cond = model.encode([CAPTION]).with_control(control)
        expected = samplers.euler(guided, noise, generation.timesteps(), cond)
    assert torch.allclose(found, expected, atol=1e-5)
    other = pipe(CAPTION, image=Image.fromarray(picture(1)), **call).frames
    assert (found - other).abs().max() > 1e-3
    # One picture for each prompt, in any batch; another size is scaled and cut at the centre.
    large = np.pad(picture(1).repeat(2, 0).repeat(2, 1), ((0, 0), (6, 6), (0, 0)))
    call["latents"] = noise.expand(2, -1, -1, -1, -1)
    both = pipe([CAPTION] * 2, image=[picture(), large], batch_size=1, **call).frames
    assert torch.allclose(both, torch.cat([found, other]), atol=1e-4)


def test_long_clips_read_the_picture_in_every_window(public):
    """Where windows do not overlap, the parts of a window are those of a clip of its own."""
    pipe = VideoPipeline.from_pretrained(public("wan_image"))
    teacher, window = pipe.model("teacher"), (3, 4, 4)
    shape = pipe.codec.latent_shape(17, 32, 32)
    x, t = torch.randn(1, *shape), torch.tensor([0.7])
    with torch.no_grad():
        image = torch.from_numpy(picture())[None]
        control = teacher.control.of_pictures(pipe.codec, image, 17)
        cond = pipe.encode_prompt(CAPTION, use_teacher=True).with_control(control)
        long = Windowed(teacher, window, (0, 0, 0)).predict(x, t, cond).x0
        for frames in ([0, 1, 2], [0, 3, 4]):
            part = control.channels[:, :, frames]
            own = cond.with_control(type(control)(channels=part, tokens=control.tokens))
            found = teacher.predict(x[:, :, frames], t, own).x0
            assert torch.allclose(long[:, :, frames[1:]], found[:, :, 1:], atol=1e-6)


def test_given_frames_stay_for_every_sampler(public):
    pipe = VideoPipeline.from_pretrained(public("wan_5b"))
    teacher = pipe.model("teacher")
    noise = torch.randn(2, *pipe.codec.latent_shape(*SIZE))
    with torch.no_grad():
        images = torch.from_numpy(np.stack([picture(0), picture(1)]))
        control = teacher.control.of_pictures(pipe.codec, images, SIZE[0])
        cond = pipe.encode_prompt([CAPTION] * 2, use_teacher=True).with_control(control)
        for name, sampler in samplers.SOLVERS.items():
            x = sampler(teacher, noise, [1.0, 0.6, 0.0], cond)
            assert torch.allclose(x[:, :, :1], control.given, atol=1e-5), name
        for name, sampler in samplers.SAMPLERS.items():
            x = sampler(teacher, noise, [1.0, 0.6], cond, SampleRng(0, [0, 1]))
            assert torch.allclose(x[:, :, :1], control.given, atol=1e-5), name


@pytest.mark.parametrize(
    ("family", "image", "message"),
    [
        ("wan_image", None, "needs a picture beside the prompt.*image"),
        ("wan", picture(), "takes no picture"),
        ("ltx", picture(), "takes no picture"),
        ("wan_image", [picture()] * 3, "3 pictures.*for 1 prompt"),
        ("wan_image", picture()[..., :2], "uint8"),
        ("wan_image", "nowhere.png", "nowhere.png"),
        ("wan_image", 7, "image is 7"),
    ],
)
def test_refusals(public, family, image, message):
    pipe = VideoPipeline.from_pretrained(public(family))
    size = {"num_frames": 9, "height": 32, "width": 32}
    with pytest.raises(VidcmError, match=message):
        pipe(CAPTION, image=image, use_teacher=True, num_inference_steps=1, **size)


def test_edits_need_a_network_of_text_alone(public):
    pipe = VideoPipeline.from_pretrained(public("wan_image"))
    clip = np.zeros((9, 32, 32, 3), np.uint8)
    with pytest.raises(UsageError, match="edit.*needs a picture"):
        pipe.edit("extend", [clip], CAPTION, use_teacher=True, num_frames=9, height=32, width=32)
