"""The pipeline, on a tiny random model made by the export command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from vidcm import VideoPipeline
from vidcm.cli import export
from vidcm.diffusion.times import SHIFT, student_timesteps
from vidcm.errors import UsageError, VidcmError
from vidcm.media.clips import Clips
from vidcm.media.pictures import read_picture
from vidcm.media.write import numbered
from vidcm.settings import BUNDLED
from vidcm.store import read_card, read_weights

PROMPT = "a woman with purple hair walks left"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """`models/` of separate runs and the `pipeline/` exported from them."""
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(made) -> VideoPipeline:
    return VideoPipeline.from_pretrained(made / "pipeline", device="cpu")


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "pipeline", tmp_path / "copy"))


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two clips, in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- clips ----------------------------------------------------------------------------------------


def test_a_clip(pipe):
    clips = pipe(PROMPT)
    assert clips.frames.shape == (1, 5, 16, 24, 3) and clips.frames.dtype == np.uint8
    assert clips.frames.std() > 1 and len(clips) == 1
    assert clips.prompts == [PROMPT] and clips.seeds == [0] and clips.fps == 8.0
    assert clips.evaluations == 2  # the checkpoint's own steps
    assert list(clips.seconds) == ["text", "denoise", "decode"] and min(clips.seconds.values()) > 0


def test_the_same_seed_is_the_same_clip_whatever_the_batch(pipe):
    """Cases: R12."""
    together = pipe([PROMPT, "an orc"], num_videos_per_prompt=2, seed=5)
    assert together.seeds == [5, 6, 7, 8]
    assert together.prompts == [PROMPT, PROMPT, "an orc", "an orc"]
    for frames, prompt, seed in zip(together.frames, together.prompts, together.seeds, strict=True):
        # A batch may be summed in another order: one grey level of rounding.
        assert apart(pipe(prompt, seed=seed).frames[0], frames) <= 1
    chosen = pipe([PROMPT, PROMPT], seed=[6, 5])
    assert apart(chosen.frames, together.frames[[1, 0]]) <= 1
    assert apart(together.frames[0], together.frames[1]) > 9


def test_prompts_steps_guidance_and_the_negative_prompt_change_the_clip(pipe):
    base = pipe(PROMPT, seed=3)
    assert pipe(PROMPT, seed=3).frames.tolist() == base.frames.tolist()
    assert apart(pipe("an orc", seed=3).frames, base.frames) > 1
    assert apart(pipe(PROMPT, seed=3, guidance_scale=1.0).frames, base.frames) > 0
    assert apart(pipe(PROMPT, seed=3, negative_prompt="an orc").frames, base.frames) > 1
    for teacher in (False, True):
        one, three = (
            pipe(PROMPT, seed=3, num_inference_steps=n, use_teacher=teacher) for n in (1, 3)
        )
        assert apart(one.frames, three.frames) > 1


def test_the_empty_negative_prompt_is_the_default_and_guidance_one_ignores_it(pipe):
    base = pipe(PROMPT, guidance_scale=1.0)
    assert (
        apart(pipe(PROMPT, guidance_scale=1.0, negative_prompt="an orc").frames, base.frames) <= 1
    )
    same = pipe(PROMPT, use_teacher=True, guidance_scale=1.0)
    assert (
        apart(
            pipe(PROMPT, use_teacher=True, guidance_scale=1.0, negative_prompt="an orc").frames,
            same.frames,
        )
        <= 1
    )


@pytest.mark.parametrize(
    "options, evaluations",
    [
        ({}, 2), ({"num_inference_steps": 1}, 1), ({"num_inference_steps": 4}, 4), ({"num_inference_steps": 4, "negative_prompt": "x"}, 12),
        ({"use_teacher": True}, 6), ({"use_teacher": True, "num_inference_steps": 5}, 10),
        ({"use_teacher": True, "num_inference_steps": 5, "solver": "heun"}, 18),
        ({"use_teacher": True, "num_inference_steps": 5, "solver": "dpm"}, 10),
    ],
)  # fmt: skip
def test_evaluations_are_counted_as_they_are(pipe, monkeypatch, options, evaluations):
    model = pipe.model("teacher" if options.get("use_teacher") else "student")
    rows = []
    forward = model.backbone.forward
    monkeypatch.setattr(
        model.backbone, "forward", lambda x, *rest: rows.append(len(x)) or forward(x, *rest)
    )
    assert pipe(PROMPT, **options).evaluations == evaluations == sum(rows)


def test_the_solver_of_the_teacher_is_chosen(pipe):
    euler, heun, dpm = (
        pipe(PROMPT, use_teacher=True, num_inference_steps=5, solver=s).frames
        for s in ("euler", "heun", "dpm")
    )
    assert apart(euler, heun) > 1 and apart(euler, dpm) > 1 and apart(heun, dpm) > 1
    assert apart(pipe(PROMPT, use_teacher=True, num_inference_steps=5).frames, euler) == 0
    with pytest.raises(UsageError, match="solver is 'rk4'; use euler, heun, dpm"):
        pipe(PROMPT, use_teacher=True, solver="rk4")


def test_progress_counts_steps_and_may_cancel(pipe):
    seen = []

    def watch(*at):
        seen.append(at)

    pipe(PROMPT, num_inference_steps=3, callback_on_step_end=watch)
    assert [(owner is pipe, step) for owner, step, *_ in seen] == [(True, i) for i in range(3)]
    assert [time for _, _, time, _ in seen] == pytest.approx(student_timesteps(3))
    assert all(state["latents"].shape == (1, 5, 2, 2, 3) for *_, state in seen)

    def cancel(*at):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(PROMPT, num_inference_steps=3, callback_on_step_end=cancel)


@pytest.mark.parametrize("teacher", [False, True])
def test_a_long_clip_begins_as_the_short_one_of_its_seed(pipe, teacher):
    short, long = (pipe(PROMPT, seed=3, num_frames=n, use_teacher=teacher) for n in (None, 13))
    assert long.frames.shape == (1, 13, 16, 24, 3)
    assert apart(long.frames[:, :5], short.frames) <= 1
    assert long.evaluations == 3 * short.evaluations
    assert apart(pipe(PROMPT, seed=3, num_frames=13, use_teacher=teacher).frames, long.frames) == 0
    steered = pipe(PROMPT, seed=3, num_frames=13, use_teacher=teacher, negative_prompt="an orc")
    assert apart(steered.frames, long.frames) > 1


def test_sizes_other_than_the_checkpoint_s(pipe):
    for frames, height, width in [(1, 16, 24), (5, 8, 16), (9, 24, 40)]:
        clips = pipe(PROMPT, num_frames=frames, height=height, width=width)
        assert clips.frames.shape == (1, frames, height, width, 3)
        assert clips.evaluations == 2 * (1 if height <= 16 else 2 * 2 * 2)


def test_prompts_that_take_over_change_the_clip_from_there_on(pipe):
    """No window's prompt reaches the windows before it."""
    base = pipe([PROMPT, "a lady"], seed=3, num_frames=17).frames
    same = pipe([PROMPT, "a lady"], seed=3, num_frames=17, prompt_schedule=[(9, PROMPT)]).frames
    assert apart(same[0], base[0]) <= 1
    other = pipe(
        [PROMPT, "a lady"], seed=3, num_frames=17, prompt_schedule=[(5, "an orc"), (13, "a cat")]
    ).frames
    assert apart(other[:, :5], base[:, :5]) <= 1
    for at in (5, 9, 13):
        assert apart(other[:, at : at + 4], base[:, at : at + 4]) > 1
    assert apart(other[:, 9:13], other[:, 13:]) > 1


