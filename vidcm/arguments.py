"""Checks of arguments of the Python API: wrong names, types and numbers raise UsageError."""

import functools
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from vidcm.errors import UsageError
from vidcm.schema import suggest

MAX_SEED = 2**63
# Names of arguments in other libraries and of the commands' options, and what they are called here.
SYNONYMS = {
    "prompts": "prompt",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "frames": "num_frames",
    "video_length": "num_frames",
    "num_clips": "num_videos_per_prompt",
    "num_images_per_prompt": "num_videos_per_prompt",
    "negative_prompts": "negative_prompt",
    "seeds": "seed",
    "progress": "callback_on_step_end",
    "callback": "callback_on_step_end",
    "then": "prompt_schedule",
    "teacher": "use_teacher",
    "scheduler": "solver",
    "dtype": "torch_dtype",
    "return_type": "output_type",
}

P = ParamSpec("P")
R = TypeVar("R")


def checked_names(synonyms: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a method: unknown argument names raise UsageError with the nearest known one.

    Args:
        synonyms: Names that other libraries or the commands use, and what they are called here.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        known = [name for name in signature.parameters if name not in ("self", "cls")]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in known:
                    there = synonyms.get(name)
                    hint = f"; it is called {there!r} here" if there else suggest(name, known)
                    raise UsageError(f"there is no argument {name!r}{hint}")
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise UsageError(f"{error}; name the arguments ({', '.join(known)})") from None
            return function(*args, **kwargs)

        return checked

    return decorate


def integer(name: str, value: Any, low: int, high: int) -> int:
    """A whole number within bounds; numpy's and torch's count. Raises UsageError."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; expected a whole number") from None
    if not low <= number <= high:
        raise UsageError(f"{name} is {number}; use {low} to {high}")
    return number


def real_number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number within bounds; numpy's count. Raises UsageError."""
    try:
        if isinstance(value, bool | str):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} is {value!r}; expected a number") from None
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        raise UsageError(f"{name} is {number:g}; use {low:g} to {high:g}")
    return number


def flag(name: str, value: Any) -> bool:
    """True or False. Raises UsageError, so that "no" does not count as True."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; expected True or False")
    return value


def path(name: str, value: Any) -> str:
    """The text of a path. Raises UsageError, so that None does not name a file."""
    if not isinstance(value, str | os.PathLike) or not isinstance(found := os.fspath(value), str):
        raise UsageError(f"{name} is {value!r}; expected the path of a file or folder")
    return found


def text(name: str, value: Any) -> str:
    """A string. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}; expected text")
    return value


def texts(name: str, value: Any) -> list[str]:
    """One string or several, as a list. Raises UsageError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping) or not isinstance(value, Iterable):
        raise UsageError(f"{name} is {value!r}; expected text or a list of texts")
    return [text(name, one) for one in value]


def seeds(value: Any, count: int | None, of: str) -> list[int]:
    """One seed for each of `count` items.

    Args:
        value: A whole number, which counts up from item to item, or one per item; None is 0.
        count: Number of items; None for as many as there are seeds.
        of: What they are, for the message, as "clips".

    Raises:
        UsageError: Another type, a number outside [0, 2**63), or as many as there are not items.
    """
    if value is None:
        value = 0
    # A numpy or torch scalar may have an iterator that refuses, so whole numbers come first.
    try:
        first = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        first = None
    if first is not None:
        found = [first + i for i in range(1 if count is None else count)]
    elif isinstance(value, str | Mapping | bool) or not isinstance(value, Iterable):
        raise UsageError(f"seed is {value!r}; expected a whole number, or one per clip")
    else:
        found = list(value)
    if count is not None and len(found) != count:
        raise UsageError(f"{len(found)} seeds for {count} {of}; give one, or one for each")
    return [integer("seed", one, 0, MAX_SEED - 1) for one in found]
