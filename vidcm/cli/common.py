"""The parser of commands, and the one place where their failures become lines.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C), 141 the reader of our output
went away, 143 terminated. A user sees one line on stderr, `error: ...`, and never a traceback;
`VIDCM_DEBUG=1` lets unexpected exceptions through with their traceback.

This module imports neither torch nor anything that does, so that `--help` answers at once.
"""

import argparse
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from vidcm.cli.argument_types import quoted
from vidcm.errors import VidcmError
from vidcm.schema import did_you_mean

# Read once, when torch loads OpenMP: threads that wait spin for some 10 microseconds, then sleep.
# Never spinning makes training much slower on idle cores; spinning for milliseconds, the default,
# makes it slower still where anything else runs beside.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")


def program(command: str) -> str:
    """How the user called `command`: as `vidcm X`, `python -m vidcm X` or `python tools/X.py`."""
    script = Path(sys.argv[0])
    if script.name == f"{command}.py":
        return f"python {script}"
    module = script.parts[-2:] == ("vidcm", "__main__.py")
    return f"python -m vidcm {command}" if module else f"vidcm {command}"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to the help of every option that has one and does not speak of it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        flag = action.nargs == 0 or default is None or default is argparse.SUPPRESS
        value = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return text if flag or not value or "default:" in text else f"{text} (default: {value})"


class Parser(argparse.ArgumentParser):
    """`ArgumentParser` whose errors are one line with a suggestion; options are never abbreviated.

    Without any argument, a command that requires one shows its usage and description (exit 2).

    Args:
        command: Its name, as "generate". Where the texts say `vidcm generate`, the help shows the
            program as the user called it.
        description: A sentence on the command.
        epilog: Examples.
    """

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        prog = program(command)
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog.replace(f"vidcm {command}", prog),
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.foreign: dict[str, str] = {}  # options of other commands, and whose they are
        self._bare = False

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):  # pyright: ignore
        _prepare_streams()
        args = sys.argv[1:] if args is None else list(args)
        self._bare = not args
        # Before argparse looks: it would report the option that is missing, not the misspelt one.
        for token in args:
            if token == "--":
                break
            name = token.partition("=")[0]
            known = self._option_string_actions
            if name in self.foreign:
                self.error(f"{name} {self.foreign[name]}")
            if name.startswith("--") and " " not in name and name not in known:
                hint = did_you_mean(name, known)
                self.error(f"unknown option {quoted(name)}{hint}")
        return super().parse_known_args(args, namespace)

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        """Write the help; unlike argparse's own, a full disk is an error."""
        try:
            if file is not None:
                file.write(message)
                file.flush()
        except BrokenPipeError:
            _reader_left()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            self.exit(1, f"error: cannot write the help: {error.strerror}\n")

    def error(self, message: str) -> NoReturn:
        if self._bare:
            self.print_usage(sys.stderr)
            print(f"\n{self.description}\n", file=sys.stderr)
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def run(body: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Call `body(args)`; a failure becomes one line on stderr.

    Cleanup in `body` (finally, context managers) runs for every ending, SIGTERM included.

    Returns:
        The exit code: that of `body` (None is 0), or the failure's.

    Raises:
        Exception: An unexpected one, when the environment has VIDCM_DEBUG=1.
    """
    _prepare_streams()
    try:
        with _sigterm_raises():
            code = body(args) or 0
            _flush()
        return code
    except VidcmError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _Terminated:
        return _fail("terminated", 143)
    except BrokenPipeError as error:
        return 141 if _reader_left() else _unexpected(error)
    except Exception as error:
        if _is_out_of_memory(error):
            return _fail(
                f"out of memory ({_one_line(error) or type(error).__name__}); ask for fewer or"
                " smaller frames, lower the batch size, or use a device with more memory",
                1,
            )
        if isinstance(error, OSError) and error.strerror:  # disk full, no permission: not a bug
            where = f"{error.filename}: " if error.filename else ""
            return _debug_or(error, f"{where}{error.strerror}")
        return _unexpected(error)


class _Terminated(BaseException):
    """SIGTERM, as an exception: not an `Exception`, so that no handler for failures swallows it."""


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; the process then keeps the one it has
        return

    def handler(signum: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the cleanup short
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _prepare_streams() -> None:
    """Make any text printable, and give closed streams the null device.

    Otherwise the next file that is opened becomes stdout or stderr.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    # What the encoding lacks, as letters of a path, is printed as escapes.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write what is printed, where a full disk or a closed pipe can still be answered."""
    try:
        if sys.stdout is not None:  # None where stdout is closed
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the flush at exit fails too
        raise VidcmError(f"cannot write to stdout: {error.strerror}; the work is done") from error


def _fail(message: str, code: int) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def _unexpected(error: Exception) -> int:
    return _debug_or(
        error,
        f"internal: {type(error).__name__}: {_one_line(error)}"
        " (set VIDCM_DEBUG=1 for the traceback; please report)",
    )


def _debug_or(error: Exception, message: str) -> int:
    if os.environ.get("VIDCM_DEBUG") == "1":
        raise error
    return _fail(message, 1)


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")  # an error of torch's exists only where torch is loaded
    return (
        isinstance(error, MemoryError)
        or (torch is not None and isinstance(error, torch.OutOfMemoryError))
        # the CPU allocator of torch raises a plain RuntimeError
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _reader_left() -> bool:
    """True when it is our own output that nobody reads; then silences the flush at exit."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something that is no file
        return False
    poll = select.poll()
    poll.register(output, 0)  # errors and hang-ups are reported unasked
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).splitlines())