def test_models_of_several_shapes_use_windows_beyond_the_largest(made, tmp_path, capsys):
    models = {role: made / "models" / role for role in ("codec", "teacher", "student")}
    arguments = tiny.export_arguments(models, tmp_path / "out")
    assert export.main([*arguments, "--bucket", "6x16x16"]) == 2
    assert "6 frames do not fit" in capsys.readouterr().err
    assert export.main([*arguments, "--bucket", "13x16x16"]) == 0
    pipe = VideoPipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert pipe.settings.shapes == [(5, 16, 24), (13, 16, 16)]
    assert pipe(PROMPT, num_inference_steps=1, num_frames=13).evaluations == 1
    assert pipe(PROMPT, num_inference_steps=1, num_frames=17).evaluations == 2


def test_global_randomness_plays_no_part(pipe):
    torch.manual_seed(1)
    first = pipe(PROMPT).frames
    torch.manual_seed(2)
    assert pipe(PROMPT).frames.tolist() == first.tolist()


def test_saving_one_and_several(pipe, tmp_path):
    clips = pipe([PROMPT, "an orc"])
    assert [p.name for p in clips.save(tmp_path / "x.png", scale=2)] == ["x-1.png", "x-2.png"]
    image = read_picture(tmp_path / "x-2.png")
    assert image.shape == (32, 5 * 48, 3)
    np.testing.assert_array_equal(image[::2, :48:2], clips.frames[1, 0])
    with pytest.raises(UsageError, match="x-1.png exists"):
        clips.save(tmp_path / "x.png")
    one = Clips(clips.frames[:1], ["a"], [0], 8.0, 1)
    assert one.save(tmp_path / "y.mp4") == [tmp_path / "y.mp4"]


