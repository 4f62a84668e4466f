"""What one rank alone knows, a signal or a failure, is agreed on by all before any acts."""

from collections.abc import Callable, Iterator

from vidcm.data.batch import MicroBatch
from vidcm.train.engine import Engine
from vidcm.train.stop_signal import StopSignal, exit_code

_FAILED = 255  # above every exit code of a signal, so that it wins the reduction


def next_parts(
    stream: Iterator[list[MicroBatch]],
    stop: StopSignal,
    engine: Engine,
    check: Callable[[], None] = lambda: None,
) -> list[MicroBatch] | None:
    """Return the next micro-batches, or None when a rank got a signal.

    Where one rank fails to read, or fails the check, it raises the reason and the others exit
    silently.
    """
    parts, error = None, None
    try:
        check()
        parts = next(stream)
    except Exception as caught:
        error = caught
    code = engine.all_reduce_max(_FAILED if error else stop.code)
    if code == _FAILED:
        raise error or SystemExit(1)
    if code:  # else a signal that came while ranks agreed is heard at the next step
        stop.code = code
    return None if code else parts


def on_rank_zero(engine: Engine, act: Callable[[], int | None]) -> int:
    """Let rank 0 act while the others wait.

    Returns:
        What `act` returned on rank 0, 0 for None, on every rank.

    Raises:
        BaseException: On rank 0 what `act` raised; SystemExit on the others.
    """
    result, error = 0, None
    if engine.rank == 0:
        try:
            result = act() or 0
        except BaseException as caught:  # of a signal too: the others are waiting
            error = caught
    if code := engine.all_reduce_max(exit_code(type(error)) if error else 0):
        raise error or SystemExit(code)
    return engine.all_reduce_max(result)
