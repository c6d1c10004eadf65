"""Measures how fast gansfp is on this machine. Writes the figures as a table in Markdown and as JSON.

    python -m jobs.benchmark                             five minutes on two quiet cores; results in work/benchmark
    python -m jobs.benchmark --full                      for a machine with a GPU: 40,000 slices, six pairs
    python -m jobs.benchmark --only sweep,statistics
    python -m jobs.benchmark --full-size                 audits 50,000 slices: an hour, 8 GB of memory, 20 GB of disk
    python -m jobs.benchmark --gpu-acceptance            25 minutes with a GPU: is all of gansfp right and fast on it?

It draws its own slices and uses random weights, which are as fast as trained ones, so it needs no network. Everything
that is compared is measured in turn within one run, and the median of several turns (--repeats) counts. Other work on
the machine changes the figures: it changes ratios less than seconds. A measurement that fails is a row with its reason.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch

from gansfp import store
from gansfp.embedding.embedder import AUTO, PRECISIONS
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError, UsageError
from gansfp.images.slices import ENDINGS
from gansfp.runtime.command import Parser, run
from gansfp.runtime.options import count, names, positive
from gansfp.runtime.readme import Place
from gansfp.runtime.record import versions
from jobs.benchmarks import embedding, features, precision, search
from jobs.benchmarks.full_size import FullSizeConfig, audit_full_size
from jobs.benchmarks.gpu_acceptance import AcceptanceSizes, accept
from jobs.benchmarks.machine import describe_machine, faster_precision
from jobs.benchmarks.measure import Bench, Row, Sizes
from jobs.benchmarks.report import Report
from jobs.benchmarks.slices import image_files

MEASUREMENTS: dict[str, Callable[[Bench], list[Row]]] = {
    "embedding": embedding.embedding,
    "passes": embedding.passes,
    "memory": embedding.memory,
    "start": embedding.start,
    "precision": precision.precision,
    "features": features.features,
    "sweep": search.sweep,
    "search": search.search,
    "statistics": search.statistics,
}
FULL_PAIRS: tuple[Pair, ...] = tuple(
    (f"{backbone}@random", view) for backbone in ("resnet50", "densenet121") for view in ("full", "lungs", "outer")
)
FULL = Sizes(pairs=FULL_PAIRS, small_pairs=FULL_PAIRS, slices=2500, seconds=10.0, every_linkage=True)
OUT = os.path.join("work", "benchmark")
BEGIN, END = "<!-- benchmark: written by jobs.benchmark -->", "<!-- end of benchmark -->"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured, and where the figures go. Raises UsageError for a measurement or a folder that is not there.

    data: a folder of real slices to use instead of drawn ones; readme: a text file that also gets the table.
    """

    measurements: tuple[str, ...]
    sizes: Sizes
    out: str = OUT
    data: str | None = None
    readme: str | None = None

    def __post_init__(self) -> None:
        for name in self.measurements:
            if name not in MEASUREMENTS:
                raise UsageError(f"--only: got {name!r}, expected some of {','.join(MEASUREMENTS)}")
        if self.data and not image_files(self.data):
            raise UsageError(f"--data: got {self.data!r}, a place without images; expected files {' '.join(ENDINGS)}")


def measure(bench: Bench, measurements: Sequence[str]) -> list[Row]:
    """Returns the rows of the named measurements, in their order. One that fails becomes a row with its error."""
    rows = []
    for name in measurements:
        started = time.monotonic()
        try:
            rows += MEASUREMENTS[name](bench)
        except Exception as error:  # any failure: the other measurements must still run
            log.warning("benchmark: %s failed", name, exc_info=not isinstance(error, GansfpError))
            rows.append(Row(name, name, error=store.one_line(error)))
        log.info("benchmark: %s took %.0f s", name, time.monotonic() - started)
    return rows


