"""Writes the report again: WORK/results/report.html, one page for a person who is no programmer.

python -m jobs.report --work WORK                    from what an audit left, finished or not
python -m jobs.report --work WORK --data DATA        where DATA has moved since
python -m jobs.report --work WORK --pictures none    without any slice, for sharing
"""

from __future__ import annotations

from collections.abc import Sequence

from gansfp import store
from gansfp.collection.catalog import Catalog, read_catalog, read_previous
from gansfp.errors import DataError
from gansfp.report.options import ReportConfig, add_report_option
from gansfp.report.page import write_report
from gansfp.runtime.command import Parser, run
from gansfp.runtime.options import add_collection_options, collection_config


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", required=True, help="the folder or URI of an audit")
    parser.add_argument("--data", help="the collection, if it has moved since (default: where the audit read it)")
    add_collection_options(parser)
    add_report_option(parser)
    options = parser.parse_args(arguments)
    work, catalog = store.absolute(options.work), None
    if not store.exists(work):
        raise DataError(f"--work: got {options.work!r}, which does not exist, expected the folder of an audit")
    if options.data:
        config, previous = collection_config(options), read_previous(work)
        catalog = read_catalog(
            options.data, previous, allow_outside=config.allow_outside, sixteen_bit=config.sixteen_bit
        )
        if previous is not None and catalog.digest() != Catalog("", previous).digest():
            raise DataError(f"--data: {options.data} holds other images than {work} was made of; run the audit again")
    print(write_report(work, ReportConfig(options.pictures), catalog))


if __name__ == "__main__":
    run(main)
