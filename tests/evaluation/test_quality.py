"""The whole protocol with pipelines that are oracles: truth, frozen, blurred, noise."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

import vidcm
from vidcm.cli import evaluate as command
from vidcm.errors import UsageError, VidcmError
from vidcm.evaluation import markdown
from vidcm.evaluation.environment import environment
from vidcm.evaluation.eval_set import EvalJob, EvalSet
from vidcm.evaluation.quality import evaluate_rows
from vidcm.evaluation.reports import quality_table
from vidcm.evaluation.results import KEYS, read_results, well_formed
from vidcm.evaluation.rows import Row
from vidcm.lpc import adherence
from vidcm.lpc import hand_prompts as hand
from vidcm.lpc.attribute_net import AttributeNet
from vidcm.lpc.combinations import vocabulary
from vidcm.lpc.diversity import diversity_ratio, draw_open_prompt, mean_pairwise_distance
from vidcm.store import save_model

COUNT = 16
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
REPO = Path(vidcm.__file__).parents[1]


class Codec:
    """Forgets the lowest bits."""

    def encode(self, video: Tensor) -> Tensor:
        return (video * 16).round() / 16

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Oracle:
    """Knows the true clips of every prompt; the student's steps say how it spoils them."""

    def __init__(self, folder: Path, answers: dict[str, Tensor]):
        (folder / "pipeline.json").write_text("{}")
        self.folder, self.answers, self.codec = folder, answers, Codec()
        self.device, self.settings = torch.device("cpu"), tiny.settings()
        self.calls: list[tuple[int, bool]] = []
        self.breaks_at: int | None = None

    def __call__(
        self,
        prompts: list[str],
        *,
        num_inference_steps: int,
        use_teacher: bool,
        seed: Sequence[int],
        batch_size: int,
        complete_prompt: bool,
        callback_on_step_end: Callable[[], None],
    ):
        steps, teacher = num_inference_steps, use_teacher
        callback_on_step_end()
        assert batch_size in (3, 4, 7, 16)
        self.calls.append((steps, teacher))
        if steps == self.breaks_at:
            raise VidcmError("the power went off")
        pairs = [(self.answers[p], s) for p, s in zip(prompts, seed, strict=True)]
        clips = torch.stack([known[s % len(known)] for known, s in pairs])
        if not teacher and steps == 1:
            clips = clips[:, :1].expand_as(clips)
        if not teacher and steps == 2:
            rngs = [np.random.default_rng(s) for s in seed]
            clips = torch.stack(
                [torch.from_numpy(r.integers(0, 256, clips.shape[1:], np.uint8)) for r in rngs]
            )
        return SimpleNamespace(
            frames=clips.numpy(),
            evaluations=steps * (1 + teacher),
            seconds={"denoise": 0.5, "decode": 0.25},
        )


