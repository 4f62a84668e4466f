"""A student as a low-rank update of its base: one file that diffusers and ComfyUI read alike."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidcm.errors import UsageError, VidcmError
from vidcm.exports.base import ExportTarget, facts
from vidcm.exports.reference import Reference, difference, network_outputs, outputs
from vidcm.exports.student import PublicStudent
from vidcm.families.base import Family, find_family, library_class
from vidcm.families.component import CONFIG, component, read_config
from vidcm.families.lora import ALPHA, DOWN, ORIGINAL, UP, LoraFile, add_updates
from vidcm.families.original import original_names
from vidcm.store import save_tensors, weights_hash

NAME = "lora.safetensors"
RANK, SCALES = 32, (1.0, 0.5)


class LoraUpdate(ExportTarget):
    """The difference of the weights of a student and its base, at a rank.

    Students that were trained with LoRA are such differences; of others the nearest of the rank is
    taken, by singular values (Eckart & Young 1936). Norms, biases and tables cannot be in it.

    Args:
        rank: Of the update of every layer (default: that of training, or 32).
    """

    name = "lora"
    rounds_weights = False

    def __init__(self, rank: int | None = None):
        if rank is not None and rank < 1:
            raise UsageError(f"rank is {rank}; use at least 1")
        self.rank = rank

    def check(self, student: PublicStudent) -> None:
        if student.denoiser.two_times:
            raise UsageError(
                "a student of two times has an embedder that its base lacks, which is no low-rank "
                "update; use --to anyflow"
            )
        if student.base is None:
            raise UsageError(
                f"{student.folder} names no base to be an update of; use --to diffusers"
            )
        original_names(student.family, ())

    def write(self, student: PublicStudent, folder: Path) -> dict[str, Any]:
        assert student.base is not None
        trained = (student.card["metadata"].get("config", {}).get("lora") or {}).get("rank")
        rank = self.rank or trained or RANK
        delta = _difference_of_weights(student)
        layers = _linear_layers(student.transformer, delta)
        names = original_names(student.family, (f"{n}.weight" for n in layers))
        layers = [n for n in layers if _is_read(student.family, n, names[f"{n}.weight"])]
        tensors: dict[str, Tensor] = {}
        errors: dict[str, float] = {}
        for name in layers:
            matrix = delta.pop(f"{name}.weight")
            down, up = low_rank(matrix, rank)
            down, up = down.to(student.dtype), up.to(student.dtype)
            key = ORIGINAL + names[f"{name}.weight"].removesuffix(".weight")
            tensors |= {key + DOWN: down, key + UP: up}
            # elsewhere, and for other families, diffusers takes it for the rank's
            if student.family.name != "ltx" and key.startswith(f"{ORIGINAL}blocks."):
                tensors[key + ALPHA] = torch.tensor(float(len(down)))
            errors[name] = float((matrix - up.float() @ down.float()).norm() / matrix.norm())
        if not tensors:
            raise UsageError(f"{student.folder} has the weights of its base; there is no update")
        student_facts = facts(self.name, student) | {"base_hash": weights_hash(student.base)}
        metadata = {"format": "pt", "vidcm": json.dumps(student_facts), "rank": str(rank)}
        save_tensors(tensors, folder / NAME, metadata)
        own = student.transformer.state_dict()
        left = {k: float(v.norm() / own[k].norm()) for k, v in delta.items() if v.any()}
        return {
            "base_hash": student_facts["base_hash"],
            "rank": rank,
            "layer_errors": errors,
            "left_out": left,
            **_output_error(student, folder / NAME),
        }

    def reference(self, student: PublicStudent) -> Reference:
        """Inputs alone: what is compared depends on the file, and vidcm computes it from that."""
        return outputs(student)

    def compare(
        self, folder: Path, manifest: dict[str, Any], reference: Reference
    ) -> dict[str, float]:
        """The effect of the file in diffusers and in vidcm on the base, at two scales."""
        expected = base_effects(folder, manifest, reference)
        pipeline = _loaded(expected.family, expected.network, folder)
        found: dict[str, float] = {}
        for scale in SCALES:
            pipeline.set_adapters("vidcm", scale)
            with torch.no_grad():
                now = network_outputs(expected.family, pipeline.transformer, reference)
            name = f"effect at scale {scale:g}"
            found[name] = difference(now - expected.plain, expected.effects[scale])
        return found


@dataclass(frozen=True)
class BaseEffects:
    """What an update does to the outputs of its base, by vidcm.

    Attributes:
        family: Of the base.
        network: The base, with its own weights.
        plain: Its outputs.
        effects: What the update adds to them, by scale.
    """

    family: Family
    network: Any
    plain: Tensor
    effects: dict[float, Tensor]


def base_effects(folder: Path, manifest: dict[str, Any], reference: Reference) -> BaseEffects:
    """Apply the update of an export to its base, at `SCALES`.

    Raises:
        UsageError: The base is not there.
        VidcmError: It is another one.
    """
    base = Path(str(manifest.get("base")))
    if not (base / CONFIG).is_file():
        raise UsageError(f"the base {base} of this LoRA is not there; the comparison needs it")
    if weights_hash(base) != manifest.get("base_hash"):
        raise VidcmError(f"{base} is not the base that {folder} is an update of")
    class_name = str(read_config(base).get("_class_name"))
    family, network = find_family(class_name), component(base, class_name)
    plain = network_outputs(family, network, reference)
    updates = LoraFile.read(folder / NAME).updates(family, network)
    own = {name: network.get_parameter(name).clone() for name in updates}
    effects: dict[float, Tensor] = {}
    for scale in SCALES:
        add_updates(network, updates, scale)
        effects[scale] = network_outputs(family, network, reference) - plain
        network.load_state_dict(own, strict=False)
    return BaseEffects(family, network, plain, effects)


def low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrices `(rank, in)` and `(out, rank)` whose product is of that rank."""
    rank = min(rank, *matrix.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=min(2 * rank + 8, *matrix.shape), niter=4)
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).T.contiguous(), (u[:, :rank] * root).contiguous()