def test_numbers_of_files():
    assert numbered("a/b.mp4", 1) == ["a/b.mp4"]
    assert numbered("a/b.mp4", 2) == ["a/b-1.mp4", "a/b-2.mp4"]
    assert numbered("a/b/", 2) == ["a/b-1/", "a/b-2/"]


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompts, options, message",
    [
        ("", {}, "the prompt is empty"),
        (" \n\t", {}, "the prompt is empty"),
        ([], {}, "there is no prompt"),
        ([PROMPT, ""], {}, "the prompt is empty"),
        ([3], {}, "prompt is 3; expected text"),
        (7, {}, "prompt is 7; expected text or a list"),
        (None, {}, "give either a prompt or prompt_embeds"),
        ("x" * 5_000_000, {}, "5000000 characters is too long; use at most 2000"),
        (PROMPT, {"num_inference_steps": 0}, "num_inference_steps is 0; use 1 to 1000"),
        (PROMPT, {"num_inference_steps": 10**6}, "use 1 to 1000"),
        (PROMPT, {"num_inference_steps": "4"}, "num_inference_steps is '4'; expected a whole"),
        (PROMPT, {"num_inference_steps": 1.5}, "is 1.5; expected a whole number"),
        (PROMPT, {"num_inference_steps": True}, "is True; expected a whole number"),
        (PROMPT, {"guidance_scale": -1.0}, "guidance_scale is -1; use 0 to 100"),
        (PROMPT, {"guidance_scale": float("nan")}, "guidance_scale is nan"),
        (PROMPT, {"guidance_scale": "3"}, "guidance_scale is '3'; expected a number"),
        (PROMPT, {"negative_prompt": None}, "negative_prompt is None; expected text"),
        (PROMPT, {"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0; use 1"),
        (PROMPT, {"num_videos_per_prompt": 10**8}, "100000000 clips of 5 frames of 24x16 need"),
        (PROMPT, {"height": 65536, "width": 65536}, "1 clip of 5 frames .* GiB of memory"),
        (PROMPT, {"seed": [1, 2]}, "2 seeds for 1 clips"),
        (PROMPT, {"seed": 1.5}, "seed is 1.5; expected a whole number"),
        (PROMPT, {"seed": "5"}, "seed is '5'; expected a whole number"),
        (PROMPT, {"seed": -1}, "seed is -1; use 0 to"),
        (PROMPT, {"seed": 2**63}, "seed is 9223372036854775808; use 0 to"),
        (PROMPT, {"seed": 1, "generator": torch.Generator()}, "either a seed or a generator"),
        (PROMPT, {"generator": [torch.Generator()] * 2}, "give a torch.Generator, or 1"),
        (PROMPT, {"generator": 3}, "generator is 3; give a torch.Generator"),
        (
            PROMPT,
            {"latents": torch.zeros(1, 5, 2, 2, 2)},
            r"expected .* of shape \(1, 5, 2, 2, 3\)",
        ),
        (PROMPT, {"prompt_embeds": 3}, "give either a prompt or prompt_embeds"),
        (None, {"prompt_embeds": 3}, "prompt_embeds is a int; use encode_prompt"),
        (PROMPT, {"output_type": "numpy"}, "output_type is 'numpy'; use np, pt, pil, latent"),
        (PROMPT, {"callback_on_step_end": 3}, "callback_on_step_end is 3; expected a function"),
        (PROMPT, {"batch_size": 0}, "batch_size is 0; use 1"),
        (PROMPT, {"solver": "heun"}, "solver is the teacher's"),
        (PROMPT, {"solver": []}, r"solver is \[\]; use euler"),
        (PROMPT, {"use_teacher": "no"}, "use_teacher is 'no'; expected True or False"),
        (PROMPT, {"guidance_scale": 10**400}, "guidance_scale is inf; use 0 to 100"),
        (PROMPT, {"negative_prompt": "x" * 2001}, "negative_prompt of 2001 characters"),
        (PROMPT, {"latents": torch.zeros(1, 5, 2, 2, 3).long()}, "torch.int64 .* dense real"),
        (PROMPT, {"latents": torch.zeros(1, 5, 2, 2, 3, device="meta")}, "on meta"),
        (PROMPT, {"latents": torch.zeros(1, 5, 2, 2, 3).to_sparse()}, "torch.sparse_coo"),
        (PROMPT, {"latents": torch.full((1, 5, 2, 2, 3), torch.nan)}, "latents .* not finite"),
        (PROMPT, {"callback_on_step_end": lambda *_: "x"}, "returned a str; expected"),
        (PROMPT, {"callback_on_step_end": lambda *_: {"latent": 1}}, "returned a dict; expected"),
        (PROMPT, {"solver": 3}, "solver is 3; use euler"),
        (PROMPT, {"num_frames": 6}, "6 frames do not fit .* use 5 or 9"),
        (PROMPT, {"num_frames": -3}, "num_frames is -3; use 1 to 100000"),
        (PROMPT, {"num_frames": "9"}, "num_frames is '9'; expected a whole number"),
        (PROMPT, {"width": 20}, "width 20 is not a multiple of 8; use 16 or 24"),
        (PROMPT, {"width": 0}, "width is 0; use 1 to"),
        (PROMPT, {"prompt_schedule": 5}, r"prompt_schedule is 5; expected \[\(frame, prompt\)"),
        (
            PROMPT,
            {"prompt_schedule": [(3, "an orc")]},
            "would show nowhere: .* has 1; ask for more",
        ),
        (
            PROMPT,
            {"num_frames": 9, "prompt_schedule": [(0, "an orc")]},
            "prompt_schedule is 0; use",
        ),
        (PROMPT, {"num_frames": 9, "prompt_schedule": [(5, "a"), (3, "b")]}, "at the frames 5, 3"),
        (PROMPT, {"num_frames": 9, "prompt_schedule": [(5, " ")]}, "the prompt is empty"),
        (
            PROMPT,
            {"num_frames": 9, "prompt_schedule": [(5, "a"), (6, "b")]},
            "from frame 5 on would",
        ),
        (PROMPT, {"num_frames": 9, "prompt_schedule": [(9, "a")]}, "prompt from frame 9 on would"),
        (PROMPT, {"steps": 4}, "no argument 'steps'; it is called 'num_inference_steps' here"),
        (PROMPT, {"num_frame": 4}, "no argument 'num_frame'; did you mean 'num_frames'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_requests_that_make_no_sense(pipe, prompts, options, message):
    with pytest.raises(UsageError, match=message):
        pipe(prompts, **options)


def test_a_folder_that_is_no_pipeline(tmp_path, made):
    with pytest.raises(UsageError, match="is neither a bundled model .* nor a pipeline folder"):
        VideoPipeline.from_pretrained(tmp_path)
    with pytest.raises(UsageError, match="nor a pipeline folder"):
        VideoPipeline.from_pretrained(made / "models" / "student")
    with pytest.raises(UsageError, match="lpc-46 is neither"):
        VideoPipeline.from_pretrained("lpc-46")
    for name in (None, 3, b"lpc-64"):
        with pytest.raises(UsageError, match="the pipeline is .*; expected the path"):
            VideoPipeline.from_pretrained(name)
    with pytest.raises(UsageError, match="unknown device 'tpux'"):
        VideoPipeline.from_pretrained(made / "pipeline", device="tpux")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "cannot read"),
        ("[]", "is damaged"),
        ('{"frames": 5}', "unknown key 'frames'; did you mean 'num_frames'.*export it again"),
        (100_000 * "[", "cannot read"),
    ],
)
def test_settings_that_are_damaged(copy, text, message):
    (copy / "pipeline.json").write_text(text)
    with pytest.raises(VidcmError, match=message):
        VideoPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("num_frames", 0, "num_frames is 0; use 1"),
        ("height", 10**9, "height is 1000000000"),
        ("fps", -1, "fps is -1"),
        ("fps", 10**400, "fps: 1000.* is not a finite number"),
        ("trained_shapes", [[0, 16, 24]], "num_frames is 0"),
        ("teacher.shift", 0, "teacher.shift is 0"),
        ("student.shift", -1, "student.shift is -1"),
        ("teacher.num_inference_steps", 10**9, "teacher.num_inference_steps is 1000000000"),
        ("student.guidance_scale", -5, "student.guidance_scale is -5"),
        ("student.guidance_range", [3, 1], "student.guidance_range is 3, 1"),
        ("student.timesteps", [0.1, 0.5], "student.timesteps are .*; use one for each"),
        ("student.timesteps", [2.0, 0.5], "student.timesteps are .*; use one for each"),
    ],
)
def test_settings_of_no_use_are_named(copy, key, value, message):
    file = copy / "pipeline.json"
    data = json.loads(file.read_text())
    *parents, leaf = key.split(".")
    group = data[parents[0]] if parents else data
    group[leaf] = value
    file.write_text(json.dumps(data))
    with pytest.raises(VidcmError, match=f"pipeline.json: {message}.*export it again"):
        VideoPipeline.from_pretrained(copy)


