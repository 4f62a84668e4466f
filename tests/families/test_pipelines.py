"""Our denoisers of public families do what diffusers' own pipelines do, step for step."""

import pytest
import torch
from public_runs import pipeline_of

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion import samplers
from vidcm.diffusion.denoiser import Denoiser
from vidcm.diffusion.guidance import CFGDenoiser
from vidcm.diffusion.times import student_timesteps
from vidcm.store import load_model

PROMPT, NEGATIVE, GUIDANCE, STEPS = "a red ball bounces left .", "a robot", 4.0, 4


@pytest.fixture(scope="module", params=["wan", "wan_5b", "ltx", "cogvideox", "cogvideox_rotary"])
def family(request):
    return request.param


def test_guided_sampling_is_the_pipelines(public, family):
    folder, size = public(family), 32
    pipeline = pipeline_of(folder)
    teacher = load_model(folder / "transformer", Denoiser)
    codec = load_model(folder / "vae", VideoCodec)
    shape = (1, *codec.latent_shape(9, size, size))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    steps, times = [], []

    def record(pipe, step, time, tensors):
        steps.append(tensors["latents"].clone())
        times.append(float(time))
        return {}

    start = noise
    if family.startswith("cog"):
        start = noise.movedim(1, 2)
    if family == "ltx":
        start = pipeline._pack_latents(noise, 1, 1)
    decoded = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_frames=9,
        height=size,
        width=size,
        guidance_scale=GUIDANCE,
        num_inference_steps=STEPS,
        latents=start.clone(),
        callback_on_step_end=record,
        output_type="pt",
    ).frames

    with torch.no_grad():
        cond, negative = teacher.encode([PROMPT]), teacher.encode([NEGATIVE])
        guided = CFGDenoiser(teacher, GUIDANCE, negative)
        ours, scales = [], [1.0] * STEPS
        if family.startswith("cog"):
            # Their latents have unit variance, ours are scaled to alpha + sigma = 1.
            levels = pipeline.scheduler.alphas_cumprod.double()
            alphas = [levels[int(t)].sqrt() for t in times]
            sigmas = [(1 - levels[int(t)]).sqrt() for t in times]
            own = [float(s / (s + a)) for a, s in zip(alphas, sigmas, strict=True)] + [0.0]
            scales = [float(a + s) for a, s in zip(alphas[1:], sigmas[1:], strict=True)] + [1.0]
        else:
            own = pipeline.scheduler.sigmas.tolist()
        x = samplers.euler(guided, noise, own, cond, on_step=lambda i, t, x: ours.append(x) or x)

        for step, (theirs, mine) in enumerate(zip(steps, ours, strict=True)):
            if family.startswith("cog"):
                theirs = theirs.movedim(1, 2) / scales[step]
            if family == "ltx":
                theirs = pipeline._unpack_latents(theirs, *shape[2:], 1, 1)
            assert (theirs - mine).abs().max() < 2e-5 * theirs.abs().max(), step
        video = codec.decode(x)
    expected = decoded.movedim(1, 2) * 2 - 1
    assert (video - expected).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_flow_map_sampling_is_the_pipelines(public, steps):
    from diffusers import AnyFlowPipeline

    folder = public("anyflow")
    pipeline = AnyFlowPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    student = load_model(folder / "transformer", Denoiser)
    noise = torch.randn(1, 16, 3, 4, 4)
    size = {"num_frames": 9, "height": 32, "width": 32, "guidance_scale": 1.0}
    theirs = pipeline(
        PROMPT, num_inference_steps=steps, latents=noise, output_type="latent", **size
    ).frames
    times = student_timesteps(steps, by=student.shift)
    with torch.no_grad():
        ours = samplers.flow_map(student, noise, times, student.encode([PROMPT]))
    theirs = theirs.movedim(1, 2) if theirs.shape[1] != 16 else theirs
    assert (theirs - ours).abs().max() < 2e-5 * theirs.abs().max()


def test_codecs_keep_frames_or_refuse(public, family):
    from vidcm.errors import UsageError

    codec = load_model(public(family) / "vae", VideoCodec)
    fine = 0
    for frames in (1, 4, 5, 8, 9, 10, 13, 17):
        video = torch.rand(1, 3, frames, 32, 32) * 2 - 1
        try:
            with torch.no_grad():
                latents = codec.encode(video)
                back = codec.decode(latents)
        except UsageError as error:
            assert "use" in str(error)
            continue
        fine += 1
        assert latents.shape[1:] == codec.latent_shape(frames, 32, 32)
        assert back.shape == video.shape
    assert fine >= 3
    with pytest.raises(UsageError, match="not a multiple"):
        codec.encode(torch.zeros(1, 3, 9, 33, 40))


def test_the_teacher_ends_at_data(public, family):
    teacher = load_model(public(family) / "transformer", Denoiser)
    x = torch.randn(2, teacher.channels, 3, 4, 4)
    with torch.no_grad():
        clean = teacher.predict_x0(x, torch.zeros(2), teacher.encode([PROMPT, ""]))
    assert torch.equal(clean, x)


def test_derivatives_are_those_of_unfused_attention(public, family):
    """Against torch's own switch, which is process-wide; ours is local and leaves it alone."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from vidcm.diffusion.derivative import Exact

    teacher = load_model(public(family) / "transformer", Denoiser)
    stock = pipeline_of(public(family)).transformer
    cond = teacher.encode([PROMPT, "a robot"])
    x = torch.randn(2, teacher.channels, 3, 4, 4)
    primals = x, torch.tensor([612.0, 80.0])
    tangents = torch.randn_like(x), torch.tensor([1.0, -2.0])

    def run(network):
        def function(x, t):
            return teacher.backbone.family.forward(network, x, t, cond, None)

        return Exact()(function, primals, tangents)

    with sdpa_kernel(SDPBackend.MATH):
        value, slope = run(stock)
    with pytest.raises(NotImplementedError):
        run(stock)
    for ours, theirs in zip(run(teacher.backbone.transformer), (value, slope), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
