"""A student in plain diffusers makes the clips that it makes in vidcm; the same seed, the same clip."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vidcm.codecs.base import VideoCodec
from vidcm.diffusion import samplers
from vidcm.errors import UsageError, VidcmError
from vidcm.exports import reference as references
from vidcm.exports import scheduling_few_step
from vidcm.exports.control import OF_PIPELINES
from vidcm.exports.layout import layout_of
from vidcm.exports.reference import SchedulerNoise
from vidcm.exports.run import export_student, verify
from vidcm.exports.student import load_student
from vidcm.generation import Generation
from vidcm.registry import build
from vidcm.rng import SampleRng
from vidcm.settings import PipelineSettings, TeacherSettings
from vidcm.store import load_model

PROMPT, SIZE = "a red ball bounces left .", {"num_frames": 9, "height": 32, "width": 32}
slow = pytest.mark.slow
FAMILIES = ["wan", "ltx", "cogvideox", pytest.param("wan_5b", marks=slow)]
FAMILIES.append(pytest.param("cogvideox_rotary", marks=slow))


@pytest.fixture(scope="module")
def exported(student_of, tmp_path_factory):
    """A function from a family and facts of its training to (student, its export)."""
    root, made = tmp_path_factory.mktemp("exports"), {}

    def of(name: str, steps: int = 4, **facts):
        key = f"{name}{steps}{facts}"
        if key not in made:
            student = load_student(student_of(name, **facts), steps, storage="fp32")
            output = root / str(len(made))
            export_student(student, build("export_target", {"name": "diffusers"}), output)
            made[key] = student, output
        return made[key]

    return of


def pipeline_of(folder: Path):
    from diffusers import DiffusionPipeline

    found = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    found.set_progress_bar_config(disable=True)
    return found


def native(student, codec, steps: int, noise: torch.Tensor, rng) -> torch.Tensor:
    """The clip's latents as `VideoPipeline` samples them."""
    settings = PipelineSettings(9, 32, 32, 8.0, student.settings, TeacherSettings(4, 1.0))
    generation = Generation.resolve(student.denoiser, codec, settings, "student", steps)
    with torch.no_grad():
        return generation.sample(generation.encode([PROMPT]), noise, rng)


