"""Students that are a frozen network with low-rank updates (Hu et al. 2021, arXiv 2106.09685).

The layers are peft's. Previews and exports have the updates added into plain weights, so that
nothing else knows of them.
"""

from torch import Tensor, nn

from vidcm.config import LoraConfig
from vidcm.diffusion.denoiser import Denoiser
from vidcm.errors import UsageError
from vidcm.models.backbone import TransformerBackbone

DOWN, UP, WRAPPED = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."


def adapt(model: nn.Module, config: LoraConfig) -> None:
    """Freeze a denoiser but for low-rank updates, which start at zero.

    The updates are of the linear layers of its blocks; inputs that its teacher lacks are trained
    in full.

    Args:
        model: The denoiser, with its weights.
        config: Rank, scale and layers of the updates.

    Raises:
        UsageError: peft is not there, the model has no blocks, or a target names no layer.
    """
    try:
        import peft  # takes seconds
    except ImportError as error:
        raise UsageError(f"lora needs peft: pip install -e '.[lora]' ({error})") from None
    if not isinstance(model, Denoiser) or not isinstance(model.backbone, TransformerBackbone):
        raise UsageError("lora is for denoisers whose backbone has blocks, such as dit")
    backbone = model.backbone
    layers = [n for n, m in backbone.blocks.named_modules() if isinstance(m, nn.Linear)]
    ends = config.targets or [""]
    for end in ends:
        if not any(_ends(name, end) for name in layers):
            known = sorted({name.partition(".")[2] for name in layers})
            raise UsageError(
                f"lora.targets: {end!r} is no linear layer of a block (known: {', '.join(known)})"
            )
    prefix = next(name for name, module in backbone.named_modules() if module is backbone.blocks)
    chosen = [f"{prefix}.{n}" for n in layers if any(_ends(n, end) for end in ends)]
    model.requires_grad_(False)
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=chosen)
    peft.inject_adapter_in_model(settings, backbone)
    for name, parameter in backbone.named_parameters():
        if name.partition(".")[0] in backbone.student_inputs:
            parameter.requires_grad_(True)


def _ends(name: str, end: str) -> bool:
    return not end or f".{name}".endswith(f".{end}")


def merge(weights: dict[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return the weights of an adapted model as plain ones, W + alpha / rank B A."""
    plain = {k.replace(WRAPPED, "."): v for k, v in weights.items() if ".lora_" not in k}
    for name, down in weights.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            update = weights[layer + UP] @ down
            plain[f"{layer}.weight"] = (
                plain[f"{layer}.weight"] + config.alpha / config.rank * update
            )
    return plain