@pytest.fixture(scope="module")
def features(puppets, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    counts = {name: len(puppets.words[name]) for name in puppets.attributes}
    folder = tmp_path_factory.mktemp("features") / "net"
    net = AttributeNet(counts)
    spec = {"name": "attribute_net", "classes": counts}
    save_model(folder, spec, net.state_dict(), metadata={"heldout_accuracy": {"sex": 0.5}})
    return folder


@pytest.fixture(scope="module")
def hands(puppets) -> list[hand.HandPrompt]:
    found = []
    for i in range(5):
        combination = puppets.sample(np.random.default_rng([9, i]))
        found.append(hand.HandPrompt(f"sprite no. {i}, zyzzyva", combination, ["skin", "feet"]))
    return found


@pytest.fixture(scope="module")
def answers(puppets, hands) -> dict[str, Tensor]:
    truth = EvalSet(puppets, COUNT, 0)
    known = {c: f[None] for c, f in zip(truth.captions, truth.frames, strict=True)}
    known |= {p.prompt: p.true_clips for p in truth.open_prompts}
    shown = [p.attributes | {"skin": "orc"} for p in hands]  # one of what the prompts leave open
    for said in ([p.prompt for p in hands], hand.template_captions(puppets, hands, 0)):
        known |= {p: f[None] for p, f in zip(said, puppets.render(shown), strict=True)}
    return known


@pytest.fixture
def pipe(tmp_path, answers) -> Oracle:
    folder = tmp_path / "pipeline"
    folder.mkdir()
    return Oracle(folder, answers)


@pytest.fixture(scope="module")
def cache() -> dict:
    return {}


@pytest.fixture
def measure(pipe, puppets, features, hands, cache, tmp_path, monkeypatch):
    def once(lpc, combination, attributes=None):
        key = (*combination.values(), *(attributes or ()))
        if key not in cache:
            cache[key] = original(lpc, combination, attributes)
        return cache[key]

    original = adherence.attribute_questions
    for module in (adherence, hand):
        monkeypatch.setattr(module, "attribute_questions", once)
    monkeypatch.setattr(hand, "load_hand_prompts", lambda: hands)
    monkeypatch.setattr(hand, "LEXICON_CAPTIONS", 50)

    def call(rows=("codec", "teacher-8", "student-1", "student-2", "student-4"), **options) -> dict:
        eval_set = EvalSet(puppets, options.pop("count", COUNT), 0, features)
        with_hands = options.pop("with_hand_prompts", False)
        job = EvalJob(pipe, eval_set, tmp_path / "results.json", "fake", **options)
        return evaluate_rows(job, [Row.parse(row) for row in rows], with_hands)

    return call


def timeless(results: dict) -> dict:
    rows = {n: row["heldout"] | {"seconds": 0} for n, row in results["rows"].items()}
    return {"rows": rows, "protocol": results["protocol"]}


# --- numbers --------------------------------------------------------------------------------------


def test_truth_frozen_and_noise_get_the_numbers_they_deserve(measure, tmp_path):
    results = measure()
    rows = {name: row["heldout"] for name, row in results["rows"].items()}
    assert list(rows) == ["codec", "teacher-8", "student-1", "student-2", "student-4"]
    for name in ("teacher-8", "student-4"):
        true = rows[name]
        assert true["adherence"]["score"] == true["adherence"]["all_correct"] == 1
        assert true["fidelity"] == {"psnr": 100, "ssim": 1}
        assert true["motion"]["ratio"] == 1 and true["frechet"]["distance"] < 1e-6
        assert 0.5 < true["diversity"]["ratio"] < 1.6
    codec, frozen, noise = (rows[n] for n in ("codec", "student-1", "student-2"))
    assert codec["adherence"]["score"] == 1 and 30 < codec["fidelity"]["psnr"] < 50
    assert codec["evaluations"] is None and 0.9 < codec["motion"]["ratio"] < 1.1
    assert frozen["motion"]["ratio"] == 0 and frozen["motion"]["quartiles"] == [0, 0, 0]
    assert noise["motion"]["ratio"] > 5 and noise["fidelity"]["psnr"] < 10
    assert 0 < codec["frechet"]["distance"] < frozen["frechet"]["distance"]
    assert frozen["frechet"]["distance"] < noise["frechet"]["distance"]
    assert noise["adherence"]["score"] < 0.6 and 0 < noise["adherence"]["chance"] < 0.5
    assert (rows["student-4"]["evaluations"], rows["teacher-8"]["evaluations"]) == (4, 16)
    assert rows["student-4"]["seconds"]["stages"] == {"denoise": 0.5, "decode": 0.25}
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_the_file_says_what_was_measured_on_what(measure, features):
    results = measure(rows=["codec"])
    p, row = results["protocol"], results["rows"]["codec"]["heldout"]
    assert (p["count"], p["seed"], p["split"], p["frames"]) == (COUNT, 0, "heldout", 5)
    assert set(p["metrics"]) == {
        "adherence",
        "fidelity",
        "motion",
        "frechet",
        "diversity",
        "hand_prompts",
    }
    assert len(p["captions"]) == len(row["truth"]) == 64
    assert list(results["model"]["files"]) == ["pipeline.json"]
    assert p["features"]["heldout_accuracy"] == {"sex": 0.5}
    measured_in = results["environments"][row["environment"]]
    assert measured_in["torch"] == torch.__version__ and measured_in["threads"] >= 1
    assert row["frechet"]["clips"] == COUNT


def test_batches_change_nothing(measure, tmp_path):
    """Cases: R10."""
    one = measure(rows=["student-2", "codec"], batch_size=3)
    (tmp_path / "results.json").unlink()
    assert timeless(measure(rows=["codec", "student-2"], batch_size=7)) == timeless(one)


def test_prompts_by_hand_are_marked_on_what_they_say(measure, pipe, hands):
    results = measure(rows=["student-4", "student-1"], with_hand_prompts=True)
    found = results["rows"]["student-4"]["hand_prompts"]
    assert [found[way]["score"] for way in ("hand", "completed", "template")] == [1, 1, 1]
    assert set(found["hand"]["attributes"]).isdisjoint({"skin", "feet"})
    assert found["unseen"]["prompts"] == 5 and "zyzzyva" in found["unseen"]["words"]
    assert results["rows"]["student-1"]["hand_prompts"]["hand"]["score"] < 1


# --- files ----------------------------------------------------------------------------------------


def test_finished_rows_are_kept_after_a_failure(measure, pipe, tmp_path):
    pipe.breaks_at = 4
    with pytest.raises(VidcmError, match="power"):
        measure(rows=["student-1", "student-4"])
    assert list(json.loads((tmp_path / "results.json").read_text())["rows"]) == ["student-1"]
    pipe.calls.clear()
    pipe.breaks_at = None
    assert list(measure(rows=["student-4", "student-1"])["rows"]) == ["student-1", "student-4"]
    assert {steps for steps, _ in pipe.calls} == {4}
    pipe.calls.clear()
    again = measure(rows=["student-1"], with_hand_prompts=True)
    assert set(again["rows"]["student-1"]) == {"heldout", "hand_prompts"} and len(pipe.calls) == 3
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_results_of_something_else_are_refused_and_stay(measure, pipe, tmp_path):
    measure(rows=["codec"])
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(UsageError, match="another protocol.count: 16, not 8; give another file"):
        measure(count=8)
    (pipe.folder / "pipeline.json").write_text('{"steps": 3}')
    with pytest.raises(
        UsageError, match="another model.files.pipeline.json: .*; give another file"
    ):
        measure()
    assert (tmp_path / "results.json").read_text() == before
    assert list(measure(rows=["student-4"], overwrite=True)["rows"]) == ["student-4"]


def test_a_model_of_other_clips_is_refused(measure, pipe):
    pipe.answers = {k: v[:, :, :, :4] for k, v in pipe.answers.items()}
    with pytest.raises(VidcmError, match="evaluate a model of the LPC task"):
        measure(rows=["student-4"])


# --- parts ----------------------------------------------------------------------------------------


def test_every_open_prompt_leaves_something_to_see(puppets):
    for i in range(4):
        found = draw_open_prompt(puppets, np.random.default_rng(i))
        assert mean_pairwise_distance(found.true_clips) >= 1
    halves = (
        [mean_pairwise_distance(found.true_clips[:8]) for _ in range(1)],
        [mean_pairwise_distance(found.true_clips)],
    )
    assert 0.4 < diversity_ratio(*halves) < 1.8
    assert mean_pairwise_distance(found.true_clips[:1].expand(3, -1, -1, -1, -1)) == 0


def test_spread_is_the_mean_over_pairs():
    flat = torch.tensor([0, 30, 90], dtype=torch.uint8).view(3, 1, 1, 1, 1).expand(3, 2, 5, 7, 3)
    assert mean_pairwise_distance(flat) == pytest.approx((30 + 90 + 60) / 3)


def test_bundled_prompts_by_hand_mean_combinations_that_exist():
    words, prompts = vocabulary(), hand.load_hand_prompts()
    assert len(prompts) == len({p.prompt for p in prompts}) == 50
    for p in prompts:
        assert list(p.attributes) == words["core"]
        for name, value in p.attributes.items():
            entry = words["attributes"][name][value]
            assert p.attributes["sex"] in entry or not {"male", "female"} & set(entry)
        assert set(p.open) <= set(p.attributes)


def test_environment_names_this_machine():
    found = environment()
    assert found["cpu"] and found["device"] == "cpu" and found["python"].startswith("3.")
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}", found["commit"])


