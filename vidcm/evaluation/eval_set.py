"""Held-out prompts with their true clips, and the facts that identify a measurement on them."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from vidcm.evaluation.environment import environment
from vidcm.evaluation.results import Results
from vidcm.files import file_hash
from vidcm.lpc import adherence, diversity, hand_prompts
from vidcm.lpc.combinations import Combination
from vidcm.lpc.dataset import LPC
from vidcm.lpc.features import BUNDLED, LpcFeatures
from vidcm.metrics import fidelity, frechet, motion
from vidcm.pipeline import VideoPipeline
from vidcm.store import read_card

VERSION = 1
SEEDS_PER_PROMPT = 4  # clips of each prompt that leaves attributes open


class EvalSet:
    """Held-out combinations with captions, seeds and true clips.

    True clips and all that is computed from them are made when first used, once for every model
    measured on the set.

    Args:
        lpc: the dataset.
        count: number of combinations.
        seed: of the combinations, their captions and the noise.
        features: folder of the feature network of the Fréchet distance.
    """

    def __init__(self, lpc: LPC, count: int, seed: int, features: Path = BUNDLED):
        self.lpc, self.count, self.seed, self.features_folder = lpc, count, seed, features
        self.combinations: list[Combination] = []
        self.captions: list[str] = []
        for i in range(count):
            rng = np.random.default_rng([seed, i])
            self.combinations.append(lpc.sample(rng, "heldout"))
            self.captions.append(lpc.caption(self.combinations[-1], rng, full=True))
        self.seeds = list(range(seed, seed + count))

    @cached_property
    def frames(self) -> Tensor:
        """True clips, uint8 `(count t h w c)`."""
        return self.lpc.render(self.combinations).cpu()

    @cached_property
    def questions(self) -> list[adherence.Questions]:
        """About each combination's attributes; about 1.7 MB a combination."""
        bar = tqdm(self.combinations, desc="true clips", unit="combination", leave=False)
        return [adherence.attribute_questions(self.lpc, c) for c in bar]

    @cached_property
    def motion(self) -> np.ndarray:
        """Of the true clips, `(count,)`."""
        return motion.motion(self.frames)

    @cached_property
    def extractor(self) -> LpcFeatures:
        """The network of the Fréchet distance."""
        return LpcFeatures(self.features_folder)

    @cached_property
    def features(self) -> np.ndarray:
        """Of the true clips, `(count, d)`."""
        return self.extractor(self.frames)

    @cached_property
    def open_prompts(self) -> list[diversity.OpenPrompt]:
        """One for every 16 combinations."""
        rngs = (np.random.default_rng([self.seed, i, 1]) for i in range(max(1, self.count // 16)))
        return [diversity.draw_open_prompt(self.lpc, rng) for rng in rngs]

    def protocol(self) -> dict:
        """The protocol as plain data: results of equal protocols are comparable."""
        metrics = (adherence, fidelity, motion, frechet, diversity, hand_prompts)
        card = read_card(self.features_folder)
        return {
            "version": VERSION,
            "task": "lpc",
            "split": "heldout",
            "attributes": self.lpc.attributes,
            "captions": _digest("\n".join(self.captions)),
            "hand_prompts": _digest(hand_prompts.hand_prompts_text()),
            "diversity": {"prompts": max(1, self.count // 16), "seeds": SEEDS_PER_PROMPT},
            "metrics": {m.__name__.rpartition(".")[2]: m.VERSION for m in metrics},
            "features": {
                "config": _digest(json.dumps(card["metadata"].get("config"), sort_keys=True)),
                "weights": card["sha256"],
                "heldout_accuracy": card["metadata"].get("heldout_accuracy"),
            },
        }


@dataclass(frozen=True)
class EvalJob:
    """A model to measure on an evaluation set, into a results file.

    Attributes:
        pipe: the model.
        eval_set: its prompts and true clips.
        output: JSON file; finished rows of an existing one are kept.
        name: of the model, as the file calls it.
        batch_size: clips at a time.
        overwrite: start anew where the file exists.
        exported: folder of `vidcm export --to diffusers`, for rows that diffusers makes.
    """

    pipe: VideoPipeline
    eval_set: EvalSet
    output: Path
    name: str
    batch_size: int = 16
    overwrite: bool = False
    exported: Path | None = None

    def results(
        self, kind: str, protocol: Mapping[str, Any], sort_key: Callable[[str], Any] | None = None
    ) -> Results:
        """The results file. Raises UsageError when it holds another kind, protocol or model.

        Args:
            kind: of the results.
            protocol: its facts, beside count, seed and frames.
            sort_key: order of the rows' names.
        """
        eval_set, files = self.eval_set, {}
        for path in sorted(Path(self.pipe.folder).rglob("*")):
            if path.suffix in (".json", ".safetensors"):
                files[path.relative_to(self.pipe.folder).as_posix()] = file_hash(path)
        own = {"count": eval_set.count, "seed": eval_set.seed, "frames": eval_set.lpc.num_frames}
        facts = {
            "kind": kind,
            "protocol": own | dict(protocol),
            "model": {"name": self.name, "files": files},
        }
        found = environment(self.pipe.device)
        return Results(self.output, facts, found, overwrite=self.overwrite, sort_key=sort_key)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