def test_an_export_does_not_replace_its_sources(made, copy, capsys):
    before = {file: file.read_bytes() for file in copy.rglob("*.*")}
    models = {role: copy / role for role in ("codec", "teacher", "student")}
    words = tiny.export_arguments(models, copy)
    assert export.main([*words, "--overwrite"]) == 2
    assert "which would replace it by half precision" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in copy.rglob("*.*")} == before


def test_roles_are_not_mixed_up(copy):
    (copy / "student").rename(copy / "other")
    (copy / "teacher").rename(copy / "student")
    (copy / "other").rename(copy / "teacher")
    pipe = VideoPipeline.from_pretrained(copy, device="cpu")
    with pytest.raises(
        UsageError, match="student is not a student: a student takes a guidance scale"
    ):
        pipe(PROMPT)
    with pytest.raises(UsageError, match="teacher is not a teacher"):
        pipe(PROMPT, use_teacher=True)


def test_a_part_that_is_another_kind(copy):
    shutil.rmtree(copy / "codec")
    shutil.copytree(copy / "student", copy / "codec")
    with pytest.raises(UsageError, match="codec holds a Denoiser; expected a VideoCodec"):
        VideoPipeline.from_pretrained(copy, device="cpu")


# --- export ---------------------------------------------------------------------------------------


