"""Decides about the test slices with what the search found, writes results, and scores them where the truth is there.

python -m jobs.final --data DATA --work WORK
python -m jobs.final --check FILE --ids IDS          checks anybody's CSV against the challenge's rules
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.submission import problems, read_ids
from gansfp.decision.decision import FinalConfig
from gansfp.decision.final import final
from gansfp.decision.result_files import write_result
from gansfp.decision.summary import summary
from gansfp.errors import DataError, UsageError
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.lock import held
from gansfp.runtime.options import add_final_options, add_outside_option, check_places, final_config, seed
from gansfp.runtime.record import read_records, record_stage, versions
from tune.space import TASKS


def decide(
    data: str, work: str, config: FinalConfig, catalog: Catalog, tasks: Sequence[str] | None = None
) -> dict[str, Any]:
    """Runs the final step, records it, and writes metrics.json; returns what that holds. Raises what `final` raises."""
    started = time.monotonic()
    metrics = final(data, work, config, catalog, tasks)
    done = [task for task in TASKS if task in metrics]
    record_stage(work, "final", time.monotonic() - started, {"tasks": done}, asdict(config))
    records = read_records(work)
    facts = {
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        "left_out": sorted({line for record in records.values() for line in record.get("left_out", [])}),
    }
    metrics["run"] = {"versions": versions(), **metrics["run"], **facts}
    write_result(work, "metrics.json", json.dumps(metrics, indent=1).encode())
    return metrics


def check(file: str, ids: str, binary: bool) -> None:
    """Checks a CSV against the challenge's rules. Raises DataError, which says how many problems and the first ones."""
    try:
        content = store.read_bytes(file)
    except OSError as error:
        raise DataError(f"--check {file!r}: cannot be read ({store.one_line(error)})") from error
    wanted = read_ids(ids)
    wrong = problems(content, wanted, binary)
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(f"{file}: would be rejected: {'; '.join(wrong[:3])}{more}")
    print(f"{file}: right, {len(wanted):,} ids, each once")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.final", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="the collection: a folder or a URI")
    parser.add_argument("--work", help="where the search was written and results go")
    add_outside_option(parser)
    parser.add_argument("--check", metavar="FILE", help="check this CSV and do nothing else")
    parser.add_argument("--ids", help="for --check: a folder of images, or a file of ids, one a line")
    parser.add_argument("--clusters", action="store_true", help="for --check: values are cluster numbers, not 0 and 1")
    add_final_options(parser)
    parser.add_argument("--seed", type=seed, default=0)
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
        print(summary(decide(options.data, work, config, read_collection(options.data, work, options.allow_outside))))


if __name__ == "__main__":
    run(main)
