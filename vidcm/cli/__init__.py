"""The `vidcm` command: `vidcm <command> ...` calls `vidcm.cli.<command>.main`.

Each command module has `parser() -> argparse.ArgumentParser` and `main(argv) -> int` (exit code),
and is imported only when it is the one asked for. `tools/<command>.py` is the same command.
"""

import importlib
import sys

from vidcm.cli.common import did_you_mean
from vidcm.version import __version__

COMMANDS = {
    "train": "train what a config names: codec, teacher or few-step student",
    "generate": "make a video clip from a prompt in 1-4 network evaluations",
    "encode": "turn videos and captions into latent shards for training",
    "edit": "fill in, colour, enlarge, extend or loop clips without training",
    "export": "put codec, teacher and student together as one pipeline folder",
    "evaluate": "measure quality per step count, student against teacher",
    "tune": "search the times of a student's sampling steps",
    "compare": "train every objective with one budget and measure them side by side",
    "benchmark": "measure latency and throughput by stage",
}


def help_text() -> str:
    """The text of `vidcm --help`: usage and one line per command."""
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
            "`vidcm <command> --help` shows its options; `vidcm --version` the version.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: `sys.argv[1:]`) and give the exit code.

    Without a command: the help on stderr, 2. Unknown command: one line on stderr, 2. As with any
    argparse program, the commands leave through SystemExit after `--help` (0) or a bad option (2).
    """
    match sys.argv[1:] if argv is None else argv:
        case []:
            print(help_text(), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(help_text())
            return 0
        case ["--version", *_]:
            print(f"vidcm {__version__}")
            return 0
        case [command, *rest] if command in COMMANDS:
            return importlib.import_module(f"vidcm.cli.{command}").main(rest)
        case [command, *_]:
            hint = did_you_mean(command, COMMANDS) or f"; commands are {', '.join(COMMANDS)}"
            print(f"error: unknown command {command!r}{hint} (see vidcm --help)", file=sys.stderr)
    return 2
