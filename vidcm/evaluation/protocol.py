"""One protocol for every number of a results table, written row by row.

Every row makes clips of the same held-out prompts with the same seeds; all are compared with the
same true clips. The file is rewritten after each row, so an evaluation that was interrupted goes on
where it stopped, and refuses a file that was made of something else.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidcm.errors import UsageError
from vidcm.evaluation.environment import environment
from vidcm.evaluation.report import read_results
from vidcm.evaluation.rows import ROWS, Maker, maker, place
from vidcm.files import file_hash, write_text
from vidcm.lpc import adherence, diversity
from vidcm.lpc import hand_prompts as hand
from vidcm.lpc.attribute_net import AttributeNet
from vidcm.lpc.dataset import LPC, Combination
from vidcm.metrics import fidelity, frechet, motion
from vidcm.store import read_card

if TYPE_CHECKING:
    from vidcm.pipeline import VideoPipeline

VERSION = 1
SEEDS = 4  # clips of each prompt that leaves attributes open


class Truth:
    """What a (count, seed) asks, and the true answers; each part is made when first needed, once
    for whatever is measured against it. features: the folder of the network that sees clips."""

    def __init__(self, lpc: LPC, count: int, seed: int, features: Path = frechet.BUNDLED):
        self.lpc, self.count, self.seed, self.folder = lpc, count, seed, features
        self.combinations: list[Combination] = []
        self.captions: list[str] = []
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            self.combinations.append(lpc.sample(rng, "heldout"))
            self.captions.append(lpc.caption(self.combinations[-1], rng, full=True))
        self.seeds = list(range(seed, seed + count))

    @cached_property
    def frames(self) -> Tensor:
        """uint8 `(count t h w c)`."""
        return self.lpc.render(self.combinations).cpu()

    @cached_property
    def exams(self) -> list[adherence.Exam]:
        """About 1.7 MB a combination."""
        bar = tqdm(self.combinations, desc="true clips", unit="combination", leave=False)
        return [adherence.exam(self.lpc, c) for c in bar]

    @cached_property
    def motion(self) -> np.ndarray:
        return motion.motion(self.frames)

    @cached_property
    def net(self) -> AttributeNet:
        return frechet.load_features(self.folder)

    @cached_property
    def features(self) -> np.ndarray:
        """`(count, d)`."""
        return frechet.features(self.net, self.frames)

    @cached_property
    def open_prompts(self) -> list[diversity.OpenPrompt]:
        """One for every 16 combinations."""
        rngs = (np.random.default_rng([self.seed, i, 1]) for i in range(max(1, self.count // 16)))
        return [diversity.draw(self.lpc, rng) for rng in rngs]


def describe(truth: Truth) -> dict:
    """The protocol as plain data: two files with the same one hold comparable numbers."""
    lpc = truth.lpc
    return {
        "version": VERSION,
        "task": "lpc",
        "split": "heldout",
        "count": truth.count,
        "seed": truth.seed,
        "frames": lpc.num_frames,
        "attributes": lpc.attributes,
        "captions": _digest("\n".join(truth.captions)),
        "hand_prompts": _digest(hand.text()),
        "diversity": {"prompts": max(1, truth.count // 16), "seeds": SEEDS},
        "metrics": {
            m.__name__.rpartition(".")[2]: m.VERSION
            for m in (adherence, fidelity, motion, frechet, diversity, hand)
        },
    }


def describe_model(pipe: "VideoPipeline", name: str) -> dict:
    """Name and sha256 of every file of a pipeline folder."""
    files = sorted(p for p in Path(pipe.folder).rglob("*") if p.suffix in (".json", ".safetensors"))
    return {
        "name": name,
        "files": {p.relative_to(pipe.folder).as_posix(): file_hash(p) for p in files},
    }


def describe_features(folder: Path) -> dict:
    """What made the feature network, its hashes, and how well it names attributes it never saw."""
    card = read_card(folder)
    made = card["made"]
    return {
        "config": _digest(json.dumps(made.get("config"), sort_keys=True)),
        "weights": card["sha256"],
        "heldout_accuracy": made.get("heldout_accuracy"),
    }


def evaluate(
    pipe: "VideoPipeline",
    lpc: LPC,
    output: Path,
    *,
    name: str,
    rows: Sequence[str] = ROWS,
    count: int = 512,
    seed: int = 0,
    batch: int = 16,
    hand_prompts: bool = False,
    overwrite: bool = False,
    features: Path = frechet.BUNDLED,
) -> dict:
    """Measure `rows` and write them to `output`; returns its content.

    Finished rows of an existing file are kept. name: how the file calls the model. hand_prompts:
    also measure prompts written by hand. overwrite: start anew. Raises UsageError when the file
    holds results of another protocol, model or feature network."""
    return evaluate_on(
        Truth(lpc, count, seed, features),
        pipe,
        output,
        name=name,
        rows=rows,
        batch=batch,
        hand_prompts=hand_prompts,
        overwrite=overwrite,
    )


def evaluate_on(
    truth: Truth,
    pipe: "VideoPipeline",
    output: Path,
    *,
    name: str,
    rows: Sequence[str],
    batch: int = 16,
    hand_prompts: bool = False,
    overwrite: bool = False,
) -> dict:
    """As `evaluate`, against a truth that further models are measured against."""
    results: dict[str, Any] = {
        "protocol": describe(truth),
        "model": describe_model(pipe, name),
        "features": describe_features(truth.folder),
        "rows": {},
    }
    if output.exists() and not overwrite:
        results["rows"] = _kept(output, results)
    marker: hand.HandMarker | None = None
    for row in sorted(rows, key=place):
        parts = results["rows"].setdefault(row, {})
        if "heldout" not in parts:
            found = _measure(maker(pipe, row, batch), truth)
            _add(results, output, row, "heldout", plain(found), pipe)
        if hand_prompts and row != "codec" and "hand_prompts" not in parts:
            marker = marker or hand.HandMarker(truth.lpc, hand.load())
            found = _measure_hand(maker(pipe, row, batch), truth, marker)
            _add(results, output, row, "hand_prompts", plain(found), pipe)
    return results


def _add(
    results: dict, output: Path, row: str, part: str, found: dict, pipe: "VideoPipeline"
) -> None:
    results["rows"][row][part] = found | {"environment": environment(pipe.device)}
    results["rows"] = {
        name: results["rows"][name]
        for name in sorted(results["rows"], key=place)
        if results["rows"][name]
    }
    write_text(output, json.dumps(results, indent=1) + "\n")


def _kept(output: Path, results: dict) -> dict:
    before = read_results(output)
    for part in ("protocol", "model", "features"):
        now, then = results[part], before.get(part, {})
        for key in now:
            if not isinstance(then, dict) or then.get(key) != now[key]:
                what = f"{part}.{key}"
                was = then.get(key) if isinstance(then, dict) else None
                values = f" {was!r}, not {now[key]!r}" if isinstance(now[key], int | str) else ""
                raise UsageError(
                    f"{output} holds results of another {what}{values}; "
                    "give another --output, or --overwrite"
                )
    return before["rows"]


def _measure(make: Maker, truth: Truth) -> dict:
    """The metrics of one row."""
    exams = truth.exams  # before the clock starts: they serve every row
    start = time.perf_counter()
    made = make(truth.captions, truth.frames, truth.seeds)
    spent = time.perf_counter() - start
    attributes = truth.lpc.attributes
    marks = adherence.mark(exams, made.frames, attributes)
    moved = motion.motion(made.frames)
    moves = motion.motion_ratio(moved, truth.motion)
    distance = frechet.frechet(frechet.features(truth.net, made.frames), truth.features)
    varied = _measure_diversity(make, truth)
    return {
        "evaluations": made.evaluations,
        "adherence": adherence.summary(marks, attributes) | {"chance": adherence.chance(exams)},
        "fidelity": {
            "psnr": fidelity.psnr(made.frames, truth.frames).mean().item(),
            "ssim": fidelity.ssim(made.frames, truth.frames).mean().item(),
        },
        "motion": {
            "ratio": moves.overall,
            "quartiles": np.nanquantile(moves.per_clip, [0.25, 0.5, 0.75]).tolist(),
            "generated": moved.mean(),
            "true": truth.motion.mean(),
            "still": moves.still,
        },
        # The true clips of the same prompts, so that 0 is reached; biased upwards at small counts.
        "frechet": {"distance": distance, "clips": truth.count, "against": "the same prompts"},
        "diversity": varied,
        "truth": hashlib.sha256(truth.frames.numpy().tobytes()).hexdigest(),
        "seconds": {"make": spent, "per_clip": spent / truth.count, "stages": made.seconds},
    }


def _measure_diversity(make: Maker, truth: Truth) -> dict:
    asked = truth.open_prompts
    prompts = [a.prompt for a in asked for _ in range(SEEDS)]
    clips = torch.cat([a.truth[:SEEDS] for a in asked])
    seeds = [truth.seed + 2**32 + i for i in range(len(prompts))]
    found = [diversity.spread(clips) for clips in make(prompts, clips, seeds).frames.split(SEEDS)]
    true = [diversity.spread(a.truth) for a in asked]
    return {
        "ratio": diversity.ratio(found, true),
        "generated": np.mean(found),
        "true": np.mean(true),
        "prompts": len(asked),
        "seeds": SEEDS,
    }


def _measure_hand(make: Maker, truth: Truth, marker: hand.HandMarker) -> dict:
    lpc, prompts = truth.lpc, marker.prompts
    clips = lpc.render([p.attributes for p in prompts]).cpu()
    seeds = [truth.seed + 2**33 + i for i in range(len(prompts))]
    said = {
        "hand": [p.prompt for p in prompts],
        "template": hand.templates(lpc, prompts, truth.seed),
    }
    found: dict[str, Any] = {
        kind: adherence.summary(marker(make(texts, clips, seeds).frames), lpc.attributes)
        for kind, texts in said.items()
    }
    count, words = hand.unseen(lpc, prompts)
    return found | {
        "loss": found["template"]["score"] - found["hand"]["score"],
        "prompts": len(prompts),
        "unseen": {"prompts": count, "words": words},
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def plain(value: Any) -> Any:
    """Numbers to six digits, numpy's to Python's, what is not a number to null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
