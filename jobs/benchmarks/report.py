"""The report of a benchmark: a table in Markdown, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from jobs.benchmarks.measure import Row, Sizes

MET = {None: "", True: "yes", False: "**no**"}


@dataclass(frozen=True)
class Report:
    """All figures of a benchmark and the conditions under which they were measured. seconds: of all measurements."""

    machine: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    measured: str
    seconds: float
    sizes: Sizes | None  # None for the audit at full size
    rows: Sequence[Row]

    def as_dict(self) -> dict[str, object]:
        """Returns the report as benchmark.json holds it."""
        return {
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "measured": self.measured,
            "seconds": self.seconds,
            "sizes": self.sizes and asdict(self.sizes),
            "rows": [{**asdict(row), "met": row.met} for row in self.rows],
        }

    def markdown(self) -> str:
        """Returns the table, with the machine above it and notes on the measurements below it."""
        lines = [
            "# Benchmark",
            "",
            *(f"- {name.replace('_', ' ')}: {value}" for name, value in self.machine.items()),
            f"- versions: {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
            *([f"- precision of networks: {self.sizes.precision}"] if self.sizes else []),
            f"- measured {self.measured}, in {self.seconds:.0f} s",
            "",
            "| what | gansfp | compared with | ratio | target | met |",
            "|---|---|---|---|---|---|",
        ]
        notes = list(dict.fromkeys(row.note for row in self.rows if row.note))
        for row in self.rows:
            mark = f" [{notes.index(row.note) + 1}]" if row.note else ""
            lines.append(f"| {row.name}{mark} | {' | '.join(_cells(row))} |")
        lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
        return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> list[str]:
    """Returns the cells of a row after its name."""
    if row.error:
        return [f"failed: {row.error.replace('|', '/')}", "", "", "", ""]
    return [
        _figure(row.value, row.unit),
        row.against if row.other is None else f"{row.against}: {_figure(row.other, row.unit)}",
        _figure(row.ratio),
        row.target.describe(row.unit) if row.target else "",
        MET[row.met],
    ]


def _figure(value: float | None, unit: str = "") -> str:
    """Returns a number with its unit: rounded to three digits, to thousandths below 1."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f} {unit}".strip()
