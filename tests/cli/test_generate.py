"""`python tools/generate.py` as users run it: real processes, real files, one-line refusals."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import pytest
import tiny

import vidcm
from vidcm.cli import generate
from vidcm.media.pictures import read_picture

REPO = Path(vidcm.__file__).parents[1]
PROMPT = "a woman with purple hair walks left"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.pipeline(tmp_path_factory.mktemp("model"))


def run(cwd: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "tools" / "generate.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def decoded(path: Path) -> tuple[int, int, int]:
    """Frames, height and width of a file."""
    with av.open(str(path)) as source:
        frames = [f for f in source.decode(video=0)]
    return len(frames), frames[0].height, frames[0].width


# --- what comes out -------------------------------------------------------------------------------


def test_one_command_one_clip(model, tmp_path):
    done = run(tmp_path, "--checkpoint", model, "--prompt", PROMPT)
    assert done.returncode == 0, done.stderr
    path, spent = done.stdout.splitlines()
    assert Path(path) == tmp_path / "clip.mp4" and decoded(Path(path)) == (5, 64, 96)
    assert spent.startswith("2 network evaluations a clip; ")
    assert all(stage in spent for stage in ("load", "text", "denoise", "decode", "write"))
    assert os.listdir(tmp_path) == ["clip.mp4"] and done.stderr == ""
    run(tmp_path, "--checkpoint", model, "--prompt", PROMPT)  # again: nothing is lost
    assert sorted(os.listdir(tmp_path)) == ["clip-2.mp4", "clip.mp4"]


def test_json_holds_path_seed_evaluations_and_seconds(model, tmp_path):
    arguments = ["--checkpoint", model, "--prompt", PROMPT, "--prompt", "an orc", "--seed", "7"]
    options = ["--steps", "1", "--output", "out/x.gif", "--scale", "1", "--json"]
    done = run(tmp_path, *arguments, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(c["prompt"], c["seed"]) for c in found["clips"]] == [(PROMPT, 7), ("an orc", 8)]
    assert [Path(c["path"]).name for c in found["clips"]] == ["x-1.gif", "x-2.gif"]
    assert all(decoded(Path(c["path"])) == (5, 16, 24) for c in found["clips"])
    assert found["evaluations"] == 1
    seconds = found["seconds"]
    stages = ["load", "text", "denoise", "decode", "write"]
    assert list(seconds) == [*stages, "total"]
    assert seconds["total"] == pytest.approx(sum(seconds[s] for s in stages), abs=0.05)


def main(capsys, *arguments: str | Path) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    try:
        code = generate.main([*map(str, arguments)])
    except SystemExit as left:
        code = int(left.code or 0)
    return code, *capsys.readouterr()


def test_every_format_decodes(model, tmp_path, capsys):
    common = ["--checkpoint", model, "--prompt", PROMPT, "--scale", "1"]
    for name in ("a.webm", "a.gif", "a.mp4"):
        assert main(capsys, *common, "--output", tmp_path / name)[0] == 0
        assert decoded(tmp_path / name) == (5, 16, 24)
    assert main(capsys, *common, "--output", tmp_path / "a.png")[0] == 0
    assert decoded(tmp_path / "a.png") == (1, 16, 5 * 24)
    assert main(capsys, *common, "--output", f"{tmp_path}/a/")[0] == 0
    assert sorted(os.listdir(tmp_path / "a")) == [f"frame_{i:04d}.png" for i in range(5)]
    assert decoded(tmp_path / "a" / "frame_0004.png") == (1, 16, 24)


def test_options_reach_the_pipeline(model, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffan orc\n\n  a lady  \n", "utf-8")
    out = tmp_path / "x.mp4"
    common = ["--checkpoint", model, "--prompts-file", prompts, "--output", out, "--json"]
    code, text, _ = main(
        capsys, *common, "--teacher", "--steps", "3", "--num-clips", "2", "--fps", "5"
    )
    found = json.loads(text)
    assert code == 0 and found["evaluations"] == 6
    assert [(c["prompt"], c["seed"]) for c in found["clips"]] == [
        ("an orc", 0), ("an orc", 1), ("a lady", 2), ("a lady", 3)
    ]  # fmt: skip
    with av.open(found["clips"][0]["path"]) as source:
        assert float(source.streams.video[0].average_rate) == pytest.approx(5)
    code, text, _ = main(
        capsys, *common, "--overwrite", "--negative-prompt", "an orc", "--guidance", "2"
    )
    assert code == 0 and json.loads(text)["evaluations"] == 6


def test_long_and_large_clips_whose_prompt_changes(model, tmp_path, capsys):
    common = ["--checkpoint", model, "--prompt", PROMPT, "--scale", "1", "--seed", "2"]
    out = tmp_path / "x.png"
    long = ["--frames", "17", "--size", "16x32"]
    code, text, error = main(capsys, *common, *long, "--output", out, "--json")
    assert code == 0, error
    assert decoded(out) == (1, 16, 17 * 32)
    assert json.loads(text)["evaluations"] == 2 * 4 * 2  # steps, windows along time and width
    before = read_picture(out)
    change = ["--then", "9: an orc", "--overwrite", "--output", out]
    assert main(capsys, *common, *long, *change)[0] == 0
    columns = (read_picture(out) != before).any((0, 2)).reshape(17, 32).any(1)
    assert not columns[:9].any() and columns[9:].all()


def test_what_differs_from_training_is_said(model, tmp_path, capsys):
    common = ["--checkpoint", model, "--output", tmp_path / "x.png", "--overwrite"]
    for options, warning in [
        (["--prompt", PROMPT, "--guidance", "50"], "trained with guidance 1 to 5, not 50"),
        (["--prompt", PROMPT, "--size", "8x24"], "trained on height of 16 or more, not 8"),
        (["--prompt", PROMPT, "--frames", "1"], "trained on frames of 5 or more, not 1"),
        (["--prompt", PROMPT, "--steps", "9"], "tuned for 1 to 8 steps, not 9"),
        (
            ["--prompt", PROMPT, "--negative-prompt", "word " * 12],
            "the end of the negative prompt is not read: word ...",
        ),
        (["--prompt", "word " * 15], "the end of a prompt is not read: word word word word ..."),
    ]:
        code, _, error = main(capsys, *common, *options)
        assert code == 0 and error.startswith("warning: ") and warning in error


def test_words_that_training_did_not_have_are_named(model, tmp_path, capsys):
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    settings = json.loads((copy / "pipeline.json").read_text())
    settings["known_words"] = "a walks woman"
    (copy / "pipeline.json").write_text(json.dumps(settings))
    common = ["--checkpoint", copy, "--scale", "1", "--output", tmp_path / "x.png", "--overwrite"]
    code, _, error = main(capsys, *common, "--prompt", "A woman, walks!")
    assert code == 0 and error == ""
    words = ["--prompt", "a spaceship", "--negative-prompt", "the woman explodes"]
    code, _, error = main(capsys, *common, *words)
    assert code == 0 and error == "warning: the model does not know: spaceship, the, explodes\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--prompt", "..."],
        ["--prompt", "x", "--output", "old.mp4"],
        ["--prompt", "x", "--frames", "18"],
        ["--prompt", "x", "--size", "63x63"],
        ["--prompt", "x", "--size", "99992x99992"],
        ["--prompts-file", "blank.txt"],
        ["--prompt", "x", "--checkpoint", "none"],
        ["--prompt", "x", "--checkpoint", "old.mp4"],
        ["--prompt", "x", "--num-clips", "10000", "--frames", "9997"],
        ["--prompt", "x", "--size", "512x512", "--scale", "64"],
        ["--prompt", "x", "--output", "new.gif", "--fps", "60"],
        ["--prompt", "x", "--negative-prompt", 2001 * "x"],
        ["--prompt", "x", "--seed", str(2**63 - 1), "--num-clips", "2"],
    ],
)
def test_what_needs_no_model_is_refused_before_torch(tmp_path, words):
    (tmp_path / "old.mp4").write_text("mine")
    (tmp_path / "blank.txt").write_text("\n")
    code = (
        f"import sys; from vidcm.cli.generate import main; code = main({words!r})\n"
        "print(code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "2 False\n" and done.stderr.startswith("error: "), done.stderr


def test_a14_prompts_from_a_pipe(model, tmp_path):
    command = [sys.executable, str(REPO / "tools" / "generate.py"), "--checkpoint", str(model)]
    words = ["--prompts-file", "/dev/stdin", "--scale", "1", "--output", "a.png", "--json"]
    done = subprocess.run(
        [*command, *words],
        input="an orc\na man walks\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [clip["prompt"] for clip in json.loads(done.stdout)["clips"]] == [
        "an orc",
        "a man walks",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
        {"TZ": "Pacific/Kiritimati"},
        {"HOME": None, "USER": None, "LOGNAME": None},
        {"HOME": "/proc/none", "TMPDIR": "/proc/none"},
    ],
    ids=str,
)
def test_r13_odd_surroundings(model, tmp_path, changes):
    """From a folder that nobody can write to, too."""
    env = {k: v for k, v in {**os.environ, **changes}.items() if v is not None}
    words = ["--checkpoint", model, "--prompt", "an İlk ıIi orc", "--output", tmp_path / "a.mp4"]
    command = [sys.executable, str(REPO / "tools" / "generate.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/proc", env=env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.mp4").stat().st_size and list(tmp_path.iterdir()) == [tmp_path / "a.mp4"]


# --- refusals -------------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and len(done.stderr) < 500
    for word in words:
        assert word in done.stderr


def test_a_broken_checkpoint_in_a_real_process(model, tmp_path):
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    weights = copy / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = run(tmp_path, "--checkpoint", copy, "--prompt", PROMPT)
    refused(done, 1, "model.safetensors is truncated or altered", "copy it again")
    assert os.listdir(tmp_path) == ["copy"]


def test_bad_usage_in_a_real_process(tmp_path):
    """Cases: A03."""
    refused(
        run(tmp_path, "--prompt", PROMPT, "--steps", "0"), 2, "--steps", "'0'", "from 1 to 1000"
    )
    refused(run(tmp_path, "--prompt", "x", "--ouput", "a.mp4"), 2, "did you mean '--output'")
    assert not os.listdir(tmp_path)


@pytest.fixture
def world(model, tmp_path) -> Path:
    """A folder with everything that can be wrong."""
    (tmp_path / "huge.txt").write_text("orc " * 1_250_000)
    (tmp_path / "blank.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "old.mp4").write_text("mine")
    (tmp_path / "model").symlink_to(model)
    swapped = Path(shutil.copytree(model, tmp_path / "swapped"))
    shutil.rmtree(swapped / "student")
    (swapped / "teacher").rename(swapped / "student")
    nan = Path(shutil.copytree(model, tmp_path / "lost"))
    (nan / "codec" / "model.safetensors").unlink()
    return tmp_path


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        ([], 2, ["there is no prompt; give --prompt"]),
        (["--prompt", ""], 2, ["the prompt is empty"]),
        (["--prompt", "  "], 2, ["the prompt is empty"]),
        (["--prompts-file", "huge.txt"], 2, ["characters is too long; use at most 2000"]),
        (["--prompts-file", "blank.txt"], 2, ["blank.txt holds no prompt; write one per line"]),
        (["--prompts-file", "latin.txt"], 2, ["latin.txt is not UTF-8 text (byte 3)"]),
        (["--prompts-file", "hug.txt"], 2, ["no such file 'hug.txt'; did you mean 'huge.txt'"]),
        (["--prompt", "x", "--seed", "-1"], 2, ["--seed", "'-1'", "0 to"]),
        (["--prompt", "x", "--seed", str(2**64)], 2, ["--seed", "'18446744073709551616'", "0 to"]),
        (["--prompt", "x", "--seed", "red"], 2, ["--seed", "'red'", "0 to"]),
        (["--prompt", "x", "--steps", "-1"], 2, ["--steps", "'-1'", "from 1 to 1000"]),
        (["--prompt", "x", "--steps", "1.5"], 2, ["--steps", "'1.5'", "from 1 to 1000"]),
        (["--prompt", "x", "--guidance", "nan"], 2, ["--guidance", "'nan'", "0 to 100"]),
        (["--prompt", "x", "--num-clips", "0"], 2, ["--num-clips", "'0'", "from 1 to 10000"]),
        (["--prompt", "x", "--frames", "0"], 2, ["--frames", "'0'", "from 1 to 100000"]),
        (["--prompt", "x", "--frames", "18"], 2, ["18 frames do not fit", "use 17 or 21"]),
        (["--prompt", "x", "--size", "64"], 2, ["--size", "'64'", "expected HEIGHTxWIDTH"]),
        (["--prompt", "x", "--size", "64xx"], 2, ["--size", "'64xx'", "as 64x128"]),
        (["--prompt", "x", "--num-clips", "10001"], 2, ["--num-clips", "from 1 to 10000"]),
        (["--prompt", "x", "--size", "99992x99992"], 2, ["1 clip of", "GiB of memory"]),
        (["--prompt", "x", "--size", "63x63"], 2, ["height 63 is not a multiple of 8; use 56 or"]),
        (["--prompt", "x", "--size", "64x0"], 2, ["--size", "'0'", "from 1 to"]),
        (["--prompt", "x", "--size", "20x24"], 2, ["height 20 is not a multiple of 8; use 16 or"]),
        (["--prompt", "x", "--then", "an orc"], 2, ["--then", "'an orc'", "expected FRAME:PROMPT"]),
        (["--prompt", "x", "--then", "0:y"], 2, ["--then", "'0'", "1 or more"]),
        (["--prompt", "x", "--then", "3: "], 2, ["the prompt is empty"]),
        (["--prompt", "x", "--then", "3:y"], 2, ["from frame 3 on would show nowhere", "has 1;"]),
        (["--prompt", "x", "--device", "tpux"], 2, ["got 'tpux'", "cpu, cuda, or one GPU"]),
        (["--prompt", "x", "--output", "old.mp4"], 2, ["old.mp4 exists", "overwrite"]),
        (["--prompt", "x", "--output", "new.avi"], 2, [".avi", ".mp4", ".webm", ".gif"]),
        (["--prompt", "x", "--output", "old.mp4/new.mp4"], 2, ["old.mp4 is not a folder"]),
        (["--prompt", "x", "--output", "/proc/new.mp4"], 1, ["cannot write", "/proc"]),
        (["--prompt", "x", "--size", "512x512", "--scale", "64"], 2, ["lower the scale"]),
        (["--prompt", "x", "--output", "new.gif", "--fps", "60"], 2, ["fps is 60", "in .gif"]),
        (["--prompt", "x", "--negative-prompt", 2001 * "x"], 2, ["--negative-prompt of 2001"]),
        (["--prompt", "x", "--seed", str(2**63 - 1), "--num-clips", "2"], 2, ["seed is 9223"]),
        (["--prompt", "x", "--checkpoint", "none"], 2, ["none is neither a bundled model"]),
        (["--prompt", "x", "--checkpoint", ""], 2, ["'' is neither a bundled model"]),
        (["--prompt", "x", "--checkpoint", "swapped"], 2, ["student is not a student"]),
        (["--prompt", "x", "--checkpoint", "lost"], 1, ["lacks model.safetensors; copy the whole"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else str(value),
)
def test_refusals_are_one_line_and_leave_nothing(
    world, monkeypatch, capsys, arguments, code, words
):
    """Cases: A02, A03, A04, A05, A06, A07, A08, A11, P19."""
    monkeypatch.chdir(world)
    before = sorted(str(p) for p in world.rglob("*"))
    common = [] if "--checkpoint" in arguments or not arguments else ["--checkpoint", "model"]
    found, out, error = main(capsys, *common, *arguments)
    refused(subprocess.CompletedProcess([], found, out, error), code, *words)
    assert sorted(str(p) for p in world.rglob("*")) == before
    assert (world / "old.mp4").read_text() == "mine"


def test_overwrite_replaces(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    arguments = ["--checkpoint", "model", "--prompt", "x", "--output", "old.mp4", "--overwrite"]
    assert main(capsys, *arguments)[0] == 0 and decoded(world / "old.mp4")[0] == 5


def test_a_line_of_a_prompts_file_ends_at_its_line_break_alone(model, tmp_path, capsys):
    """A byte order mark is none of it. Cases: A11."""
    (tmp_path / "prompts.txt").write_bytes("\ufeffa man\u2028walks\x0bleft\r\nan orc\n".encode())
    words = ["--prompts-file", tmp_path / "prompts.txt", "--output", tmp_path / "x.png", "--json"]
    code, out, error = main(capsys, "--checkpoint", model, *words)
    assert code == 0, error
    first, second = [clip["prompt"] for clip in json.loads(out)["clips"]]
    assert first.startswith("a man") and second == "an orc"