def test_export_keeps_what_was_made_in_half_precision(made):
    settings = json.loads((made / "pipeline" / "pipeline.json").read_text())
    assert [settings[k] for k in ("num_frames", "height", "width")] == list(tiny.SIZE.values())
    assert settings["student"] == {
        "num_inference_steps": 2, "guidance_scale": 3.0, "guidance_range": [1.0, 5.0],
        "max_inference_steps": 8, "sampler": "consistency",
    }  # fmt: skip
    for role in ("codec", "teacher", "student"):
        folders = made / "models" / role, made / "pipeline" / role
        cards = [read_card(f) for f in folders]
        assert cards[0]["spec"] == cards[1]["spec"]
        weights = [read_weights(f) for f in folders]
        for name, tensor in weights[0].items():
            assert weights[1][name].dtype == torch.float16
            torch.testing.assert_close(weights[1][name].float(), tensor, rtol=1e-3, atol=1e-4)


def test_export_replaces_models_and_leaves_the_rest(made, copy, capsys):
    models = {role: made / "models" / role for role in ("codec", "teacher", "student")}
    (copy / "README.md").write_text("a card")
    arguments = tiny.export_arguments(models, copy)
    assert export.main(arguments) == 2
    assert "holds files; give another --output, or --overwrite" in capsys.readouterr().err
    assert export.main([*arguments, "--overwrite", "--fps", "5"]) == 0
    assert (copy / "README.md").read_text() == "a card"
    assert VideoPipeline.from_pretrained(copy, device="cpu").settings.fps == 5


