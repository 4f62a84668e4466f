"""The two errors a user may see; every command turns them into one line and an exit code."""


class VidcmError(Exception):
    """Something failed while doing what was asked (exit code 1)."""

    exit_code = 1


class UsageError(VidcmError):
    """What was asked cannot be done: a bad option, config or combination (exit code 2)."""

    exit_code = 2
