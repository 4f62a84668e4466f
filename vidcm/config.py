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
    """The optimizer and its learning rate: linear warm-up, then a cosine.

    Attributes:
        name: adamw, or the name of an optimizer of `timm.optim` (extra timm).
        lr: Learning rate after the warm-up.
        betas: Of the moments, in [0, 1).
        weight_decay: Of weights of linear layers, convolutions and embeddings.
        warmup_steps: Steps of the warm-up.
        final_lr_ratio: The last learning rate over `lr`, in [0, 1].
        max_grad_norm: Gradients of a larger norm are scaled down to it.
    """

    name: str = "adamw"
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
    """Low-rank updates of a frozen network: W + alpha / rank B A.

    Hu et al. 2021, arXiv 2106.09685.

    Attributes:
        rank: Of the updates.
        alpha: See the formula.
        targets: Linear layers of the blocks, by the ends of their names; None for all.
    """

    rank: int = 16
    alpha: int = 16
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise UsageError(f"lora.{name} is {getattr(self, name)}; it must be at least 1")
        if self.targets == []:
            raise UsageError("lora.targets is empty; leave it out to update every linear layer")


_AT_LEAST = {"num_workers": 0, "seed": 0} | dict.fromkeys(
    (
        *("steps", "batch_size", "gradient_accumulation_steps", "sequence_parallel"),
        *("keep_checkpoints", "max_skipped"),
    ),
    1,
)
_AT_LEAST |= dict.fromkeys(("log_every", "sample_every", "save_every"), 1) | {"rank_timeout": 10}


@dataclass
class TrainConfig:
    """The keys of a training config.

    Attributes:
        model: Spec of the model that is trained and exported.
        objective: Spec of the objective.
        data: Spec of the data set.
        output: Folder of the run.
        steps: Optimizer steps, those of further networks included.
        seed: Of the data's order, of noise and of fresh weights.
        batch_size: Samples per optimizer step, of all ranks together.
        gradient_accumulation_steps: Parts that each rank's share of a batch is computed in.
        init: Model folder of the first weights.
        init_text: Model folder of a caption reader, for the first weights of the text tower.
        teacher: Model folder of the teacher.
        lora: Train low-rank updates of `init` (or of `teacher`).
        codec: Model folder; it encodes frames and decodes previews.
        optimizer: See `OptimizerConfig`.
        ema_decay: Of the average of the weights that is exported, in [0, 1).
        precision: fp32; bf16, which is autocast over fp32 weights; or auto, which is bf16 where the
            device has instructions for it.
        zero: ZeRO stage, 0 to 3, under the deepspeed launcher.
        sequence_parallel: Ranks, next to each other, that have the tokens of a clip together.
        activation_checkpointing: Compute blocks again in the backward pass to save memory.
        compile: Compile the trained networks with `torch.compile`.
        num_workers: Threads that prepare batches; 0 for none.
        max_skipped: Steps in a row with a loss or gradient that is not finite before the run stops.
        log_every: Steps between lines of metrics.jsonl.
        sample_every: Steps between previews.
        save_every: Steps between checkpoints.
        keep_checkpoints: How many of the newest stay.
        async_checkpoints: Copy what a checkpoint holds, and train on while it is written.
        rank_timeout: Seconds that ranks wait for one of them before the run ends and names it.
        preview_prompts: Of the previews; the first captions of the data by default.
    """

    model: Spec
    objective: Spec
    data: Spec
    output: str
    steps: int
    seed: int = 0
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    init: str | None = None
    init_text: str | None = None
    teacher: str | None = None
    lora: LoraConfig | None = None
    codec: str | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decay: float = 0.999
    precision: str = "fp32"
    zero: int = 0
    sequence_parallel: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    num_workers: int = 1
    max_skipped: int = 10
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500
    keep_checkpoints: int = 2
    async_checkpoints: bool = True
    rank_timeout: float = 1800.0
    preview_prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, low in _AT_LEAST.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.seed >= 2**63:
            raise UsageError(f"seed is {self.seed}; it must be below 2^63")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if self.precision not in ("fp32", "bf16", "auto"):
            raise UsageError(f"precision is {self.precision!r}; use fp32, bf16 or auto")
        if self.zero not in (0, 1, 2, 3):
            raise UsageError(f"zero is {self.zero}; DeepSpeed's ZeRO stages are 0, 1, 2 and 3")
        if self.compile and self.zero == 3:
            raise UsageError(
                "compile=true cannot look past the hooks by which zero=3 gathers the weights of "
                "every layer; use zero=2, or compile=false"
            )
        if self.compile and self.sequence_parallel > 1:
            raise UsageError(
                "compile=true cannot look past the exchanges of sequence_parallel; use "
                "compile=false, or sequence_parallel=1"
            )
        if self.sequence_parallel > 1 and "denoiser" not in str(self.model.get("name")):
            raise UsageError(
                f"sequence_parallel splits the tokens of denoisers, and model is "
                f"{self.model.get('name')}; use sequence_parallel=1"
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
