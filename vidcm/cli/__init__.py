"""The `vidcm` command: `vidcm <command> ...` calls `vidcm.cli.<command>.main`.

Each command module has `parser() -> argparse.ArgumentParser` and `main(argv) -> int` (exit code),
and is imported only when it is called. `tools/<command>.py` is the same command.
"""

import argparse
import importlib
import sys

from vidcm.cli.common import run
from vidcm.schema import did_you_mean
from vidcm.version import __version__

COMMANDS = {
    "train": "train a codec, a teacher or a few-step student",
    "generate": "make a video clip from a prompt in 1-4 network evaluations",
    "encode": "turn videos and captions into latent shards for training",
    "edit": "fill in, colour, enlarge, extend or loop clips without training",
    "serve": "serve clips and edits over HTTP, in OpenAI's videos form",
    "export": "put codec, teacher and student together as one pipeline folder",
    "evaluate": "measure quality per step count, student against teacher",
    "tune": "search the lowest noise level of a student's sampler",
    "compare": "train every objective with one budget and measure them",
    "reproduce": "make a reference model, from its art to a measured pipeline",
    "benchmark": "measure latency and throughput by stage",
    "doctor": "check that this machine can generate, and its optional parts",
    "completion": "print a script that completes commands in bash, zsh or fish",
}


def help_text() -> str:
    """Return the text of `vidcm --help`: usage and one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vidcm <command> [options]",
            "",
            "Few-step consistency models from video diffusion models.",
            "",
            "commands:",
            *lines,
            "",
            "`vidcm help <command>` shows its options; `vidcm --version` the version.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`).

    Returns:
        The exit code; 2 without a command (the help is on stderr) and for an unknown one.

    Raises:
        SystemExit: After a command's `--help` (0), or for a bad option (2).
    """
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # while a command is imported, before its own answer to signals
        print("error: interrupted", file=sys.stderr)
        return 130


def _dispatch(argv: list[str]) -> int:
    match argv:
        case []:
            print(help_text(), file=sys.stderr)
            return 2
        case ["-h" | "--help" | "help"] | ["help", "help" | "--help" | "-h"]:
            return run(lambda _: print(help_text()), argparse.Namespace())
        case ["help", *rest]:
            return main([*rest, "--help"])
        case ["--version", *_]:
            return run(lambda _: print(f"vidcm {__version__}"), argparse.Namespace())
        case [command, *rest] if command in COMMANDS:
            return importlib.import_module(f"vidcm.cli.{command}").main(rest)
        case [command, *_]:
            hint = did_you_mean(command, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
            print(f"error: unknown command {command!r}{hint} (see vidcm --help)", file=sys.stderr)
    return 2
