"""Strict YAML to dataclasses: unknown, doubled or mistyped keys are errors that name the fix."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vidcm.errors import UsageError
from vidcm.registry import suggest

Spec = dict[str, Any]  # {"name": registered name, **options of its constructor}


@dataclass
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to `final * lr`; `clip` bounds the gradient norm."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    warmup: int = 100
    final: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "clip"):
            if (value := getattr(self, name)) <= 0:
                raise UsageError(f"optimizer.{name} is {value}; it must be above 0")
        for name in ("weight_decay", "warmup"):
            if (value := getattr(self, name)) < 0:
                raise UsageError(f"optimizer.{name} is {value}; it must be 0 or above")
        if not 0 <= self.final <= 1:
            raise UsageError(f"optimizer.final is {self.final}; it must be in [0, 1]")
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
    accumulation: int = 1
    init: str | None = None  # a model folder whose weights to start from
    text: str | None = None  # a caption reader's model folder: what the text tower starts as
    teacher: str | None = None  # a model folder, for objectives that distil
    lora: LoraConfig | None = None  # train low-rank updates of `init` (or else of `teacher`)
    codec: str | None = None  # a model folder; encodes frames and decodes the sample sheets
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: float = 0.999
    precision: str = "fp32"
    zero: int = 0
    activation_checkpointing: bool = (
        False  # compute blocks twice rather than keep what is inside them
    )
    compile: bool = False  # torch.compile for the networks that are trained
    workers: int = 1
    max_skipped: int = 10
    log_every: int = 20
    sample_every: int = 500
    save_every: int = 500
    keep: int = 2
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "accumulation", "keep", "max_skipped")
        least = dict.fromkeys((*positive, "log_every", "sample_every", "save_every"), 1)
        for name, low in {**least, "workers": 0, "seed": 0}.items():
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if self.seed >= 2**63:
            raise UsageError(f"seed is {self.seed}; it must be below 2^63")
        if not 0 <= self.ema < 1:
            raise UsageError(f"ema is {self.ema}; it must be in [0, 1)")
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
        if self.lora and self.text:
            raise UsageError(
                "lora freezes the text tower of init, and text would replace it; drop one"
            )

    @property
    def start(self) -> str | None:
        """The model folder whose weights a run starts from, if any."""
        return self.init or (self.teacher if self.lora else None)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses doubled keys and aliases, and reads 1e-4 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                message = "a key must be a word"
                raise yaml.MarkedYAMLError(None, None, message, key.start_mark)
            if key.value in seen:
                message = f"the key {key.value!r} stands twice"
                raise yaml.MarkedYAMLError(None, None, message, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|nan)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML text to plain data. Raises UsageError with file, line and column."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{where}{at}: {problem}") from None
    except ValueError as error:  # such as a date in month 13
        raise UsageError(f"{where}: {error}") from None
    except (LookupError, TypeError, AttributeError):  # such as !!float of nothing
        raise UsageError(f"{where}: a value does not fit its tag; leave tags (!!) out") from None
    except RecursionError:
        raise UsageError(f"{where}: nested too deeply") from None


def read_keys(path: Path) -> dict:
    """The keys and values of a YAML file. Raises UsageError for a file that holds something else."""
    try:
        data = parse_yaml(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds {type(data).__name__}; expected keys and values")
    return data


def load(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a config file and apply dotted overrides (`optimizer.lr=1e-4`).

    Raises UsageError for a missing file, broken YAML, or a key or value that does not belong."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"there is no config file {path}; the ones that ship are in configs/")
    data = read_keys(path)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(
                f"cannot read the override {item!r}; write key=value, as optimizer.lr=1e-4"
            )
        node = data
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UsageError(f"cannot set {key}: {parent} is not a group of keys")
        node[leaf] = parse_yaml(value, f"override {item}")
    config = from_dict(TrainConfig, data, str(path))
    if not config.output.strip():
        raise UsageError(f"{path}: output is empty; name the folder that the run is written to")
    return config


def from_dict(cls: type, data: dict, where: str) -> Any:
    """A dataclass from plain data, checked key by key."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise UsageError(f"{where}: unknown key {key!r}{suggest(str(key), list(fields))}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UsageError(f"{where}: the key {name!r} is missing")
    return cls(**{k: _convert(hints[k], v, f"{where}: {k}") for k, v in data.items()})


def to_dict(config: Any) -> dict:
    """The plain data of a config, for manifests."""
    return dataclasses.asdict(config)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return from_dict(typing.cast(type, kind), value, where)
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_convert(a, v, where) for a, v in zip(args, value, strict=True))
    if origin is list and isinstance(value, list):
        return [_convert(args[0], v, where) for v in value]
    if origin is dict and isinstance(value, dict):
        _check_finite(value, where)
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UsageError(f"{where}: {value} is not a finite number")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and (kind is bool) == isinstance(value, bool)
    ):
        return value
    name = str(kind).replace("typing.", "") if origin else getattr(kind, "__name__", kind)
    raise UsageError(f"{where}: {value!r} is not {name}")


def _check_finite(value: Any, where: str) -> None:
    """Raises UsageError for a number inside groups and lists that is none."""
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, item in inner:
        _check_finite(item, f"{where}.{key}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where}: {value} is not a finite number")
