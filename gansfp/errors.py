"""What can go wrong, as a user sees it: one line that says what was wrong, with the value, and what to do."""


class GansfpError(Exception):
    """Base of every error that a job prints as one line instead of a traceback (exit status 1)."""

    exit_status = 1


class UsageError(GansfpError):
    """A command asked for something that does not exist or cannot be (exit status 2)."""

    exit_status = 2


class DataError(GansfpError):
    """DATA or WORK is not as it must be: missing, empty, contradictory or not writable (exit status 2)."""

    exit_status = 2


class WeightsError(UsageError):
    """The weights of a backbone cannot be had; the message names the file to put and where (exit status 2)."""
