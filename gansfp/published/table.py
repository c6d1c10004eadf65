"""The table of published and reproduced results: one row for each system, as CSV in full and as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gansfp.statistics.intervals import Estimate

MEASURES = {"membership": "F1", "attribution": "ARI"}
QUESTIONS = {
    "membership": "Membership: were these slices used? Mean F1 over the sets",
    "attribution": "Attribution: which generator? Adjusted Rand index",
}
# A note that begins with one of these says that the row is not the published system.
NOT_COMPARABLE = ("random ", "scaled down", "bicubic")
LONGEST_NOTE = 45  # characters; a longer note is printed below the tables, and its row refers to it by number
UNKNOWN_ESTIMATE = Estimate(math.nan)


@dataclass(frozen=True)
class Row:
    """The results of one system, or of a baseline, which has no id and no paper. Unknown numbers are nan.

    published, reproduced: the mean F1 over the sets, or the ARI, of the test slices. chance: the expected value without
    any knowledge. published_known, reproduced_known: the ARI of the known generators' slices. f1, accuracy: by set.
    assumed: what the paper leaves open. notes: differences from the published system. seconds: of the decision and of
    the trainings that it needs. error: why there are no results.
    """

    name: str
    task: str
    id: str = ""
    paper: str = ""
    published: float = math.nan
    reproduced: Estimate = UNKNOWN_ESTIMATE
    chance: float = math.nan
    published_known: float = math.nan
    reproduced_known: float = math.nan
    f1: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = math.nan
    error: str = ""

    @property
    def comparable(self) -> bool:
        """False where weights are random or training was scaled down: then the row shows only that the system runs."""
        return not any(note.startswith(NOT_COMPARABLE) for note in self.notes)

    @property
    def status(self) -> str:
        """One of ok, no truth (there are predictions, but no truth to score them by) and failed."""
        return "failed" if self.error else "no truth" if math.isnan(self.reproduced.value) else "ok"


def as_csv(rows: Sequence[Row]) -> str:
    """Returns one line for each row, with an F1 and an accuracy column for each set; unknown values are empty."""
    sets = sorted({name for row in rows for name in row.f1})
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    columns = ["id", "name", "paper", "task", "measure", "published", "reproduced", "low", "high", "chance"]
    columns += ["published_known", "reproduced_known"]
    columns += [f"{metric}_{name}" for name in sets for metric in ("f1", "accuracy")]
    writer.writerow([*columns, "comparable", "assumed", "notes", "seconds", "status", "error"])
    for row in rows:
        estimate = row.reproduced
        numbers = [row.published, estimate.value, estimate.low, estimate.high, row.chance]
        numbers += [row.published_known, row.reproduced_known]
        numbers += [by_set.get(name, math.nan) for name in sets for by_set in (row.f1, row.accuracy)]
        texts = ["yes" if row.comparable else "no", "; ".join(row.assumed), "; ".join(row.notes)]
        seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.1f}"
        system = [row.id, row.name, row.paper, row.task, MEASURES[row.task]]
        writer.writerow([*system, *map(_six_digits, numbers), *texts, seconds, row.status, row.error])
    return sink.getvalue()


def as_markdown(rows: Sequence[Row], introduction: Sequence[str]) -> str:
    """Returns a heading, the lines of the introduction, a table for each task, and the texts that the tables number."""
    lines = ["# The published systems, run on this data", "", *introduction]
    texts: list[str] = []
    for task, question in QUESTIONS.items():
        task_rows = [row for row in rows if row.task == task]
        if not task_rows:
            continue
        lines += [
            "",
            f"**{question}**",
            "",
            f"| {' | '.join(_headings(task))} |",
            f"|{'---|' * len(_headings(task))}",
            *(f"| {' | '.join(_cells(row, texts))} |" for row in task_rows),
        ]
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(texts, start=1))]
    return "\n".join(lines).rstrip() + "\n"


def _headings(task: str) -> list[str]:
    known = ["known generators: published", "reproduced"] if task == "attribution" else []
    return ["id", "system", "published", "reproduced [95 %]", "by chance", *known, "assumed", "notes", "s"]


def _cells(row: Row, texts: list[str]) -> list[str]:
    """Returns the cells of a row. Appends long texts to `texts` and puts their numbers into the cells."""

    def number(text: str) -> str:
        if text not in texts:
            texts.append(text)
        return str(texts.index(text) + 1)

    notes = [f"**failed** [{number(row.error)}]"] if row.error else ["no truth"] if row.status == "no truth" else []
    notes += [note if len(note) <= LONGEST_NOTE else f"[{number(note)}]" for note in row.notes]
    known = [_fixed(row.published_known, 4), _fixed(row.reproduced_known)] if row.task == "attribution" else []
    return [
        row.id,
        row.name if row.id else f"*{row.name}*",
        _fixed(row.published, 4),
        _reproduced(row),
        _fixed(row.chance),
        *known,
        ", ".join(map(number, row.assumed)),
        "; ".join(notes).replace("|", "/"),
        "" if math.isnan(row.seconds) else f"{row.seconds:,.0f}",
    ]


def _reproduced(row: Row) -> str:
    """Returns the estimate with its interval, in parentheses where it is not comparable."""
    estimate = row.reproduced
    if math.isnan(estimate.value):
        return "-"
    interval = "" if math.isnan(estimate.low) else f" [{_fixed(estimate.low)}, {_fixed(estimate.high)}]"
    text = f"{_fixed(estimate.value)}{interval}"
    return text if row.comparable else f"({text})"


def _fixed(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 turns -0.0 into 0.0


def _six_digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
