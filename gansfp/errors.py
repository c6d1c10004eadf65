"""The errors that a user sees. The message is one line: what was wrong, with the value, and what to do."""


class GansfpError(Exception):
    """Base class of the errors that a command prints as one line instead of a traceback (exit status 1)."""

    exit_status = 1


class UsageError(GansfpError):
    """The user asked for something that does not exist or is not possible (exit status 2)."""

    exit_status = 2


class DataError(GansfpError):
    """DATA or WORK is not usable: missing, empty, contradictory or not writable (exit status 2)."""

    exit_status = 2


class WeightsError(UsageError):
    """The weights of a network are not available; the message names the missing file and its folder (exit status 2)."""
