"""The Python API as users of diffusers know it: names, randomness, output types, precision."""

import inspect
import random
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import vidcm
from vidcm import VideoPipeline
from vidcm.errors import UsageError
from vidcm.inputs import warnings_about
from vidcm.media.clips import Clips
from vidcm.rng import SampleRng

PROMPT = "a woman with purple hair walks left"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.pipeline(tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def pipe(folder) -> VideoPipeline:
    return VideoPipeline.from_pretrained(folder, device="cpu")


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest difference of two clips, in grey levels."""
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [VideoPipeline.__call__, VideoPipeline.edit, VideoPipeline.from_pretrained]
)
def test_signatures_name_every_argument(method):
    kinds = {p.kind for p in inspect.signature(method).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def test_wrong_names_are_refused_with_the_right_one(pipe, folder):
    with pytest.raises(UsageError, match="'guidance'; it is called 'guidance_scale' here"):
        pipe.edit("image", [], PROMPT, guidance=2)
    with pytest.raises(UsageError, match="'dtype'; it is called 'torch_dtype' here"):
        VideoPipeline.from_pretrained(folder, dtype=torch.float32)
    with pytest.raises(UsageError, match="too many positional .*; name the arguments"):
        pipe(PROMPT, "an orc")
    with pytest.raises(UsageError, match="'task'"):
        pipe.edit()


# --- randomness -----------------------------------------------------------------------------------


def test_seeds_drawn_with_numpy_and_torch_are_seeds(pipe):
    clip = pipe(PROMPT, seed=7).frames
    for seed in (np.int64(7), np.random.default_rng(0).integers(7, 8), torch.tensor(7), None):
        same = pipe(PROMPT, seed=seed).frames
        assert (apart(same, clip) == 0) == (seed is not None)
    for pair in (np.arange(7, 9), range(7, 9), torch.tensor([7, 8]), [7, np.int32(8)]):
        clips = pipe(PROMPT, num_videos_per_prompt=2, seed=pair)
        assert clips.seeds == [7, 8] and apart(clips[0], clip[0]) <= 1


def test_generators_give_seeds_that_give_the_clips_again(pipe):
    generator = torch.Generator().manual_seed(3)
    first, second = (pipe([PROMPT, "an orc"], generator=generator) for _ in range(2))
    assert len({*first.seeds, *second.seeds}) == 4
    assert apart(pipe([PROMPT, "an orc"], seed=first.seeds).frames, first.frames) == 0
    again = pipe([PROMPT, "an orc"], generator=torch.Generator().manual_seed(3), batch_size=1)
    assert again.seeds == first.seeds and apart(again.frames, first.frames) <= 1
    several = [torch.Generator().manual_seed(s) for s in (3, 4)]
    assert pipe([PROMPT, "an orc"], generator=several).seeds[0] == first.seeds[0]


def test_a_clip_does_not_depend_on_the_default_dtype(pipe, folder):
    clip = pipe(PROMPT, seed=7).frames
    edited = pipe.edit("animate", [clip[0][:1]], PROMPT, seed=7).frames
    torch.set_default_dtype(torch.float64)
    try:
        for one in (pipe, VideoPipeline.from_pretrained(folder, device="cpu")):
            assert apart(one(PROMPT, seed=7).frames, clip) == 0
            assert apart(one.edit("animate", [clip[0][:1]], PROMPT, seed=7).frames, edited) == 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_neither_loading_nor_calling_moves_global_generators(folder):
    def draws() -> tuple[float, float, float]:
        return torch.rand(1).item(), random.random(), float(np.random.rand())

    def after(work) -> tuple[float, float, float]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        work()
        return draws()

    expected, loaded = after(lambda: None), []
    assert after(lambda: loaded.append(VideoPipeline.from_pretrained(folder))) == expected
    for _ in range(2):  # the first call loads the student
        assert after(lambda: loaded[0](PROMPT)) == expected


def test_latents_are_the_noise_that_a_seed_draws(pipe):
    clip = pipe(PROMPT, seed=3)
    noise = SampleRng.of_seeds([3]).normal(5, 2, 2, 3)
    one = pipe(PROMPT, seed=3, num_inference_steps=1)
    assert apart(pipe(PROMPT, latents=noise, num_inference_steps=1).frames, one.frames) == 0
    other = pipe(PROMPT, latents=-noise, num_inference_steps=1)
    assert apart(other.frames, one.frames) > 1 and clip.seeds == [3]


# --- prompts --------------------------------------------------------------------------------------


def test_embedded_prompts_stand_for_prompts(pipe):
    embeds = pipe.encode_prompt([PROMPT, "an orc"])
    clips = pipe(prompt_embeds=embeds, num_videos_per_prompt=2, seed=3)
    same = pipe([PROMPT, "an orc"], num_videos_per_prompt=2, seed=3)
    assert apart(clips.frames, same.frames) <= 1 and clips.prompts == [""] * 4
    teacher = pipe.encode_prompt(PROMPT, use_teacher=True)
    taught = pipe(prompt_embeds=teacher, use_teacher=True)
    assert apart(taught.frames, pipe(PROMPT, use_teacher=True).frames) == 0


def test_a_batch_encodes_its_own_captions_once(pipe, monkeypatch):
    model, calls = pipe.model("student"), []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda *args: calls.append(args) or encode(*args))
    pipe([PROMPT, "an orc"], num_videos_per_prompt=3, batch_size=2)
    assert [args[0] for args in calls] == [[PROMPT] * 2, [PROMPT, "an orc"], ["an orc"] * 2]


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_frames": 13, "prompt_schedule": [(9, "an orc")]},
        {"use_teacher": True, "negative_prompt": "an orc"},
    ],
)
def test_clips_are_the_same_in_any_batch(pipe, options):
    prompts, rows = [PROMPT, "a cat"], []
    backbone = pipe.model("teacher" if "use_teacher" in options else "student").backbone
    hook = backbone.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    whole = pipe(prompts, num_videos_per_prompt=3, seed=2, **options)
    most = max(rows)
    for batch in (1, 4):
        rows.clear()
        clips = pipe(prompts, num_videos_per_prompt=3, seed=2, batch_size=batch, **options)
        assert apart(clips.frames, whole.frames) <= 1 and clips.evaluations == whole.evaluations
        assert max(rows) <= most
    hook.remove()


def test_many_clips_are_not_sampled_at_once(pipe, monkeypatch):
    monkeypatch.setattr("vidcm.pipeline.BATCH_PIXELS", 2 * 5 * 16 * 24)
    rows = []
    backbone = pipe.model("student").backbone
    hook = backbone.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    assert len(pipe(PROMPT, num_videos_per_prompt=5, num_inference_steps=1)) == 5
    assert rows == [2, 2, 1]
    hook.remove()


# --- callbacks ------------------------------------------------------------------------------------


def test_a_callback_sees_and_changes_the_latents(pipe):
    latents = pipe(PROMPT, output_type="latent").frames

    def last(owner, step, time, state):
        return {"latents": latents if step == 1 else state["latents"]}

    other = pipe("an orc", seed=5, callback_on_step_end=last, output_type="latent").frames
    assert torch.equal(other, latents)
    with pytest.raises(UsageError, match=r"returned other latents than \(1, 5, 2, 2, 3\)"):
        pipe(PROMPT, callback_on_step_end=lambda *_: {"latents": torch.zeros(3)})


# --- output types ---------------------------------------------------------------------------------


def test_output_types_hold_the_same_clips(pipe):
    clips = {
        kind: pipe([PROMPT, "an orc"], output_type=kind) for kind in ("np", "pt", "pil", "latent")
    }
    array = clips["np"].frames
    assert array.dtype == np.uint8 and array.shape == (2, 5, 16, 24, 3)
    assert clips["pt"].frames.dtype == torch.uint8
    np.testing.assert_array_equal(clips["pt"].frames.numpy(), array)
    assert [len(clip) for clip in clips["pil"].frames] == [5, 5]
    np.testing.assert_array_equal(np.asarray(clips["pil"][1][4]), array[1, 4])
    assert clips["latent"].frames.shape == (2, 5, 2, 2, 3)
    frames = pipe.generation().decode(clips["latent"].frames)
    np.testing.assert_array_equal(frames.numpy(), array)
    for kind in ("pt", "pil", "latent"):
        with pytest.raises(UsageError, match="cannot be written; use output_type='np'"):
            clips[kind].save("x.mp4")


def test_clips_are_a_sequence_with_a_short_repr(pipe):
    clips = pipe([PROMPT, "an orc"], seed=4)
    assert [clip.shape for clip in clips] == [(5, 16, 24, 3)] * 2 and len(clips) == 2
    assert clips[-1] is not None and clips[:1].shape[0] == 1
    text = "Clips(2 x 5 frames of 24x16 at 8 fps, output_type='np', seeds=[4, 5], evaluations=2)"
    assert repr(clips) == text
    latents = Clips(torch.zeros(1, 5, 2, 3, 4), ["a"], [0], 8.0, 1, output_type="latent")
    assert "1 x latents (5, 2, 3, 4)" in repr(latents)
    assert "5 frames of 24x16" in repr(pipe(PROMPT, output_type="pil"))


# --- precision ------------------------------------------------------------------------------------


def test_bfloat16_is_near_float32(folder, pipe):
    half = VideoPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, device="cpu")
    seen = []
    half.model("student").backbone.head[0].register_forward_hook(
        lambda _, args, out: seen.append(out.dtype)
    )
    found, expected = (p(PROMPT, seed=3, output_type="latent").frames for p in (half, pipe))
    assert found.dtype == torch.float32 and set(seen) == {torch.bfloat16}
    assert 0 < (found - expected).abs().max() < 0.2
    assert torch.equal(
        half.to(torch.float32)(PROMPT, seed=3, output_type="latent").frames, expected
    )
    picture = half.to(torch.bfloat16)(PROMPT).frames[0][:1]
    edited = half.edit("animate", [picture], PROMPT)
    np.testing.assert_array_equal(edited[0][:1], picture)


def test_precisions_and_devices(folder, pipe):
    assert pipe.dtype == torch.float32  # the default of a CPU
    assert pipe.to("cpu") is pipe and pipe.to(torch.device("cpu")).device.type == "cpu"
    half = VideoPipeline.from_pretrained(folder, torch_dtype="bfloat16", device=torch.device("cpu"))
    assert half.dtype == torch.bfloat16
    for dtype in (torch.float16, "fp8", 3):
        with pytest.raises(UsageError, match="torch_dtype is .*; use 'auto', torch.float32"):
            VideoPipeline.from_pretrained(folder, torch_dtype=dtype)
    with pytest.raises(UsageError, match="the device 'meta' is not supported"):
        pipe.to("meta")


# --- warnings -------------------------------------------------------------------------------------


def test_arguments_without_effect_are_named(pipe):
    assert warnings_about(pipe.generation(), [PROMPT], "an orc") == []
    found = warnings_about(pipe.generation(guidance_scale=1), [PROMPT], "an orc")
    assert found == ["the negative prompt has no effect at guidance 1; raise the guidance"]
    (found,) = warnings_about(pipe.generation(), ["word " * 15])
    assert found == "too long, the end of a prompt is not read: word word word word ..."


@pytest.mark.parametrize("use_teacher", [False, True])
def test_a_negative_prompt_at_guidance_1_costs_nothing(pipe, use_teacher):
    plain = pipe(PROMPT, guidance_scale=1, use_teacher=use_teacher)
    same = pipe(PROMPT, guidance_scale=1, use_teacher=use_teacher, negative_prompt="an orc")
    steps = 3 if use_teacher else 2
    assert plain.evaluations == same.evaluations == steps
    assert apart(plain.frames, same.frames) == 0


# --- files ----------------------------------------------------------------------------------------


def test_videos_are_read_for_editing(pipe, tmp_path):
    clips = pipe(PROMPT, seed=3)
    (path,) = clips.save(tmp_path / "frames/")
    film = vidcm.load_video(path, pipe)
    np.testing.assert_array_equal(film, clips[0])
    assert vidcm.load_video(path, pipe, num_frames=3, height=8, width=8).shape == (3, 8, 8, 3)
    edited = pipe.edit("animate", [vidcm.load_video(path, pipe, num_frames=1)], PROMPT)
    np.testing.assert_array_equal(edited[0][:1], clips[0][:1])


@pytest.mark.parametrize(
    "clips, message",
    [
        ([np.zeros((5, 16, 24, 3), np.float32)], "float32"),
        (np.zeros((5, 16, 24, 3), np.uint8), "give a list of clips"),
        (["clip.mp4"], "clip.mp4"),
        ([np.zeros((16, 24, 3), np.uint8)], r"\(16, 24, 3\)"),
        (5, "clips is 5"),
    ],
)
def test_clips_of_another_type_are_refused(pipe, clips, message):
    with pytest.raises(UsageError, match=message):
        pipe.edit("colorize", clips, PROMPT)


def test_a_clip_in_a_message_is_short(pipe):
    with pytest.raises(UsageError, match="a clip is a Tensor; give arrays"):
        pipe.edit("colorize", [torch.zeros(5, 16, 24, 3)], PROMPT)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_frames": 0}, "num_frames is 0; use 1"),
        ({"num_frames": 1.5}, "num_frames is 1.5; expected a whole number"),
        ({"height": 0}, "height is 0; use 1"),
        ({"width": 8.0}, "width is 8.0; expected a whole number"),
        ({"height": 65536, "width": 65536}, "GiB of memory"),
        ({"fps": 0}, "fps is 0; use 0.01"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": "8"}, "fps is '8'; expected a number"),
        ({"start": -1}, "start is -1; use 0"),
        ({"start": float("nan")}, "start is nan"),
        ({"size": 8}, "no argument 'size'"),
        ({"path": None}, "path is None; expected the path"),
        ({"pipe": "lpc-64"}, "pipe is a str; give the VideoPipeline"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_numbers_for_reading_a_video_are_checked(pipe, tmp_path, options, message):
    (path,) = pipe(PROMPT).save(tmp_path / "clip.png")
    with pytest.raises(UsageError, match=message):
        vidcm.load_video(**{"path": path, "pipe": pipe} | options)


@pytest.mark.parametrize("path", [None, 3, b"a.mp4"])
def test_clips_are_saved_under_a_name(pipe, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    clips = pipe(PROMPT)
    with pytest.raises(UsageError, match="output is .*; expected the path"):
        clips.save(path)
    with pytest.raises(UsageError, match="no argument 'format'"):
        clips.save("a.mp4", format="mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "task, message",
    [
        ({"name": "inpaint", "mask": None}, "the mask is object"),
        ({"name": "inpaint", "mask": "x"}, "the mask is <U1"),
        ({"name": "inpaint", "mask": np.ones(3)}, r"float64 \(3,\); give numbers \(h w\)"),
        ({"name": "inpaint", "mask": [[1], [1, 2]]}, "the mask is object"),
        ({"name": "outpaint", "place": (0, 0, 3)}, "give x, y, width and height"),
        ({"name": "outpaint", "place": (0, 0, 3.5, 3)}, "place is 3.5; expected a whole number"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_options_of_tasks_of_another_form_are_refused(pipe, task, message):
    with pytest.raises(UsageError, match=message):
        pipe.edit(task, [np.zeros((5, 16, 24, 3), np.uint8)], PROMPT)
    with pytest.raises(UsageError, match="zero_shot is 'no'"):
        pipe.edit(task, [], PROMPT, zero_shot="no")


@pytest.mark.parametrize("task", [5, None, {"nam": "loop"}, [3]])
def test_tasks_of_another_type_are_refused(pipe, task):
    with pytest.raises(UsageError, match="task"):
        pipe.edit(task, [], PROMPT)


def test_the_package_is_typed():
    assert (Path(vidcm.__file__).parent / "py.typed").is_file()
    assert {"VideoPipeline", "load_video"} <= set(dir(vidcm))


# --- completion -----------------------------------------------------------------------------------


def test_prompts_are_completed_from_the_seed_of_each_clip(folder):
    pipe = VideoPipeline.from_pretrained(folder, device="cpu")
    plain = pipe(PROMPT, num_videos_per_prompt=3, seed=5)
    assert plain.captions == plain.prompts == [PROMPT] * 3
    pipe.settings.prompt_reader = "lpc"
    del pipe.prompt_reader  # kept from the first call
    clips = pipe(PROMPT, num_videos_per_prompt=3, seed=5)
    assert clips.prompts == [PROMPT] * 3 and len(set(clips.captions)) == 3
    assert all("purple" in c and "walks left" in c for c in clips.captions)
    # A clip is that of its completed caption, in any batch, and the option switches all of it off.
    for i, caption in enumerate(clips.captions):
        same = pipe(caption, seed=5 + i, complete_prompt=False)
        assert apart(same[0], clips[i]) <= 1 and same.captions == [caption]
        assert pipe(PROMPT, seed=5 + i).captions == [caption]
    small = pipe(PROMPT, num_videos_per_prompt=3, seed=5, batch_size=2)
    assert small.captions == clips.captions and apart(small.frames, clips.frames) <= 1
    off = pipe(PROMPT, num_videos_per_prompt=3, seed=5, complete_prompt=False)
    assert off.captions == plain.captions and np.array_equal(off.frames, plain.frames)
    embeds = pipe.encode_prompt(PROMPT)
    assert np.array_equal(pipe(prompt_embeds=embeds, seed=5)[0], plain[0])


def test_warnings_take_the_readers_words_into_account(folder):
    pipe = VideoPipeline.from_pretrained(folder, device="cpu")
    pipe.settings.known_words = "woman"
    assert warnings_about(pipe.generation(), ["woman mohwak zeppelin"]) == [
        "the model does not know: mohwak, zeppelin"
    ]
    pipe.settings.prompt_reader = "lpc"
    assert warnings_about(
        pipe.generation(), ["woman mohwak zeppelin"], reader=pipe.prompt_reader
    ) == ["the model does not know: zeppelin"]
