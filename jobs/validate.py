"""How far the verdicts can be trusted, measured: false alarms, biases, patients' names, shares.

python -m jobs.validate                        on phantoms: some 40 minutes on two cores
python -m jobs.validate --data DATA            on the not-used slices of your own collection
python -m jobs.validate --scale 0.05           with a twentieth of the packs

Real slices are embedded once. Then patients are dealt again and again to used and not used, a generator leaks or does
not, scanners differ or do not, and each time the search, the stack and the verdict run from the start.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import ray

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import DataError, UsageError
from gansfp.images import slices
from gansfp.runtime.cluster import start_ray
from gansfp.runtime.collection import read_collection
from gansfp.runtime.command import Parser, run
from gansfp.runtime.lock import held
from gansfp.runtime.options import (
    add_cluster_options,
    add_collection_options,
    check_places,
    cluster_config,
    collection_config,
    positive,
    seed,
)
from gansfp.runtime.progress import Progress
from gansfp.runtime.readme import Place
from gansfp.runtime.tasks import Call, run_calls
from gansfp.simulation.patients import Archive
from gansfp.simulation.phantom import phantoms
from gansfp.simulation.processes import processes
from jobs.benchmarks.machine import describe_machine
from jobs.validation.packs import EmbeddedArchive, Outcome, Pack, embed_archive, run_pack
from jobs.validation.table import Plan, figures, markdown, packs

PLACE = Place("<!-- written by jobs.validate -->", "<!-- end of jobs.validate -->")
PARTS = 5  # patients of a pack, in those of a labelled class: used, not used, outside, and twice as many unknown
FEWEST = 6  # patients of a labelled class
READERS = 8

log = logging.getLogger(__name__)


def not_used_slices(catalog: Catalog) -> Archive:
    """The readable slices that are labelled not used, with their patients. Raises DataError where there are none."""
    images = catalog.select(task="membership", role="not_used", status="ok")
    with ThreadPoolExecutor(READERS) as readers:
        loaded = list(readers.map(slices.load, images.sources()))
    kept = np.array([row for row, slice_ in enumerate(loaded) if slice_.pixels is not None], dtype=np.int64)
    if not len(kept):
        raise DataError(f"{catalog.data}: got no readable not-used slices, expected some in train/not_used")
    groups, ids = images.groups(), images.ids
    patients = np.where(groups == "", ids, groups)[kept]
    return Archive(np.stack([loaded[row].pixels for row in kept]), patients)


def run_packs(archive: EmbeddedArchive, groups: Mapping[str, Sequence[Pack]]) -> dict[str, list[Outcome]]:
    """Runs all packs side by side on Ray. A pack that fails is reported and left out. Raises DataError if all fail."""
    shared = ray.put(archive)
    named = {f"{group} {number}": group for group, of_group in groups.items() for number in range(len(of_group))}
    every = [pack for of_group in groups.values() for pack in of_group]
    calls = {name: Call(run_pack, (shared, pack)) for name, pack in zip(named, every, strict=True)}
    found: defaultdict[str, dict[str, Outcome]] = defaultdict(dict)
    failed, reason = 0, ""
    with Progress("validate", len(calls), "packs") as progress:
        for name, outcome in run_calls(calls, gpus=0):
            if outcome.error:
                failed, reason = failed + 1, outcome.error
            else:
                for kind, of_kind in outcome.value.items():
                    found[f"{named[name]} {kind}".rstrip()][name] = of_kind
            progress.add(1, int(bool(outcome.error)))
    if failed == len(calls):
        raise DataError(f"validate: every pack failed, such as: {reason}")
    if failed:
        log.warning("validate: %d of %d packs failed, such as: %s", failed, len(calls), reason)
    # In the order of the packs, whichever ended first.
    return {group: [of_group[name] for name in named if name in of_group] for group, of_group in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.validate", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="a collection whose not-used slices are dealt (default: phantoms)")
    parser.add_argument("--work", help="with --data: where its catalog is kept")
    add_collection_options(parser)
    parser.add_argument("--out", default=".", help="the folder of validation.json and validation.md (default: here)")
    parser.add_argument("--readme", help="a text file that also gets the table, between its marker lines")
    parser.add_argument("--scale", type=float, default=1.0, help="how many times the packs (default %(default)s)")
    parser.add_argument("--patients", type=positive, default=30, help="of each labelled class (default %(default)s)")
    parser.add_argument(
        "--slices", type=positive, default=20, help="phantoms: the most slices of a patient (default %(default)s)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of everything that is drawn (default %(default)s)")
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    if not 0 < options.scale < np.inf:
        raise UsageError(f"--scale: got {options.scale:g}, expected a number of more than 0, such as 0.1")
    if options.data and not options.work:
        raise UsageError("--data: got no --work, expected a folder for the catalog")
    if options.readme:
        PLACE.read(options.readme)
    store.check_writable(options.out)
    real, patients = real_slices(options)
    archive = embed_archive(real)
    start_ray(cluster_config(options))
    outcomes = run_packs(archive, packs(Plan().times(options.scale), patients, options.seed))
    source = "your not-used slices" if options.data else "phantoms"
    print(write(outcomes, f"{patients} + {patients} labelled patients, {2 * patients} unknown; {source}", options))


def real_slices(options: argparse.Namespace) -> tuple[Archive, int]:
    """The slices to deal, and how many patients each labelled class has. Raises DataError for too few patients."""
    if not options.data:
        with processes(PARTS * options.patients) as pool:
            return Archive(*phantoms(PARTS * options.patients, options.slices, options.seed, pool)), options.patients
    check_places(options.data, options.work)
    with held(options.work, "jobs.validate"):
        real = not_used_slices(read_collection(options.data, options.work, collection_config(options)))
    people = len(np.unique(real.patients))
    if people < FEWEST * PARTS:
        raise DataError(f"{options.data}: got {people} not-used patients, expected at least {FEWEST * PARTS}")
    return real, min(options.patients, people // PARTS)


def write(outcomes: Mapping[str, Sequence[Outcome]], source: str, options: argparse.Namespace) -> str:
    """Writes validation.json, validation.md and the README, and returns the table."""
    lines = figures(outcomes)
    machine = describe_machine()
    table = markdown(lines, f"{machine['cpu']}, {machine['cores']} cores; {source}.")
    every = {group: [asdict(outcome) for outcome in of_group] for group, of_group in outcomes.items()}
    content = json.dumps({"figures": [asdict(line) for line in lines], "packs": every}, indent=1)
    store.write_bytes_atomically(store.join(options.out, "validation.json"), content.encode())
    store.write_bytes_atomically(store.join(options.out, "validation.md"), table.encode())
    if options.readme:
        PLACE.write(options.readme, table)
    return table


if __name__ == "__main__":
    run(main)
