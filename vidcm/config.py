"""The keys of a training config, and how it is read."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError
from vidcm.registry import check_name
from vidcm.schema import from_dict
from vidcm.yaml_file import read_keys

Spec = dict[str, Any]  # {"name": registered name, **options of its constructor}


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to `final_lr_ratio * lr`; `max_grad_norm` bounds the gradient norm."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup_steps: int = 100
    final_lr_ratio: float = 0.05
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "max_grad_norm"):
            if (value := getattr(self, name)) <= 0:
                raise UsageError(f"optimizer.{name} is {value}; it must be above 0")
        for name in ("weight_decay", "warmup_steps"):
            if (value := getattr(self, name)) < 0:
                raise UsageError(f"optimizer.{name} is {value}; it must be 0 or above")
        if not 0 <= self.final_lr_ratio <= 1:
            raise UsageError(
                f"optimizer.final_lr_ratio is {self.final_lr_ratio}; it must be in [0, 1]"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer.betas are {list(self.betas)}; both must be in [0, 1)")


@dataclass
class LoraConfig:
    """Low-rank updates of a frozen network: W + alpha / rank B A (Hu et al. 2021, arXiv
    2106.09685). targets: which linear layers of its blocks, by the ends of their names; all of
    them if not given."""

    rank: int = 16
    alpha: int = 16
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise UsageError(f"lora.{name} is {getattr(self, name)}; it must be at least 1")
        if self.targets == []:
            raise UsageError("lora.targets is empty; leave it out to update every linear layer")


@dataclass
class TrainConfig:
    """Everything `tools/train.py` needs to know; `batch_size` is global, per optimiser step."""

    model: Spec
    objective: Spec
    data: Spec
    output: str
    steps: int
    seed: int = 0
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    init: str | None = None  # a model folder whose weights to start from
    init_text: str | None = None  # a caption reader's model folder: what the text tower starts as
    teacher: str | None = None  # a model folder, for objectives that distil
    lora: LoraConfig | None = None  # train low-rank updates of `init` (or else of `teacher`)
    codec: str | None = None  # a model folder; encodes frames and decodes the sample sheets
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decay: float = 0.999
    precision: str = "fp32"
    zero: int = 0
    activation_checkpointing: bool = (
        False  # compute blocks twice rather than keep what is inside them
    )
    compile: bool = False  # torch.compile for the networks that are trained
    num_workers: int = 1
    max_skipped: int = 10
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500
    keep_checkpoints: int = 2
    preview_prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "batch_size",
            "gradient_accumulation_steps",
            "keep_checkpoints",
            "max_skipped",
        )
        least = dict.fromkeys((*positive, "log_every", "sample_every", "save_every"), 1)
        for name, low in {**least, "num_workers": 0, "seed": 0}.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.seed >= 2**63:
            raise UsageError(f"seed is {self.seed}; it must be below 2^63")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if self.precision not in ("fp32", "bf16"):
            raise UsageError(f"precision is {self.precision!r}; use fp32 or bf16")
        if self.zero not in (0, 1, 2, 3):
            raise UsageError(f"zero is {self.zero}; DeepSpeed's ZeRO stages are 0, 1, 2 and 3")
        if self.compile and self.zero == 3:
            raise UsageError(
                "compile=true cannot look past the hooks by which zero=3 gathers the weights of every "
                "layer; use zero=2, or compile=false"
            )
        if self.lora and not self.start:
            raise UsageError(
                "lora updates a network that is there already; set init (or teacher) to its folder"
            )
        if self.lora and self.init_text:
            raise UsageError(
                "lora freezes the text tower of init, and init_text would replace it; drop one"
            )

    @property
    def start(self) -> str | None:
        """The model folder whose weights a run starts from, if any."""
        return self.init or (self.teacher if self.lora else None)


def load(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a training config.

    Args:
        path: A YAML file; its `base` key may name another one to start from.
        overrides: `key=value` texts with dotted keys, as `optimizer.lr=1e-4`.

    Raises:
        UsageError: The file is missing or broken, or a key or value does not belong in it.
    """
    path = Path(path)
    config: TrainConfig = from_dict(TrainConfig, read_keys(path, overrides), str(path))
    for kind in ("model", "objective", "data"):
        check_name(kind, getattr(config, kind))
    if not config.output.strip():
        raise UsageError(f"{path}: output is empty; name the folder that the run is written to")
    return config


def to_dict(config: Any) -> dict:
    """The plain data of a config, for manifests."""
    return dataclasses.asdict(config)
