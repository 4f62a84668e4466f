"""Students that are a frozen network with low-rank updates (Hu et al. 2021, arXiv 2106.09685).

The layers are peft's. A run's checkpoints hold what is trained; what is frozen lies in the model
folder that the run starts from, and is taken from there again. What is exported, and what previews
draw, has the updates added into plain weights, so that nothing else knows of them.
"""

from dataclasses import replace

from torch import Tensor, nn

from vidcm.config import LoraConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.store import read_card
from vidcm.train.checkpoint import Base
from vidcm.train.loop import Task

BEYOND = ("guidance", "span")  # inputs of a student that its teacher lacks: trained in full
DOWN, UP, WRAPPED = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def adapt(model: nn.Module, config: LoraConfig, folder: str) -> Base:
    """Freeze a denoiser, filled from `folder`, but for low-rank updates of its blocks' linear
    layers, which start at zero, and for the inputs that its teacher lacks.

    Raises UsageError without peft (its import takes seconds), for a model without blocks, or a target that names no layer."""
    try:
        import peft
    except ImportError as error:
        raise UsageError(f"lora needs peft: pip install -e '.[lora]' ({error})") from None
    blocks = getattr(getattr(model, "backbone", None), "blocks", None)
    if not isinstance(model, Denoiser) or not isinstance(blocks, nn.ModuleList):
        raise UsageError("lora is for denoisers whose backbone has blocks, such as dit")
    layers = [n for n, m in blocks.named_modules() if isinstance(m, nn.Linear)]
    ends = config.targets or [""]
    for end in ends:
        if not any(_ends(name, end) for name in layers):
            known = sorted({name.partition(".")[2] for name in layers})
            raise UsageError(
                f"lora.targets: {end!r} is no linear layer of a block (known: {', '.join(known)})"
            )
    chosen = [f"blocks.{n}" for n in layers if any(_ends(n, end) for end in ends)]
    model.requires_grad_(False)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=chosen)
    peft.inject_adapter_in_model(settings, model.backbone)
    for name in BEYOND:
        if (part := getattr(model.backbone, name, None)) is not None:
            part.requires_grad_(True)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = frozenset(model.state_dict()) - trained
    return Base(folder, read_card(folder)["sha256"], frozen)


def _ends(name: str, end: str) -> bool:
    return not end or f".{name}".endswith(f".{end}")


def merged(weights: dict[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Weights of an adapted model as plain ones, W + alpha / rank B A, under the names that they
    have without updates."""
    plain = {k.replace(WRAPPED, "."): v for k, v in weights.items() if ".lora_" not in k}
    for name, down in weights.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            update = weights[layer + UP] @ down
            plain[f"{layer}.weight"] = (
                plain[f"{layer}.weight"] + config.alpha / config.rank * update
            )
    return plain


def plainly(task: Task, config: LoraConfig, base: Base) -> Task:
    """A task whose previews and exports see plain weights."""
    return replace(
        task,
        preview=lambda weights, path: task.preview(merged(weights, config), path),
        finish=lambda weights: task.finish(merged(weights, config)),
        base=base,
    )