# --- markdown -------------------------------------------------------------------------------------


def test_table_has_a_line_a_row(measure):
    text = quality_table(measure(with_hand_prompts=True))
    lines = text.splitlines()
    frozen = next(x for x in lines if x.startswith("| student-1 | 1 |"))
    assert frozen.count("|") == lines[0].count("|") and "| 0.00 |" in frozen
    assert next(x for x in lines if x.startswith("| codec | - |"))
    assert "| student-4 | 100.0 | 100.0 | 100.0 |" in lines
    assert f"{COUNT} held-out combinations, seed 0" in lines[-1]


def test_rewrite_touches_only_what_stands_between_the_marks(tmp_path):
    file = tmp_path / "README.md"
    file.write_bytes(b"# a\r\n<!-- results:begin -->\r\nold\r\n<!-- results:end -->\r\nb\xc3\xa9 ")
    markdown.rewrite(file, "results", "| x |\n| y |\n")
    new = b"# a\r\n<!-- results:begin -->\r\n| x |\r\n| y |\r\n<!-- results:end -->\r\nb\xc3\xa9 "
    assert file.read_bytes() == new
    markdown.rewrite(file, "results", "| x |\n| y |\n")
    assert file.read_bytes() == new


@pytest.mark.parametrize("text", ["no marks", END + BEGIN, BEGIN, (BEGIN + END) * 2])
def test_rewrite_refuses_a_file_without_its_marks(tmp_path, text):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(UsageError, match="needs one line"):
        markdown.rewrite(file, "results", "x")
    assert file.read_text() == text


