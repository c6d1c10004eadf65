"""How an error of gansfp gets from a worker process to the driver: as the last line of its traceback.

Ray Data and Ray Tune give the driver only the text of a traceback, and Ray repeats a task or a training that raises. So
every worker hands over text, in the form in which Python ends a traceback.
"""

from __future__ import annotations

import re

from gansfp import errors
from gansfp.errors import GansfpError


def as_text(error: GansfpError) -> str:
    """Returns the line with which Python would end the traceback of this error."""
    return f"{type(error).__module__}.{type(error).__qualname__}: {error}"


def from_text(text: str) -> GansfpError | None:
    """Returns the error of gansfp in a traceback, or in the text of as_text; None where there is none."""
    match = re.search(r"^gansfp\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    return getattr(errors, match[1])(match[2]) if match else None
