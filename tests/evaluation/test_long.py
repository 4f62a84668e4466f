"""Long clips: measured rightly on oracles, written row by row, made by the pipeline as they say."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from vidcm.cli import evaluate as command
from vidcm.errors import UsageError
from vidcm.evaluation import long
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.evaluation.long import (
    SEED_STRIDE,
    LongClipGenerator,
    LongRow,
    LongTargets,
    long_rows,
    measure_long,
    other_action,
)
from vidcm.evaluation.reports import long_table

COUNT = 3
SPAN = 4  # puppets have five frames
ROWS = [row.name for row in long_rows(long.STEPS)]


class Oracle:
    """The truth end to end, two grey levels brighter with every further seed; at once every frame
    is the first. Prompts that take over are heard in four steps, not in one."""

    def __init__(self, folder: Path, truth: EvalSet):
        self.folder, self.truth, self.device = folder / "pipeline", truth, torch.device("cpu")
        self.settings = tiny.settings()
        self.codec, self.overlap = SimpleNamespace(time_stride=4), 0
        self.folder.mkdir()
        (self.folder / "pipeline.json").write_text("{}")
        self.said, self.calls = {}, []
        later = [other_action(truth.lpc, c) for c in truth.combinations]
        for late, combinations in enumerate((truth.combinations, later)):
            script = LongTargets.of(truth.lpc, combinations, truth.seed + late)
            self.said |= dict(zip(script.captions, combinations, strict=True))
            self.said |= dict(zip(script.open_prompts, combinations, strict=True))

    def generation(self):
        windowed = SimpleNamespace(window=(2, 8, 8), overlap=(self.overlap, 4, 4))
        return SimpleNamespace(denoiser=windowed)

    def __call__(
        self, prompts, *, num_inference_steps, seed, num_frames=5, height=64, width=64,
        prompt_schedule=(), batch_size, complete_prompt,
    ):  # fmt: skip
        frames, steps, then = num_frames, num_inference_steps, prompt_schedule
        self.calls.append((len(prompts), frames, steps))
        windows = (frames - 1) // SPAN
        pieces = []
        for k in range(windows):
            said = prompts
            for start, prompt in then:
                if steps == 4 and 1 + k * SPAN >= start:
                    said = [prompt]
            made = self.truth.lpc.render([self.said[p] for p in said])
            pieces.append(made[:, min(k, 1) :])
        clips = torch.cat(pieces, 1).int()
        if self.settings.trained_shapes:
            clips = clips[:, :1].expand_as(clips)
        brighter = 2 * torch.tensor([s // SEED_STRIDE for s in seed]).view(-1, 1, 1, 1, 1)
        clips = (clips + brighter).clamp(max=255).to(torch.uint8).numpy()
        side = (width - 64) // 2
        clips = np.pad(clips, [(0, 0)] * 3 + [(side, side), (0, 0)])
        return SimpleNamespace(frames=clips, seconds={"text": 0.25 * frames, "denoise": frames})


@pytest.fixture(scope="module")
def truth(puppets) -> EvalSet:
    return EvalSet(puppets, COUNT, 3)


@pytest.fixture
def pipe(truth, tmp_path) -> Oracle:
    return Oracle(tmp_path, truth)


@pytest.fixture(scope="module")
def measured(truth, tmp_path_factory) -> Path:
    """The file of a complete measurement."""
    folder = tmp_path_factory.mktemp("measured")
    job = EvalJob(Oracle(folder, truth), truth, folder / "l.json", "fake", batch_size=2)
    results = measure_long(job)
    assert json.loads((folder / "l.json").read_text()) == results
    return folder / "l.json"


def test_every_way_gets_the_numbers_it_deserves(measured):
    rows = json.loads(measured.read_text())["rows"]
    assert list(rows) == ROWS and len(set(ROWS)) == len(ROWS)
    true = rows["truth-4-0"]
    assert (true["drift"], true["motion"], true["seconds_per_frame"]) == (0, 1, 0)
    for windows in long.LENGTHS:
        row = rows[f"windows-{windows}-4"]
        assert row["frames"] == 1 + windows * SPAN
        assert row["first"]["score"] == row["last"]["score"] == row["last"]["action"] == 1
        assert row["motion"] == 1
        assert row["drift"] == (None if windows == 1 else 0)
    assert rows["windows-4-1"]["seam"] == true["seam"]
    assert rows["windows-4-1"]["seconds_per_frame"] == pytest.approx(1.25 / COUNT)
    still = rows["at once-4-1"]
    assert still["motion"] == 0 and still["seam"] is None and still["last"]["score"] < 1
    assert rows["one seed-4-4"]["drift"] == 0
    assert rows["new seeds-4-4"]["drift"] == pytest.approx(6, rel=0.2)  # three seeds further
    wide = rows["wide-1-4"]
    assert wide["first"]["score"] == 1 and wide["seam"] is None and wide["motion"] is None


def test_a_change_of_action_is_asked_for_before_and_after_it(measured):
    rows = json.loads(measured.read_text())["rows"]
    true, heard, deaf = (rows[f"{n}-then"] for n in ("truth-4-0", "windows-4-4", "windows-4-1"))
    for row in (true, heard, rows["one seed-4-1-then"], rows["new seeds-4-1-then"]):
        assert row["first"]["action"] == row["last"]["action"] == row["last"]["score"] == 1
    assert deaf["first"]["action"] == 1 and deaf["last"]["action"] == 0
    assert heard["drift"] == true["drift"] > 0 == deaf["drift"]


def test_only_what_is_missing_is_measured_and_other_protocols_are_refused(pipe, measured, tmp_path):
    path = tmp_path / "l.json"
    results = json.loads(measured.read_text())
    whole = dict(results["rows"])
    part = whole.pop("one seed-4-4") | {"seconds_per_frame": 0.490196}  # of four calls
    path.write_text(json.dumps(results | {"rows": whole}))
    job = EvalJob(pipe, pipe.truth, path, "fake")
    again = measure_long(job)["rows"]
    assert again.pop("one seed-4-4") == part
    assert again == whole
    assert pipe.calls == [(1, 5, 1)] + [(COUNT, 5, 4)] * 8  # one to load, four full, four open
    with pytest.raises(UsageError, match="another protocol.count"):
        measure_long(replace(job, eval_set=EvalSet(pipe.truth.lpc, 2, 3)))
    with pytest.raises(UsageError, match="another model.name"):
        measure_long(replace(job, name="other"))
    pipe.overlap = 1
    with pytest.raises(UsageError, match="overlap by 1 latent frames"):
        measure_long(job)


def test_a_student_of_phases_takes_as_many_steps(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        long, "long_rows", lambda steps: [LongRow("windows", 1, n) for n in [*steps, 5]]
    )
    pipe.settings.student.phases = 2
    rows = measure_long(EvalJob(pipe, pipe.truth, tmp_path / "l.json", "fake"))["rows"]
    assert list(rows) == ["windows-1-2", "windows-1-5"]


def test_nothing_is_asked_of_the_picture_that_stretches_share(puppets, truth):
    targets = LongTargets.of(puppets, truth.combinations, 3)
    area = targets.frames[0, 0, ..., 0].numel()
    for questions in targets.questions:
        assert questions["action"].positions.min() >= area
    assert all(c not in o for c, o in zip(targets.captions, targets.open_prompts, strict=True))


def test_another_action_leaves_all_else(puppets):
    rng = np.random.default_rng(0)
    actions = set()
    for combination in (puppets.sample(rng, "heldout") for _ in range(47)):
        other = other_action(puppets, combination)
        changed = [name for name in combination if other[name] != combination[name]]
        assert changed == ["action"]
        actions.add(combination["action"])
    assert actions == set(puppets.words["action"])


def test_a_seam_is_the_step_between_stretches_over_those_inside():
    steps = np.tile([0, 2, 1, 2, 3], 2)[1:]  # the last of each five leads to the next stretch
    clips = torch.from_numpy(np.concatenate([[5], 5 + np.cumsum(steps)]).astype(np.uint8))
    clips = clips.view(1, -1, 1, 1, 1).expand(2, -1, 7, 11, 3)
    inside = np.delete(steps, [4, 8])
    assert long.seam(clips, 4) == pytest.approx(steps[[4, 8]].mean() / inside.mean())
    assert long.stretch(clips, 1, 4)[0, :, 0, 0, 0].tolist() == clips[0, 5:9, 0, 0, 0].tolist()


def test_the_pipeline_makes_what_the_ways_say(tmp_path):
    """Windows repeat where no prompt changes; at once all frames differ, and the models are the
    same; a wide clip is cut to its middle."""
    pipe = tiny.load(tmp_path)
    frames, height, width = (tiny.SIZE[k] for k in ("frames", "height", "width"))
    generator = LongClipGenerator(pipe, SimpleNamespace(num_frames=frames), 2)
    prompts, seeds = [["a man walks", "an orc"], ["a man falls", "a skeleton"]], [3, 5]

    def made(row: LongRow) -> torch.Tensor:
        return generator(row, [], prompts, seeds)

    short, windows = made(LongRow("windows", 1, 1)), made(LongRow("windows", 4, 1))
    assert windows.shape == (2, 17, height, width, 3)
    assert torch.equal(windows[:, :frames], short)
    late = [long.stretch(made(LongRow("windows", 8, 2)), k, SPAN).int() for k in (6, 7)]
    assert (late[0] - late[1]).abs().max() <= 1  # the decoder no longer sees the beginning
    whole = made(LongRow("at once", 4, 1))
    assert whole.shape == windows.shape and not torch.equal(whole, windows)
    assert generator.unwindowed.model("student") is pipe.model("student")
    assert pipe.settings.shapes == [(frames, height, width)]
    twice = made(LongRow("one seed", 4, 1))
    assert torch.equal(twice[:, 9:13], short[:, 1:]) and torch.equal(twice[:, :frames], short)
    assert not torch.equal(made(LongRow("new seeds", 4, 1))[:, 9:13], short[:, 1:])
    changed = made(LongRow("windows", 4, 1, then=True))
    assert torch.equal(changed[:, :9], windows[:, :9])
    assert not torch.equal(changed[:, 9:], windows[:, 9:])
    wide = pipe(
        prompts[0], seed=seeds, num_inference_steps=1, height=height, width=2 * width
    ).frames
    middle = wide[:, :, :, width // 2 : width // 2 + width]
    np.testing.assert_array_equal(made(LongRow("wide", 1, 1)).numpy(), middle)
    assert generator.seconds > 0


def test_the_command_measures_into_a_file(pipe, puppets, measured, tmp_path, capsys, monkeypatch):
    results = json.loads(measured.read_text())
    results["rows"].popitem()
    (tmp_path / "l.json").write_text(
        json.dumps(results | {"model": results["model"] | {"name": "lpc-64"}})
    )
    loaded = SimpleNamespace(from_pretrained=lambda name, **options: pipe)
    monkeypatch.setattr("vidcm.pipeline.VideoPipeline", loaded)
    monkeypatch.setattr("vidcm.lpc.dataset.LPC", lambda art, num_frames: puppets)
    page = tmp_path / "page.md"
    page.write_text("<!-- long:begin -->\n<!-- long:end -->\n")
    argv = ["--long", str(tmp_path / "l.json"), "--art", "x", "--seed", "3"]
    argv += ["--count", str(COUNT), "--into", str(page)]
    assert command.main(argv) == 0 and capsys.readouterr().out == "" and pipe.calls
    text = page.read_text()
    assert "| windows, 1 step | 17 | 100.0 | 100.0 | 0.00 |" in text
    assert "| windows, 4 steps | 17 | 100.0 | 100.0 | 100.0 | 100.0 |" in text
    assert "Another action from frame 9 on" in text
    pipe.calls.clear()
    assert command.main(argv) == 0 and pipe.calls == [] and page.read_text() == text
    assert command.main([*argv, "--rows", "student-1"]) == 2
    assert "--rows has no meaning with --long; leave it out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([*argv, "--steering", "s.json"])
    assert "not allowed with" in capsys.readouterr().err
    assert command.main(["--long", str(tmp_path), "--art", "x"]) == 2
    assert "is a folder" in capsys.readouterr().err
    page.write_text("")
    assert command.main(argv) == 2
    assert "needs one line <!-- long:begin -->" in capsys.readouterr().err


def test_the_table_says_how_it_was_measured(measured):
    text = long_table(json.loads(measured.read_text()))
    assert "3 held-out combinations, seed 3" in text and "leave background and torso open" in text
    assert text.count("| truth | 17 |") == 2 and text.count("| new seeds, 1 step |") == 2