@pytest.mark.parametrize(
    "text, why",
    [
        ("{", "not JSON"),
        ("[]", "no results"),
        ('{"rows": {}}', "no results"),
        (json.dumps(dict.fromkeys(sorted(KEYS), "long")), "of kind 'long', expected quality"),
    ],
)
def test_damaged_results_are_refused(tmp_path, text, why):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=why):
        read_results(file, "quality")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch, pipe, puppets, features, measure):
    """The command, with the oracle for a model and puppets for the art."""
    import vidcm.lpc.dataset
    import vidcm.pipeline

    loaded = SimpleNamespace(from_pretrained=lambda name, **options: pipe)
    monkeypatch.setattr(vidcm.pipeline, "VideoPipeline", loaded)
    monkeypatch.setattr(vidcm.lpc.dataset, "LPC", lambda art, num_frames: puppets)
    monkeypatch.setattr(EvalSet.__init__, "__defaults__", (features,))


def test_command_measures_prints_and_draws(world, tmp_path, capsys):
    output, sheet = tmp_path / "r.json", tmp_path / "sheet.png"
    argv = ["--output", str(output), "--sheet", str(sheet), "--art", "x", "--count", str(COUNT)]
    argv += ["--rows", "student-1", "codec"]
    assert command.main(argv) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("|  | evaluations |") and "| student-1 | 1 |" in out
    assert list(json.loads(output.read_text())["rows"]) == ["codec", "student-1"]
    from vidcm.media.pictures import read_picture

    height, width, _ = read_picture(sheet).shape
    assert height > 4 * 5 * 64 * 2 and width == 5 * 64 * 2
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    assert command.main(["--table", str(output), "--into", str(readme)]) == 0
    assert out in readme.read_text() and capsys.readouterr().out == ""
    assert command.main(argv) == 2  # the sheet is there
    assert "sheet.png exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], "nothing to write; give --output, --sheet or --table"),
        (["--into", "x.md"], "nothing to write"),
        (["--sheet", "x.png", "--into", "x.md"], "--into needs numbers"),
        (["--sheet", "x.gif"], "--sheet writes .png files, not 'x.gif'"),
        (["--output", "."], "is a folder"),
        (["--output", "x.json"], "give --art, or set VIDCM_LPC_ART"),
        (["--output", "x.json", "--features", "foo"], "--features is about --frechet"),
        (["--table", __file__, "--sheet", "x.png"], "--sheet needs a model; leave it out"),
        (["--output", "x.json", "--rows", "student-0"], "got the row 'student-0'"),
        (["--sheet", "x.png", "--diffusers", "x"], "--diffusers is about --output"),
        (["--table", __file__], "is not JSON"),
    ],
)
def test_command_refuses_what_makes_no_sense(monkeypatch, capsys, tmp_path, argv, expected):
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    monkeypatch.chdir(tmp_path)
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and expected in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--count", "1"],
        ["--output", "x.json", "--table", __file__],
        ["--batch", "0"],
        ["--row", "codec"],
        ["--table", "nix"],
    ],
)
def test_bad_options_are_usage_errors(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_help_and_tables_need_no_torch():
    code = (
        "import sys; from vidcm.cli.evaluate import parser; text = parser().format_help();"
        "import vidcm.evaluation.reports;"
        "assert '--hand-prompts' in text; assert not {'torch', 'numpy', 'av'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["benchmark", "evaluate", "compare"])
def test_edited_results_are_named_and_fresh_ones_are_not_blamed(command, tmp_path, capsys):
    keys = {"recipe", "recipe_hash", "repeats", "environment", "rows", "ratios"}
    data: dict = {key: {"a": {}} for key in keys} | {"schema_version": 1}
    if command != "benchmark":
        data = {"kind": {"evaluate": "quality"}.get(command, "comparison"), "protocol": {}}
        data |= {"model": {}, "environments": [{}], "rows": {"student-1": 3}}
    (tmp_path / "x.json").write_text(json.dumps(data))
    main = import_module(f"vidcm.cli.{command}").main
    assert main(["--table", str(tmp_path / "x.json")]) == 2
    assert "x.json lacks numbers or was edited (" in capsys.readouterr().err
    with pytest.raises(KeyError), well_formed(None):
        raise KeyError("x")


@pytest.mark.parametrize("command", ["benchmark", "evaluate"])
def test_results_that_cannot_be_written_are_refused_before_measuring(command, capsys):
    assert import_module(f"vidcm.cli.{command}").main(["--output", "/proc/x.json"]) == 1
    assert "cannot write /proc/x.json into /proc" in capsys.readouterr().err
