"""What was published beside what was reproduced: a row for each system, as CSV with all of it and as Markdown."""

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
ANOTHER = ("random ", "scaled down", "bicubic")  # how notes begin with which a row is not the published system's
LONGEST = 45  # characters of a note that stands in its row
NOTHING = Estimate(math.nan)


@dataclass(frozen=True)
class Row:
    """One system, or a baseline: then without id and paper. What is not known is nan.

    published, reproduced: the mean F1 over the sets, or the ARI, of the test slices. chance: what it is worth to know
    nothing. published_known, known: the ARI of the known generators' slices. f1, accuracy: of each set. assumed: what
    the paper leaves open. notes: what makes this another system than the published one. seconds: of the decision and
    of the training that it rests on. error: why there are no figures.
    """

    name: str
    task: str
    id: str = ""
    paper: str = ""
    published: float = math.nan
    reproduced: Estimate = NOTHING
    chance: float = math.nan
    published_known: float = math.nan
    known: float = math.nan
    f1: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = math.nan
    error: str = ""

    @property
    def comparable(self) -> bool:
        """False where weights are random or training was scaled down: the system ran, and that is all it says."""
        return not any(note.startswith(ANOTHER) for note in self.notes)

    @property
    def status(self) -> str:
        """ok, no truth (there are predictions, but nothing to score them by), or failed."""
        return "failed" if self.error else "no truth" if math.isnan(self.reproduced.value) else "ok"


def as_csv(rows: Sequence[Row]) -> str:
    """One line a row, a column of F1 and of accuracy for each set of any row; what is not known is empty."""
    sets = sorted({name for row in rows for name in row.f1})
    sink = io.StringIO()
    lines = csv.writer(sink, lineterminator="\n")
    told = ["id", "name", "paper", "task", "measure", "published", "reproduced", "low", "high", "chance"]
    told += ["published_known", "reproduced_known"]
    per_set = [f"{figure}_{name}" for name in sets for figure in ("f1", "accuracy")]
    lines.writerow([*told, *per_set, "comparable", "assumed", "notes", "seconds", "status", "error"])
    for row in rows:
        found = row.reproduced
        figures = [row.published, found.value, found.low, found.high, row.chance]
        figures += [row.published_known, row.known]
        figures += [by_set.get(name, math.nan) for name in sets for by_set in (row.f1, row.accuracy)]
        texts = ["yes" if row.comparable else "no", "; ".join(row.assumed), "; ".join(row.notes)]
        seconds = "" if math.isnan(row.seconds) else f"{row.seconds:.1f}"
        who = [row.id, row.name, row.paper, row.task, MEASURES[row.task]]
        lines.writerow([*who, *map(_exact, figures), *texts, seconds, row.status, row.error])
    return sink.getvalue()


def as_markdown(rows: Sequence[Row], told: Sequence[str]) -> str:
    """A heading, lines on what this is, a table for each task, and the texts that the tables refer to by number."""
    lines = ["# The published systems, run on this data", "", *told]
    texts: list[str] = []
    for task, question in QUESTIONS.items():
        of_task = [row for row in rows if row.task == task]
        if not of_task:
            continue
        lines += [
            "",
            f"**{question}**",
            "",
            f"| {' | '.join(_heads(task))} |",
            f"|{'---|' * len(_heads(task))}",
            *(f"| {' | '.join(_cells(row, texts))} |" for row in of_task),
        ]
    lines += ["", *(f"{number}. {text}" for number, text in enumerate(texts, start=1))]
    return "\n".join(lines).rstrip() + "\n"


def _heads(task: str) -> list[str]:
    known = ["known generators: published", "reproduced"] if task == "attribution" else []
    return ["id", "system", "published", "reproduced [95 %]", "by chance", *known, "assumed", "notes", "s"]


def _cells(row: Row, texts: list[str]) -> list[str]:
    """The cells of a row; what is long goes to `texts`, and its number into the row."""

    def number(text: str) -> str:
        if text not in texts:
            texts.append(text)
        return str(texts.index(text) + 1)

    found = row.reproduced
    shown = "-" if math.isnan(found.value) else _short(found.value)
    if not math.isnan(found.low):
        shown += f" [{_short(found.low)}, {_short(found.high)}]"
    if not row.comparable and shown != "-":
        shown = f"({shown})"
    notes = [f"**failed** [{number(row.error)}]"] if row.error else ["no truth"] if row.status == "no truth" else []
    notes += [note if len(note) <= LONGEST else f"[{number(note)}]" for note in row.notes]
    return [
        row.id,
        row.name if row.id else f"*{row.name}*",
        _short(row.published, 4),
        shown,
        _short(row.chance),
        *([_short(row.published_known, 4), _short(row.known)] if row.task == "attribution" else []),
        ", ".join(map(number, row.assumed)),
        "; ".join(notes).replace("|", "/"),
        "" if math.isnan(row.seconds) else f"{row.seconds:,.0f}",
    ]


def _short(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"  # and no -0.000


def _exact(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
