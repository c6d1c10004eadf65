"""Decides about the test slices with what the search found, writes results, and scores them where the truth is there.

python -m jobs.final --data DATA --work WORK
python -m jobs.final --check FILE --ids IDS          checks any CSV against the challenge's rules
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.submission import other_readings, problems, read_ids
from gansfp.decision.decide import FinalConfig
from gansfp.decision.final import TASKS, final
from gansfp.decision.reports import Metrics
from gansfp.decision.result_files import write_result
from gansfp.decision.summary import summary
from gansfp.device import return_memory
from gansfp.errors import DataError, UsageError
from gansfp.report.options import ReportConfig, add_report_option
from gansfp.report.page import write_report
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_collection_options,
    add_final_options,
    check_places,
    collection_config,
    final_config,
    seed,
)
from gansfp.runtime.record import read_records, record_stage, versions
from tune.search import complete_search

log = logging.getLogger(__name__)


def decide(
    data: str,
    work: str,
    config: FinalConfig,
    catalog: Catalog,
    tasks: Sequence[str] | None = None,
    pending: Sequence[str] = (),
    report: ReportConfig | None = None,
) -> Metrics:
    """Runs the final step, records it, and writes metrics.json and report.html. Raises what `final` raises.

    pending: backbones that are still to be embedded and searched, so that the answer is provisional.
    """
    started = time.monotonic()
    return_memory()
    metrics = final(data, work, replace(config, power=config.power and not pending), catalog, tasks)
    record_stage(work, "final", time.monotonic() - started, {"tasks": metrics.tasks}, asdict(config))
    records = read_records(work).values()
    run_report = replace(
        metrics.run,
        versions=versions(),
        seconds={record.stage: record.seconds for record in records},
        left_out=sorted({line for record in records for line in record.left_out}),
        pending=pending,
    )
    metrics = replace(metrics, run=run_report)
    write_result(work, "metrics.json", json.dumps(metrics.as_dict(), indent=1).encode())
    log.info("report: %s", write_report(work, report or ReportConfig(), catalog))
    return metrics


def check(file: str, ids: str, binary: bool) -> None:
    """Checks a CSV against the challenge's rules. Raises DataError, which says how many problems and the first ones."""
    try:
        content = store.read_bytes(file)
    except OSError as error:
        raise DataError(f"--check {file!r}: cannot be read ({store.one_line(error)})") from error
    expected_ids = read_ids(ids)
    found = problems(content, expected_ids, binary)
    if found and any(not problems(content, other_ids, binary) for other_ids in other_readings(ids)):
        found = []
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise DataError(f"{file}: would be rejected: {'; '.join(found[:3])}{more}")
    print(f"{file}: valid, {len(expected_ids):,} ids, each once")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.final", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="the collection: a folder or a URI")
    parser.add_argument("--work", help="the folder or URI of the search, where results are written too")
    add_collection_options(parser)
    parser.add_argument("--check", metavar="FILE", help="check this CSV and do nothing else")
    parser.add_argument("--ids", help="for --check: a folder of images, or a file of ids, one a line")
    parser.add_argument("--clusters", action="store_true", help="for --check: values are cluster numbers, not 0 and 1")
    add_final_options(parser)
    add_report_option(parser)
    parser.add_argument("--seed", type=seed, default=0, help="of permutations and resamples (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.check:
        if not options.ids:
            raise UsageError("--check: got no --ids, expected a folder of the test's images or a file of their ids")
        check(options.check, options.ids, not options.clusters)
        return
    if not options.data or not options.work:
        raise UsageError("expected --data and --work, or --check FILE --ids IDS (see --help)")
    config, work = final_config(options), store.absolute(options.work)
    check_places(options.data, work)
    if not store.exists(store.join(work, "search")):
        raise DataError(f"{work}: got no search to apply, expected search/<task>/best.json; run tune.search first")
    with held(work, "jobs.final"):
        catalog = read_collection(options.data, work, collection_config(options))
        for task in TASKS:
            complete_search(catalog, work, task)
        print(summary(decide(options.data, work, config, catalog, report=ReportConfig(options.pictures))))


if __name__ == "__main__":
    run(main)
