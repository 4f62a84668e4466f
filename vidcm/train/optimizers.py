"""The optimizer of a config, and which parameters decay."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from vidcm.config import OptimizerConfig
from vidcm.errors import UsageError
from vidcm.schema import suggest

DECAYED = nn.Linear, _ConvNd, nn.EmbeddingBag


def decays(module: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay is for.

    These are the weights of linear layers, convolutions and embeddings. Biases, norms, the
    scale-shift tables of adaLN and single tokens are not.
    """
    return {
        f"{name}.weight".lstrip(".") for name, m in module.named_modules() if isinstance(m, DECAYED)
    }


def make_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return an optimizer of the parameters that require gradients.

    Args:
        module: Its parameters are put into two groups, with weight decay and without.
        config: Its `name` is adamw, torch's, or one that `timm.optim` knows.

    Raises:
        UsageError: timm is not there, or does not know the name.
    """
    chosen = decays(module)
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if n in chosen], "weight_decay": config.weight_decay},
        {"params": [p for n, p in named if n not in chosen], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8)
    optim = _timm()
    if config.name not in (known := optim.list_optimizers()):
        raise UsageError(f"unknown optimizer.name {config.name!r}{suggest(config.name, known)}")
    betas = {"betas": config.betas} if optim.get_optimizer_info(config.name).has_betas else {}
    return optim.create_optimizer_v2(groups, opt=config.name, lr=config.lr, **betas)


def _timm() -> Any:
    """`timm.optim`; its import takes seconds."""
    try:
        import timm.optim  # type: ignore[import-not-found]
    except Exception as error:  # with a torchvision that does not fit torch it is a RuntimeError
        raise UsageError(
            "optimizers but adamw are timm's, which cannot be imported: pip install -e '.[timm]', "
            f"with a torchvision made for this torch ({error})"
        ) from None
    return timm.optim