def _difference_of_weights(student: PublicStudent) -> dict[str, Tensor]:
    assert student.base is not None
    base = component(student.base, type(student.transformer).__name__).state_dict()
    own = student.transformer.state_dict()
    return {name: own[name] - base[name].float() for name in own}


def _linear_layers(network: nn.Module, delta: dict[str, Tensor]) -> list[str]:
    """The linear layers that changed."""
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    return [name for name in layers if delta[f"{name}.weight"].any()]


def _is_read(family: Family, layer: str, original: str) -> bool:
    """Whether diffusers reads an update of a layer under its published name.

    It renames none of LTX-Video's, and knows no branch of VACE.
    """
    if family.name == "ltx":
        return original == f"{layer}.weight"
    return not layer.startswith("vace_")


@torch.no_grad()
def _output_error(student: PublicStudent, path: Path) -> dict[str, float]:
    """How far outputs are from the student's, as shares of their norm.

    Those of its base, of the base with the update, and of the base with the very weights that the
    update approximates.
    """
    assert student.base is not None
    network = component(student.base, type(student.transformer).__name__)
    inputs = outputs(student)
    expected = inputs["outputs"]
    plain = network_outputs(student.family, network, inputs)
    updates = LoraFile.read(path).updates(student.family, network)
    add_updates(network, updates, 1.0)
    updated = network_outputs(student.family, network, inputs)
    own = student.transformer.state_dict()
    network.load_state_dict({k: own[k] for k in updates}, strict=False)
    whole = network_outputs(student.family, network, inputs)
    return {
        "output_change": float((expected - plain).norm() / expected.norm()),
        "output_error": float((expected - updated).norm() / expected.norm()),
        "output_error_left_out": float((expected - whole).norm() / expected.norm()),
    }


def _loaded(family: Family, network: Any, folder: Path) -> Any:
    """A pipeline of diffusers that holds a network with the file of a folder."""
    cls = library_class(family.pipeline)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler"))
    pipeline = cls(transformer=network, **parts)
    try:
        pipeline.load_lora_weights(
            str(folder), weight_name=NAME, adapter_name="vidcm", local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        line = " ".join(str(error).split())
        raise VidcmError(f"diffusers cannot load {folder / NAME}: {line[:300]}") from None
    return pipeline
