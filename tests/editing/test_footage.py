"""Clips as cameras make them: their sound goes along, and what must be kept is kept to the bit."""

from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from editing.test_command import main

from vidcm.editing.operators import luminance
from vidcm.media.fit import fit, fit_mask
from vidcm.media.load import load_clip, load_every_frame
from vidcm.media.pictures import read_picture
from vidcm.media.sound import NoSound, add_sound, has_sound
from vidcm.media.write import write_clip, write_png

H, W, T = 16, 24, 5  # what the tiny pipeline makes, at 8 frames a second
SECONDS = 1.5


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    tiny.pipeline(folder)
    return folder


def film(path: Path, codec: str | None, rate: int = 48000) -> Path:
    """Moving noise of SECONDS at 16 fps, with a tone coded by `codec`."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        encoder = "libx264" if path.suffix in (".mp4", ".mkv") else "libvpx-vp9"
        pictures = out.add_stream(encoder, 16)
        pictures.height, pictures.width, pictures.pix_fmt = 30, 40, "yuv420p"
        sound = None if codec is None else out.add_stream(codec, rate)
        for i in range(int(16 * SECONDS)):
            picture = rng.integers(0, 256, (30, 40, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode(None))
        if sound is not None:
            tone = np.sin(np.arange(int(rate * SECONDS)) * 440 * 2 * np.pi / rate)
            samples = (8000 * tone).astype(np.int16)[None]
            for start in range(0, samples.shape[1], 960):
                part = samples[:, start : start + 960]
                frame = av.AudioFrame.from_ndarray(part, format="s16", layout="mono")
                frame.sample_rate, frame.pts = rate, start
                out.mux(sound.encode(frame))
            out.mux(sound.encode(None))
    return path


def packets(path: Path) -> list[tuple[float, bytes]]:
    """Second and content of each packet of sound."""
    with av.open(str(path)) as source:
        found = source.demux(source.streams.audio[0])
        return [(float(p.pts * p.time_base), bytes(p)) for p in found if p.size]


def length(path: Path) -> float:
    with av.open(str(path)) as source:
        return float(source.duration / 1e6)


# --- sound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec, ending", [("aac", ".mp4"), ("libopus", ".webm"), ("libopus", ".mp4")]
)
def test_packets_of_sound_are_copied_unchanged(tmp_path, codec, ending):
    source = film(tmp_path / f"source{ending}", codec)
    pictures = np.zeros((6, 16, 16, 3), np.uint8)
    made = write_clip(pictures, tmp_path / f"made{ending}", fps=8)
    assert has_sound(source) and not has_sound(made)
    add_sound(made, source, start=0.5)
    given, kept = packets(source), packets(made)
    assert [content for _, content in kept] == [
        content for at, content in given if 0.5 - 0.0214 < at < 0.5 + 6 / 8
    ]
    assert kept[0][0] == pytest.approx(0, abs=0.0214) and length(made) < 0.8
    with av.open(str(made)) as result:
        assert sum(1 for _ in result.decode(video=0)) == 6
    assert sorted(p.name for p in tmp_path.iterdir()) == [made.name, source.name]


def test_sound_that_a_container_does_not_take(tmp_path):
    source = film(tmp_path / "source.mp4", "aac")
    made = write_clip(np.zeros((6, 16, 16, 3), np.uint8), tmp_path / "made.webm", fps=8)
    before = made.read_bytes()
    with pytest.raises(NoSound, match=".webm does not support aac"):
        add_sound(made, source)
    with pytest.raises(NoSound, match="silent in these seconds"):
        add_sound(made.rename(tmp_path / "made.mp4"), source, start=9)
    assert (tmp_path / "made.mp4").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_sound_goes_along_where_the_timing_is_kept(world, tmp_path, capsys):
    source = film(tmp_path / "talk.mp4", "aac")
    words = ["--input", source, "--checkpoint", world / "pipeline", "--scale", 1, "--start", 0.25]
    kept = tmp_path / "kept.mp4"
    code, _, error = main(capsys, "colorize", *words, "--output", kept)
    assert code == 0 and "its sound" not in error and length(kept) > 1.2  # all there is
    assert set(packets(kept)[i][1] for i in range(9)) <= {content for _, content in packets(source)}
    refused = {
        "longer.mp4": ("extend", "the result has another timing"),
        "wrong.webm": ("colorize", ".webm does not support aac"),
        "mute.gif": ("colorize", ".gif files have no sound"),
        "frames/": ("colorize", "png files have no sound"),
    }
    for name, (task, why) in refused.items():
        code, _, error = main(capsys, task, *words, "--output", f"{tmp_path}/{name}")
        assert code == 0 and f"talk.mp4: its sound is left out: {why}\n" in error
        assert name == "frames/" or not has_sound(tmp_path / name)


# --- real footage ---------------------------------------------------------------------------------

CLIPS = ("intel_asl_gestures__yes.mkv", "intel_asl_gestures__no.mkv")


def grey(frames: np.ndarray) -> np.ndarray:
    return luminance(torch.from_numpy(frames)).numpy()


def sums(frames: np.ndarray) -> np.ndarray:
    t, h, w = frames.shape[:3]
    return frames.reshape(t, h // 4, 4, w // 4, 4, 3).astype(int).sum((2, 4))


def unmasked(frames: np.ndarray) -> np.ndarray:
    """Without what a mask of the footage's middle touches."""
    mask = np.zeros((1, 480, 640), bool)
    mask[0, 120:240, 160:480] = True
    return frames[:, ~fit_mask(mask, (H, W))[0]]


