"""How an error of ours comes home from a worker process: as the line that ends its traceback.

Ray Data and Ray Tune bring only the text of a traceback, and other ways to raise an error in a worker make Ray try
again. So every worker hands over text, in the form in which Python ends a traceback.
"""

from __future__ import annotations

import re

from gansfp import errors
from gansfp.errors import GansfpError


def as_text(error: GansfpError) -> str:
    """The line with which Python would end the traceback of this error."""
    return f"{type(error).__module__}.{type(error).__qualname__}: {error}"


def from_text(text: str) -> GansfpError | None:
    """The error of ours in a traceback, or in what as_text returned; None where there is none."""
    match = re.search(r"^gansfp\.errors\.(\w+): (.+)$", text, re.MULTILINE)
    return getattr(errors, match[1])(match[2]) if match else None
