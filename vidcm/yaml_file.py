"""Strict YAML: doubled keys are errors, a file may build on another, `~` is the home folder."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vidcm.errors import UsageError


def read_keys(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the keys of a YAML file merged with those of its `base` files.

    `base: other.yaml` is relative to the file. Groups merge key by key, unless both have a `name`
    and the names differ: then the file's group replaces the base's. All else replaces.

    Args:
        path: The file.
        overrides: `key=value` texts with dotted keys, applied last.

    Returns:
        Keys and values without `base`; `~` at the beginning of a text is the home folder.

    Raises:
        UsageError: A file is missing, broken or its own base, or an override cannot be read.
    """
    data = _read(path, ())
    for item in overrides:
        _override(data, item)
    return _expand_home(data)


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file merged with its bases'; above: the files that build on it."""
    data = _read_file(path, above)
    if (base := data.pop("base", None)) is None:
        return data
    if not isinstance(base, str):
        raise UsageError(f"{path}: base is {base!r}; expected the name of a YAML file")
    target = path.parent / os.path.expanduser(base)
    if target.resolve() in [file.resolve() for file in (*above, path)]:
        raise UsageError(f"{path}: its base {base} leads back to itself; break the circle")
    return _merge(_read(target, (*above, path)), data)


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the config file in it")
    if not path.exists():
        hint = f"{above[-1]} names it as its base" if above else "see configs/ of the repository"
        raise UsageError(f"there is no config file {path}; {hint}")
    try:
        data = parse_yaml(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds {type(data).__name__}; expected keys and values")
    return data


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same = value.get("name", old.get("name")) == old.get("name")
            value = _merge(old, value) if same else value
        merged[key] = value
    return merged


def _override(data: dict[str, Any], item: str) -> None:
    """Apply one `key=value`."""
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


def _expand_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _expand_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


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
