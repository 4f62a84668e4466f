"""Plain data to typed values: the one checker of config keys and constructor options."""

import contextlib
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidcm.errors import UsageError


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `known`, or `""` when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def suggest(word: str, known: Sequence[str]) -> str:
    """`did_you_mean` with the list of known words."""
    return f"{did_you_mean(word, known)} (known: {', '.join(sorted(known))})"


def from_dict(cls: type, data: Mapping, where: str) -> Any:
    """Build a dataclass from plain data, checked key by key.

    Args:
        cls: The dataclass; its annotations are the schema.
        data: Keys and values, as from YAML or JSON.
        where: Start of every error message, as a file name.

    Raises:
        UsageError: A key is unknown or missing, or a value has another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise UsageError(f"{where}: unknown key {key!r}{suggest(str(key), list(fields))}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise UsageError(f"{where}: the key {name!r} is missing")
    return cls(**{k: convert(hints[k], v, f"{where}: {k}") for k, v in data.items()})


def convert(kind: Any, value: Any, where: str) -> Any:
    """Return `value` as `kind`: 3 for a float is 3.0, a list for a tuple is a tuple.

    Args:
        kind: An annotation. Values of classes that are not plain data pass unchecked.
        value: Plain data.
        where: Start of every error message.

    Raises:
        UsageError: The value is of another type, or a number that is not finite.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _convert_union(kind, value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(kind, value, where)
    container = origin or kind
    if container is tuple and isinstance(value, list | tuple):
        kinds = args or (Any,) * len(value)
        if len(value) == len(kinds):
            return tuple(convert(k, v, where) for k, v in zip(kinds, value, strict=True))
    elif container in (list, Sequence) and isinstance(value, list | tuple):
        return [convert(args[0] if args else Any, v, where) for v in value]
    elif container in (dict, Mapping) and isinstance(value, Mapping):
        return {k: convert(args[1] if args else Any, v, f"{where}.{k}") for k, v in value.items()}
    elif kind in _SCALARS:
        if isinstance(value, _SCALARS[kind]) and (kind is bool) == isinstance(value, bool):
            return typing.cast(type, kind)(_finite(value, where))
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
    elif container not in _CONTAINERS and not dataclasses.is_dataclass(kind):
        return _finite(value, where)
    raise UsageError(f"{where}: {value!r} is not {_name(kind)}")


_CONTAINERS = (tuple, list, Sequence, dict, Mapping)
_SCALARS: dict[Any, Any] = {float: int | float, int: int, bool: bool, str: str, Path: str | Path}


def _convert_union(kind: Any, value: Any, where: str) -> Any:
    """The value as the first alternative that it fits."""
    kinds = [k for k in typing.get_args(kind) if k is not types.NoneType]
    if value is None and len(kinds) < len(typing.get_args(kind)):
        return None
    if len(kinds) == 1:
        return convert(kinds[0], value, where)
    for alternative in kinds:
        with contextlib.suppress(UsageError):
            return convert(alternative, value, where)
    raise UsageError(f"{where}: {value!r} is not {_name(kind)}")


def _name(kind: Any) -> str:
    plain = isinstance(kind, type) and not typing.get_origin(kind)
    return kind.__name__ if plain else str(kind).replace("collections.abc.", "")


def _finite(value: Any, where: str) -> Any:
    """`value`, or UsageError for a number in it that is not finite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _finite(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _finite(item, f"{where}.{index}")
    elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        raise UsageError(f"{where}: {value} is not a finite number")
    return value
