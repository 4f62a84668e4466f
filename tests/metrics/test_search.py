"""Times found by trial: greedy, never worse than fewer, written where the pipeline reads them."""

import json
import math
from itertools import pairwise

import pytest
import tiny
import torch

from vidcm.cli.tune import main
from vidcm.diffusion.times import T_START
from vidcm.errors import UsageError
from vidcm.evaluation.search import HIGHEST, Bench, Trial, keep, ratios_from, search
from vidcm.pipeline import VideoPipeline

AIMS = (12.0, 1.5)  # the ratios that help, in this order


def measure(times) -> Trial:
    ratios = [t / (1 - t) for t in times]
    reached = [any(math.isclose(r, aim) for r in ratios) for aim in AIMS]
    needless = len(times) - 1 - sum(reached)
    return Trial(tuple(times), 0.5 + 0.2 * reached[0] + 0.1 * all(reached), 20.0 - needless)


def test_times_are_added_where_they_serve_best():
    one, two, three = search(measure, [1, 2, 3])
    assert one.times == (T_START,)
    assert two.times == pytest.approx((T_START, 12 / 13))
    assert three.times == pytest.approx((T_START, 12 / 13, 0.6))
    assert one.merit < two.merit < three.merit


def test_ties_go_to_fidelity():
    def flat(times) -> Trial:
        return Trial(tuple(times), 0.7, -abs(sum(times) - T_START - 0.75))

    assert search(flat, [2])[0].times == pytest.approx((T_START, 0.75))


@pytest.mark.parametrize("lowest, steps", [(1.5, 4), (1.5, 8), (6.0, 3), (6.0, 8), (90.0, 5)])
def test_there_are_ratios_for_every_number_of_steps(lowest, steps):
    ratios = ratios_from(lowest, steps)
    assert len(set(ratios)) >= steps - 1 and sorted(ratios, reverse=True) == ratios
    assert ratios[0] == HIGHEST and ratios[-1] >= lowest * (1 - 1e-9)
    gaps = [a / b for a, b in pairwise(ratios)]
    assert max(gaps) <= 2 + 1e-9 and max(gaps) == pytest.approx(min(gaps))
    found = search(measure, [steps], lowest)[0]
    assert len(set(found.times)) == steps


@pytest.fixture
def folder(tmp_path):
    folder = tiny.pipeline(tmp_path)
    settings = json.loads((folder / "pipeline.json").read_text()) | {"height": 64, "width": 64}
    (folder / "pipeline.json").write_text(json.dumps(settings))
    return folder


def test_trials_repeat_and_the_pipeline_makes_the_same_clips(puppets, folder):
    pipe = VideoPipeline.from_pretrained(folder)
    bench = Bench(pipe, puppets, 3, 5, 2)
    times = (T_START, 0.9)
    trial = bench(times)
    assert trial == bench(times) and 0 <= trial.adherence <= 1
    assert trial != bench((T_START, 0.2))
    keep(pipe, [trial])
    again = VideoPipeline.from_pretrained(folder)
    assert again.settings["student"]["times"]["2"] == list(times)
    assert again.settings["student"]["times"]["1"] == [T_START]
    clips = again(bench.prompts, steps=2, seed=bench.seeds)
    mine = bench.clips(times)
    assert int((torch.from_numpy(clips.frames).int() - mine.int()).abs().max()) <= 1


def test_refusals(puppets, folder, capsys, monkeypatch):
    monkeypatch.delenv("VIDCM_LPC_ART", raising=False)
    assert main(["--checkpoint", str(folder)]) == 2
    assert "LPC art" in capsys.readouterr().err
    pipe = VideoPipeline.from_pretrained(folder)
    pipe.settings["student"]["sampler"] = "flow_map"
    with pytest.raises(UsageError, match="sampled by jumps"):
        Bench(pipe, puppets, 2, 0, 2)


def test_no_stop_lies_below_the_lowest(puppets, folder, monkeypatch):
    monkeypatch.setattr("vidcm.lpc.dataset.LPC", lambda *_, **__: puppets)
    words = ["--checkpoint", str(folder), "--art", "x", "--count", "2", "--lowest", "90", "--steps"]
    assert main([*words, "2"]) == 0
    times = VideoPipeline.from_pretrained(folder).settings["student"]["times"]
    assert times["2"] == pytest.approx([T_START, 96 / 97])
    assert main([*words, "3"]) == 0
    times = VideoPipeline.from_pretrained(folder).settings["student"]["times"]
    assert times["3"] == pytest.approx([T_START, 96 / 97, 90 / 91])