KEPT = {  # task: size of its input, what must be alike, in the result and in the input
    "inpaint": ((H, W), unmasked, unmasked),
    "outpaint": ((8, 16), lambda made: made[:, 4:12, 3:19], lambda clip: clip),
    "colorize": ((H, W), grey, grey),
    "upscale": ((H // 4, W // 4), sums, lambda clip: 16 * clip.astype(int)),
    "interpolate_frames": ((H, W), lambda made: made[::2], lambda clip: clip),
    "extend": ((H, W), lambda made: made[:-4], lambda clip: clip),
    "extend_backward": ((H, W), lambda made: made[4:], lambda clip: clip),
    "loop": ((H, W), lambda made: made[:-3], lambda clip: clip),
    "animate": ((H, W), lambda made: made[0], lambda clip: clip[0]),
    "inbetween": ((H, W), lambda made: made, None),
}
OPTIONS = {
    "outpaint": ["--place", "3,4,16,8"],
    "upscale": ["--factor", 4],
    "extend": ["--given", 1],
    "extend_backward": ["--given", 1],
    "loop": ["--given", 1],
}
FRAMES = {"interpolate_frames": 40}  # of the input: 10 seconds of the result at the model's rate


@pytest.mark.parametrize("task", KEPT)
def test_real_footage_is_kept_to_the_bit(world, shared_data, tmp_path, capsys, task):
    """A camera's clip from end to end, scaled and resampled to what the model sees, is what the png
    files hold, whatever the model makes of it."""
    paths = [shared_data / "clips" / name for name in CLIPS]
    if not paths[0].exists():
        pytest.skip(f"{paths[0]} is not there")
    size, made_part, given_part = KEPT[task]
    load = load_every_frame if task == "interpolate_frames" else load_clip
    films = [load(p, 8, FRAMES.get(task)).frames for p in paths]
    one, two = (fit(frames, size) for frames in films)
    inputs, options = paths[:1], OPTIONS.get(task, [])
    if task == "animate":
        write_png(films[0][0], tmp_path / "picture.png")
        inputs = [tmp_path / "picture.png"]
    if task == "inpaint":
        assert films[0].shape[1:3] == (480, 640)
        options = ["--mask", "160,120,320,120"]
    if task == "inbetween":
        inputs = paths
    words = [w for path in inputs for w in ("--input", path)]
    words += ["--checkpoint", world / "pipeline", "--scale", 1, "--output", f"{tmp_path}/out/"]
    code, _, error = main(capsys, task, *words, *options)
    assert code == 0, error
    made = np.stack([read_picture(p) for p in sorted((tmp_path / "out").glob("*.png"))])
    if task == "inbetween":
        np.testing.assert_array_equal(made[: len(films[0])], fit(films[0], size))
        np.testing.assert_array_equal(made[-len(films[1]) :], two)
    else:
        assert given_part is not None
        np.testing.assert_array_equal(made_part(made), given_part(one))
    assert error.count("resampled to") == (2 if task == "inbetween" else 1)