@pytest.mark.parametrize("name", FAMILIES)
def test_clips_are_those_of_vidcm(public, exported, name):
    student, folder = exported(name)
    pipeline, layout = pipeline_of(folder), layout_of(student.family)
    codec = load_model(public(name) / "vae", VideoCodec)
    noise = SampleRng(5, [0]).normal(*codec.latent_shape(*SIZE.values()))
    clips = {}
    for steps in (1, 2, 4):
        theirs = pipeline(
            PROMPT,
            latents=layout.pack(noise),
            num_inference_steps=steps,
            guidance_scale=1.0,
            output_type="pt",
            **SIZE,
        ).frames
        latents = native(student, codec, steps, noise, SchedulerNoise(noise, layout))
        with torch.no_grad():
            ours = codec.decode(latents)
        clips[steps] = ours
        assert (theirs.movedim(1, 2) * 2 - 1 - ours).abs().max() < 1e-4
    # Tiny networks barely change their input, so that a comparison might pass whatever they do.
    assert (clips[1] - clips[2]).abs().max() > 1e-3 and (clips[2] - clips[4]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wan_image", "wan_vace"])
def test_clips_of_pictures_and_control_clips_are_those_of_vidcm(exported, name):
    """The export compares them: with other pixels they are other clips."""
    student, folder = exported(name)
    found = verify(folder)
    assert found.keys() == {"1 step", "2 steps", "4 steps", "decoded", "same seed"}
    assert max(found.values()) < 1e-4
    reference = references.load(folder)
    pipeline, frames = pipeline_of(folder), reference["frames"]
    make = OF_PIPELINES[type(pipeline).__name__]
    call = {"num_frames": 9, "height": 64, "width": 64, "guidance_scale": 1.0}
    call |= {"num_inference_steps": 2, "output_type": "latent", "latents": reference["noise"]}
    call |= {"prompt_embeds": reference["tokens"]}
    same, other = (
        pipeline(**make.arguments(pixels), **call).frames for pixels in (frames, 255 - frames)
    )
    assert torch.allclose(same, reference["clip.2"], atol=1e-4)
    assert (same - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_a_seed_is_a_clip_in_any_batch(exported, name):
    pipeline = pipeline_of(exported(name)[1])

    def clips(*seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        prompts = [PROMPT] * len(seeds)
        call = {"generator": generators, "num_inference_steps": 4, "guidance_scale": 1.0}
        return pipeline(prompts, output_type="latent", **call, **SIZE).frames

    one, two = clips(3), clips(4)
    torch.manual_seed(99)  # of no avail
    assert torch.equal(clips(3), one)
    assert (one - two).abs().max() > 0.1
    both = clips(4, 3)
    assert torch.allclose(both, torch.cat([two, one]), atol=1e-4)


def test_fresh_noise_is_neither_the_first_nor_repeated(exported):
    """Clips that shared it would resemble each other."""
    scheduler = pipeline_of(exported("wan")[1]).scheduler
    scheduler.set_timesteps(4)
    x, zero, seen = torch.randn(2, 16, 3, 4, 4), torch.zeros(2, 16, 3, 4, 4), []
    for t in scheduler.timesteps[:3]:
        before = x
        x = scheduler.step(zero, t, x, return_dict=False)[0]  # of clean latents `before`
        to = float(scheduler.sigmas[len(seen) + 1])
        seen.append((x - (1 - to) * before) / to)
    rows = torch.cat([n.flatten(1) for n in seen])
    likeness = torch.corrcoef(rows) - torch.eye(len(rows))
    assert likeness.abs().max() < 0.2 and (rows.std(1) - 1).abs().max() < 0.1


def test_times_are_the_students_and_others_are_refused(exported):
    _, folder = exported("wan")
    scheduler = pipeline_of(folder).scheduler
    for steps, times in ((1, [1000]), (2, [1000, 750]), (4, [1000, 900, 750, 500])):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == pytest.approx(times)
        assert scheduler.sigmas.tolist() == pytest.approx([t / 1000 for t in times] + [0])
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=3.0)  # LTX's call
    assert len(scheduler.timesteps) == 2
    with pytest.raises(ValueError, match="no times for 50 steps; use num_inference_steps=1, 2, 3"):
        scheduler.set_timesteps(50)


def test_phased_students_jump_without_noise(public, exported):
    times = [1.0, 0.6]
    facts = {"sampler": "flow_map", "phases": 2, "timesteps": times}
    student, folder = exported("wan", steps=2, **facts)
    pipeline = pipeline_of(folder)
    assert list(pipeline.scheduler.config.schedules) == ["2"]
    codec = load_model(public("wan") / "vae", VideoCodec)
    noise = SampleRng(6, [0]).normal(*codec.latent_shape(*SIZE.values()))
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    theirs = pipeline(PROMPT, latents=noise, **call, **SIZE).frames
    ours = native(student, codec, 2, noise, SampleRng(0, [0]))
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()


def test_students_with_noise_levels_of_their_own_start_at_pure_noise(student_of):
    student = load_student(student_of("wan", lowest_sigma=3.0))
    times = student.times(3).tolist()
    assert times[0] == 1 and times[-1] == pytest.approx(0.75)
    assert load_student(student_of("wan", lowest_sigma=3.0), shift=2.0).times(2)[1] == 2 / 3


def test_the_scheduler_needs_diffusers_alone():
    tree = ast.parse(Path(scheduling_few_step.__file__).read_text("utf-8"))
    modules = {
        (n.module if isinstance(n, ast.ImportFrom) else n.names[0].name) or ""
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    outside = {m.partition(".")[0] for m in modules}
    assert outside == {"hashlib", "collections", "typing", "torch", "diffusers"}


def test_without_trust_nothing_of_it_runs(exported):
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(exported("wan")[1])


def test_shared_parts_are_links_and_nothing_is_pickled(public, student_of, tmp_path):
    import shutil

    base = shutil.copytree(public("wan"), tmp_path / "base")
    (base / "text_encoder" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    student = load_student(student_of("wan"))
    student = replace(student, card={**student.card, "spec": {"base": str(base / "transformer")}})
    target = build("export_target", {"name": "diffusers"})
    export_student(student, target, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.bin"))
    for name in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        assert (tmp_path / "out" / name).samefile(base / name)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["tokenizer"] == json.loads((base / "model_index.json").read_text())["tokenizer"]


def test_a_student_with_its_own_text_tower_comes_without_shared_parts(tmp_path):
    """As one that was trained on latents of vidcm's own codec."""
    import tiny
    from diffusers import WanPipeline
    from tiny_public import WAN

    from vidcm.store import save_model

    spec = {
        "name": "public_denoiser",
        "config": {**WAN, "_class_name": "WanTransformer3DModel"},
        "conditioner": tiny.TEXT,
        "guidance_scale": 2.0,
    }
    weights = tiny.shaken(build("model", spec)).state_dict()
    metadata = {"student": {"sampler": "consistency", "shift": 4.0}}
    save_model(tmp_path / "student", spec, weights, metadata=metadata)
    student, out = load_student(tmp_path / "student", storage="fp32"), tmp_path / "out"
    manifest = export_student(student, build("export_target", {"name": "diffusers"}), out)
    assert manifest["absent"] == ["vae", "text_encoder", "tokenizer"]
    absent = dict.fromkeys(manifest["absent"])
    pipeline = WanPipeline.from_pretrained(out, trust_remote_code=True, **absent)
    noise, cond = SampleRng(5, [0]).normal(16, 3, 4, 4), student.denoiser.encode([PROMPT])
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    theirs = pipeline(prompt_embeds=cond.tokens, latents=noise, **call, **SIZE).frames
    rng = SchedulerNoise(noise, layout_of(student.family))
    ours = samplers.consistency(student.denoiser, noise, student.times(2), cond, rng)
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()


def test_verify_tells_what_changed(exported, tmp_path):
    import shutil

    _, folder = exported("wan")
    found = verify(folder)
    assert found.keys() == {"1 step", "2 steps", "4 steps", "decoded", "same seed"}
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "vae" / "config.json").unlink()
    with pytest.raises(VidcmError, match="lacks vae/config.json"):
        verify(copy)
    copy = shutil.copytree(folder, tmp_path / "other")
    code = copy / "scheduler" / "scheduling_few_step.py"
    code.write_text(code.read_text() + "\nraise SystemExit('ran')\n")
    with pytest.raises(VidcmError, match="altered"):
        verify(copy)
    manifest = json.loads((copy / "vidcm.json").read_text())
    manifest["files"].pop("scheduler/scheduling_few_step.py")  # as somebody might who means harm
    (copy / "vidcm.json").write_text(json.dumps(manifest))
    with pytest.raises(VidcmError, match="is not the scheduler of this vidcm, and is not run"):
        verify(copy)
    with pytest.raises(UsageError, match="is no export of vidcm"):
        verify(tmp_path)


def test_an_export_that_computes_something_else_is_not_written(student_of, tmp_path, monkeypatch):
    """The planted mistake: times that are not the student's."""
    from vidcm.exports.student import PublicStudent

    student = load_student(student_of("wan"))
    good = PublicStudent.schedule

    def late(self, steps):
        found = good(self, steps)
        return {**found, "timesteps": [t - 30 for t in found["timesteps"]]}

    monkeypatch.setattr(PublicStudent, "schedule", late)
    with pytest.raises(VidcmError, match="computes something else than the student"):
        export_student(student, build("export_target", {"name": "diffusers"}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
