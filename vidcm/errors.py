"""The two errors a user may see; every command turns them into one line and an exit code."""


class VidcmError(Exception):
    """A valid request failed, as for a full disk (exit code 1)."""

    exit_code = 1


class UsageError(VidcmError):
    """A request that cannot be met: a bad option, config or combination (exit code 2)."""

    exit_code = 2
