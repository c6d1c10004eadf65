"""Numbers as people read them, and the numbers along axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.ticker import MaxNLocator

from gansfp.report.plot_svg import shorten

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
Ticks = list[tuple[float, str]]  # where they are, and what stands there


def number(value: float) -> str:
    """A figure such as an AUC, with two digits."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−") if np.isfinite(value) else "unknown"


def percent(value: float) -> str:
    """A share."""
    if not np.isfinite(value):
        return "unknown"
    digits = 1 if 0 < value < 0.01 or 0.99 < value < 1 else 0
    return f"{100 * value:.{digits}f} %"


def exact_percent(value: float) -> str:
    """A share, however small, with all its digits."""
    return f"{100 * value:.6g} %"


def one_in(share: float) -> str:
    """A share as one in so many: `1 in 40`."""
    return "all" if share > 0.999 else f"1 in {1 / share:,.0f}" if share < 0.4 else f"1 in {1 / share:.2g}"


def scientific(value: float) -> str:
    """A positive number of any size."""
    digits, _, power = f"{value:.0e}".partition("e")
    if 0.01 <= value < 10_000:
        return f"{value:g}"
    return ("10" if digits == "1" else f"{digits}·10") + str(int(power)).translate(_RAISED)


def of_interval(value: float, low: float, high: float, write: Callable[[float], str] = number) -> str:
    """A value with its interval, where it has one, for a figure."""
    known = np.isfinite([low, high]).all()
    return f"{write(value)} ({write(low)} to {write(high)})" if known else write(value)


def with_interval(value: float, low: float, high: float, write: Callable[[float], str] = number) -> str:
    """A value with its interval, where it has one, for a sentence."""
    known = np.isfinite([low, high]).all()
    return f"{write(value)}, 95 % interval {write(low)} to {write(high)}" if known else write(value)


def short(name: str) -> str:
    """A name for a sentence, cleaned, and not longer than a line."""
    return shorten(name, 400, 10)


def plain_ticks(low: float, high: float, most: int = 5, write: Callable[[float], str] | None = None) -> Ticks:
    """At most so many round numbers, and one, between two numbers."""
    values = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [
        (float(value), write(value) if write else f"{value + 0.0:,.6g}".replace("-", "−"))
        for value in values
        if low - slack <= value <= high + slack
    ]


def log_ticks(low: float, high: float, write: Callable[[float], str], most: int = 5) -> Ticks:
    """Round numbers between two positive ones, as many as there is room for: powers of ten, or also 2 and 5 of them."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) <= most:
            break
    if len(values) < 2:
        return plain_ticks(low, high, most, write)
    step = -(-len(values) // most)
    return [(value, write(value)) for value in values[::-1][::step][::-1]]


def limits(values: Sequence[float] | np.ndarray, margin: float = 0.05) -> tuple[float, float]:
    """Limits of an axis that shows all of these values; wide enough to draw where they are all the same."""
    low, high = float(np.min(values)), float(np.max(values))
    apart = high - low > 1e-9 * abs(high)
    beyond = margin * (high - low) if apart else max(abs(low) * margin, 0.01)
    return low - beyond, high + beyond


def thinned(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spread over them, always the same ones."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
