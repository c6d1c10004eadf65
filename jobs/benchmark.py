"""How fast gansfp is on this machine: ratios measured within one run, as a table in Markdown and as JSON.

    python -m jobs.benchmark                             five minutes on two quiet cores; results in work/benchmark
    python -m jobs.benchmark --full                      for a machine with a GPU: 40,000 slices, six pairs
    python -m jobs.benchmark --only sweep,statistics

It draws its own slices and takes random weights, which are as fast as others, so it needs no network. What is compared
is measured in turn, and of several turns (--repeats) the median counts: figures of a machine that does other work at
the same time are not to be trusted, ratios more than seconds. A measurement that fails is a row with its reason.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gansfp import store
from gansfp.collection.layout import ENDINGS
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError, UsageError
from gansfp.runtime.command import Parser, run
from gansfp.runtime.options import count, names, positive
from gansfp.runtime.readme import Place
from gansfp.runtime.record import versions
from jobs.benchmarks import embedding, search
from jobs.benchmarks.measure import Bench, Row, Sizes, cores

MEASUREMENTS: dict[str, Callable[[Bench], list[Row]]] = {
    "embedding": embedding.embedding,
    "passes": embedding.passes,
    "memory": embedding.memory,
    "start": embedding.start,
    "sweep": search.sweep,
    "search": search.search,
    "statistics": search.statistics,
}
FULL_PAIRS: tuple[Pair, ...] = tuple(
    (f"{backbone}@random", view) for backbone in ("resnet50", "densenet121") for view in ("full", "lungs", "outer")
)
OUT = os.path.join("work", "benchmark")
BEGIN, END = "<!-- benchmark: written by jobs.benchmark -->", "<!-- end of benchmark -->"

log = logging.getLogger(__name__)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"system": f"{platform.system()} {platform.release()}", "cpu": _cpu(), "cores": cores()}
    found["memory_gb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found["gpus"] = ", ".join(gpus) or "none"
    found["load"] = round(os.getloadavg()[0], 1)
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(bench: Bench, wanted: Sequence[str]) -> list[Row]:
    """The rows of the measurements asked for, one with its error for each that failed."""
    rows = []
    for name in wanted:
        started = time.monotonic()
        try:
            rows += MEASUREMENTS[name](bench)
        except Exception as error:  # whatever it is, the others go on
            log.warning("benchmark: %s failed", name, exc_info=not isinstance(error, GansfpError))
            rows.append(Row(name, name, error=store.one_line(error)))
        log.info("benchmark: %s took %.0f s", name, time.monotonic() - started)
    return rows


def markdown(told: dict[str, Any], rows: Sequence[Row]) -> str:
    """The table, below what it was measured on, above how."""
    lines = [
        "# Benchmark",
        "",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in told["machine"].items()),
        f"- versions: {', '.join(f'{name} {version}' for name, version in told['versions'].items())}",
        f"- measured {told['measured']}, in {told['seconds']:.0f} s",
        "",
        "| what | gansfp | compared with | ratio | target | met |",
        "|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for row in rows:
        mark = ""
        if row.note:
            if row.note not in notes:
                notes.append(row.note)
            mark = f" [{notes.index(row.note) + 1}]"
        lines.append(f"| {row.name}{mark} | {' | '.join(_cells(row))} |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, start=1))]
    return "\n".join(lines).rstrip() + "\n"


def _cells(row: Row) -> list[str]:
    if row.error:
        return [f"failed: {row.error.replace('|', '/')}", "", "", "", ""]
    other = f"{row.against}: {_figure(row.other, row.unit)}" if row.other is not None else row.against
    met = {None: "", True: "yes", False: "**no**"}[row.met]
    return [
        _figure(row.value, row.unit),
        other,
        _figure(row.ratio),
        row.target.told(row.unit) if row.target else "",
        met,
    ]


def _figure(value: float | None, unit: str = "") -> str:
    """Three digits that say something."""
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f} {unit}".strip()


def _sizes(options: Any) -> Sizes:
    sizes = Sizes()
    if options.full:
        sizes = replace(sizes, pairs=FULL_PAIRS, small_pairs=FULL_PAIRS, slices=2500, seconds=10.0, every_linkage=True)
    given = {
        name: getattr(options, name)
        for name in ("slices", "repeats", "seconds", "sweep", "width", "trials", "configurations")
        if getattr(options, name) is not None
    }
    return replace(sizes, **given)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(count(part, least=32) for part in names(text))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.benchmark", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=OUT, help="a folder for benchmark.md and benchmark.json (default %(default)s)")
    parser.add_argument("--readme", metavar="FILE", help=f"also put the table between {BEGIN} and {END} in this file")
    parser.add_argument("--full", action="store_true", help="what a GPU is worth: takes long without one")
    parser.add_argument("--only", type=names, default=tuple(MEASUREMENTS), help=f"among {','.join(MEASUREMENTS)}")
    parser.add_argument("--data", help="a folder of real slices to embed instead of drawn ones")
    parser.add_argument(
        "--slices", type=positive, help="in the smallest of three runs; the others have 4 and 16 times it"
    )
    parser.add_argument("--repeats", type=positive, help="turns of which the median counts")
    parser.add_argument("--seconds", type=positive, help="for which parts of embedding are repeated to find their rate")
    parser.add_argument("--sweep", type=_numbers, help="numbers of generated slices to sweep k over, such as 2000,5000")
    parser.add_argument("--width", type=positive, help="numbers a vector in that sweep")
    parser.add_argument("--trials", type=positive, help="of the search")
    parser.add_argument("--configurations", type=lambda text: count(text, 32), help="to permute, on as many slices")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in MEASUREMENTS:
            raise UsageError(f"--only: got {name!r}, expected some of {','.join(MEASUREMENTS)}")
    if options.data and not any(path.suffix.lower() in ENDINGS for path in Path(options.data).rglob("*")):
        raise UsageError(f"--data: got {options.data!r}, where no images are, expected files in {' '.join(ENDINGS)}")
    if options.readme:
        Place(BEGIN, END).read(options.readme)
    store.check_writable(options.out)
    told: dict[str, Any] = {"machine": machine(), "versions": versions(), "measured": time.strftime("%Y-%m-%d %H:%M")}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gansfp-benchmark-") as folder:
        rows = measure(
            Bench(_sizes(options), folder, options.data), [name for name in MEASUREMENTS if name in options.only]
        )
    told |= {"seconds": round(time.monotonic() - started, 1), "sizes": asdict(_sizes(options))}
    table = markdown(told, rows)
    found = json.dumps({**told, "rows": [{**asdict(row), "met": row.met} for row in rows]}, indent=1)
    store.write_bytes_atomically(store.join(options.out, "benchmark.json"), found.encode())
    store.write_bytes_atomically(store.join(options.out, "benchmark.md"), table.encode())
    if options.readme:
        Place(BEGIN, END).write(options.readme, table)
    print(table, end="")
    if failed := [row.name for row in rows if row.error]:
        raise GansfpError(f"{', '.join(failed)}: could not be measured, the table says why")


if __name__ == "__main__":
    run(main)