def benchmark(config: BenchmarkConfig) -> Report:
    """Measures everything that the configuration names, and writes benchmark.json, benchmark.md and the README.

    Raises UsageError or DataError, before it measures, where one of these files cannot be written.
    """
    if config.readme:
        Place(BEGIN, END).read(config.readme)
    store.check_writable(config.out)
    machine, measured, started = describe_machine(), time.strftime("%Y-%m-%d %H:%M"), time.monotonic()
    if torch.cuda.device_count() > 1:  # what jobs.embed is compared with runs on one GPU
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    sizes = config.sizes
    if sizes.precision == AUTO:
        sizes = replace(sizes, precision=faster_precision())
    with tempfile.TemporaryDirectory(prefix="gansfp-benchmark-") as folder:
        bench = Bench(sizes, folder, config.data)
        rows = measure(bench, [name for name in MEASUREMENTS if name in config.measurements])
    report = Report(machine, versions(), measured, round(time.monotonic() - started, 1), sizes, rows)
    table = report.markdown()
    content = json.dumps(report.as_dict(), indent=1).encode()
    store.write_bytes_atomically(store.join(config.out, "benchmark.json"), content)
    store.write_bytes_atomically(store.join(config.out, "benchmark.md"), table.encode())
    if config.readme:
        Place(BEGIN, END).write(config.readme, table)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command of the module's docstring."""
    options = _parser().parse_args(arguments)
    if options.gpu_acceptance:
        if failed := [result.name for result in accept(AcceptanceSizes(), options.out) if result.error]:
            raise GansfpError(f"{', '.join(failed)}: not accepted, {options.out}/gpu_acceptance.json gives the reasons")
        return
    if options.full_size:
        full_size = FullSizeConfig(options.data, options.audit_options, options.out, options.readme)
        print(audit_full_size(full_size).markdown(), end="")
        return
    report = benchmark(_config(options))
    print(report.markdown(), end="")
    if failed := [row.name for row in report.rows if row.error]:
        raise GansfpError(f"{', '.join(failed)}: could not be measured, the table gives the reason")


def _parser() -> Parser:
    parser = Parser(prog="jobs.benchmark", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default=OUT, help="a folder for benchmark.md and benchmark.json (default %(default)s)")
    parser.add_argument(
        "--readme",
        metavar="FILE",
        help=f"also put the table into this file, such as jobs/benchmarks/README.md, between {BEGIN} and {END}",
    )
    parser.add_argument("--full", action="store_true", help="sizes for a machine with a GPU; slow without one")
    parser.add_argument(
        "--gpu-acceptance",
        action="store_true",
        help="only this: run everything on a GPU, each step in a budget of time; writes gpu_acceptance.json",
    )
    parser.add_argument(
        "--only", type=names, default=tuple(MEASUREMENTS), help=f"measurements, among {','.join(MEASUREMENTS)}"
    )
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="only this: audit DATA, by default 50,000 simulated slices; writes full-size.json and full-size.md",
    )
    parser.add_argument(
        "--audit-options", default="", metavar="TEXT", help="options of that audit, such as '--weights DIR'"
    )
    parser.add_argument("--data", help="a folder of real slices to embed instead of drawn ones, or DATA of --full-size")
    parser.add_argument(
        "--slices", type=positive, help="slices in the smallest of three runs; the others have 4 and 16 times as many"
    )
    parser.add_argument("--repeats", type=positive, help="turns of everything; their median counts")
    parser.add_argument("--seconds", type=positive, help="how long each part of embedding repeats to find its rate")
    parser.add_argument("--precision", choices=PRECISIONS, help="of networks (default: the faster one of this machine)")
    parser.add_argument("--sweep", type=_numbers, help="numbers of generated slices to sweep k over, such as 2000,5000")
    parser.add_argument("--width", type=positive, help="numbers in a vector of that sweep")
    parser.add_argument("--trials", type=positive, help="trials of the search")
    parser.add_argument(
        "--configurations", type=lambda text: count(text, 32), help="configurations to permute, on as many slices"
    )
    return parser


def _config(options: argparse.Namespace) -> BenchmarkConfig:
    """Returns the configuration that the options ask for."""
    changed = {
        field.name: value for field in fields(Sizes) if (value := getattr(options, field.name, None)) is not None
    }
    sizes = replace(FULL if options.full else Sizes(), **changed)
    return BenchmarkConfig(options.only, sizes, options.out, options.data, options.readme)


def _numbers(text: str) -> tuple[int, ...]:
    """Returns an option's whole numbers, with commas between. Each is at least 32."""
    return tuple(count(part, least=32) for part in names(text))


if __name__ == "__main__":
    run(main)