def test_exported_teachers_have_a_scale_and_a_grid_of_their_own(made, copy):
    models = {role: made / "models" / role for role in ("codec", "teacher", "student")}
    arguments = [*tiny.export_arguments(models, copy), "--overwrite", "--guidance", "1.5"]
    last = {}
    for options, scale in (([], 1.5), (["--teacher-guidance", "1.2", "--shift", "200"], 1.2)):
        assert export.main([*arguments, *options]) == 0
        pipe = VideoPipeline.from_pretrained(copy, device="cpu")
        assert pipe.generation("student").guidance_scale == 1.5
        assert pipe.generation("teacher").guidance_scale == scale
        *_, before, end = pipe.generation("teacher", 5).timesteps()
        last[scale] = before / (1 - before)  # sigma / alpha where the last step begins
        assert end == 0
    assert last[1.5] == pytest.approx(SHIFT / 4) and last[1.2] == pytest.approx(200 / 4)


@pytest.mark.parametrize(
    "swap, options, code, message",
    [
        (
            {"student": "teacher"},
            [],
            2,
            "teacher is not a student: a student takes a guidance scale",
        ),
        ({"teacher": "student"}, [], 2, "student is not a teacher"),
        ({"codec": "student"}, [], 2, "is not a codec: it holds a Denoiser"),
        ({"codec": "none"}, [], 2, "none is not a model folder"),
        ({}, ["--frames", "6"], 2, "6 frames do not fit"),
        ({}, ["--width", "20"], 2, "width 20 is not a multiple of 8"),
    ],
)
def test_a_refused_export_leaves_nothing(made, tmp_path, capsys, swap, options, code, message):
    names = {role: role for role in ("codec", "teacher", "student")} | swap
    models = {role: made / "models" / name for role, name in names.items()}
    output = tmp_path / "out"
    assert export.main([*tiny.export_arguments(models, output), *options]) == code
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_another_codec_s_latents_are_refused(made, tmp_path, capsys):
    codec = tiny.save(tmp_path / "codec", tiny.CODEC | {"channels": 3})
    models = {role: made / "models" / role for role in ("teacher", "student")} | {"codec": codec}
    assert export.main(tiny.export_arguments(models, tmp_path / "out")) == 2
    assert "latents of 5 channels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- what ships -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> VideoPipeline:
    if not (BUNDLED / "lpc-64" / "pipeline.json").is_file():
        pytest.skip(f"{BUNDLED / 'lpc-64'} is not there")
    return VideoPipeline.from_pretrained("lpc-64", device="cpu")


def test_the_bundled_model_makes_clips(bundled):
    clips = bundled(
        [PROMPT, "a man in steel armor slashes, on a red background"], num_inference_steps=1
    )
    assert clips.frames.shape == (2, 9, 64, 64, 3) and clips.evaluations == 1
    corners = clips.frames[1, :, :4, :4].reshape(-1, 3).mean(0)
    assert corners[0] > corners[1] + 30 and corners[0] > corners[2] + 30
    assert np.abs(np.diff(clips.frames.astype(int), axis=1)).mean() > 0.3


def test_the_bundled_model_is_small_and_documented(bundled):
    folder = BUNDLED / "lpc-64"
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) < 60 * 2**20
    card = (folder / "README.md").read_text("utf-8")
    assert "CC-BY-SA" in card
