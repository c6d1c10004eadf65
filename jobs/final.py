"""Decides about the test slices with what the search found, writes results, and scores them where the truth is there.

python -m jobs.final --data DATA --work WORK
python -m jobs.final --check FILE --ids IDS          checks anybody's CSV against the challenge's rules
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gansfp import shards, store
from gansfp.attribution import prepare
from gansfp.catalog import Catalog, update_catalog
from gansfp.distances import nearest
from gansfp.errors import DataError, UsageError
from gansfp.known import name_clusters
from gansfp.membership import UNKNOWN, learns_from_labels
from gansfp.stacking import COMBINATIONS
from gansfp.statistics import mean_f1
from gansfp.submission import problems, read_ids
from gansfp.truth import read_attribution_truth, read_membership_truth
from gansfp.verdict import (
    Verdict,
    attribution_report,
    cross_validated_report,
    decide_membership,
    membership_report,
    parse_rule,
)
from jobs.cli import Parser, add_outside_option, check_places, positive, run, seed
from jobs.collection import read_collection
from jobs.lock import held
from jobs.record import read_records, record_stage, versions
from jobs.results import Found, read_search, submit, submitted_ids, write_membership, write_result, write_table
from jobs.summary import summary

NEAREST = 3  # generated slices named beside each decision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinalConfig:
    """How the final decisions are made. combine: best, stack, or None for whichever cross-validates better."""

    combine: str | None = None
    rule: str | float = "balanced_accuracy"
    permutations: int = 1000
    seed: int = 0


def final(
    data: str, work: str, config: FinalConfig, catalog: Catalog | None = None, tasks: Sequence[str] | None = None
) -> dict[str, Any]:
    """Writes WORK/results and returns what metrics.json holds. Raises DataError where there is no search to apply.

    tasks: those to decide about, by default all; the search of one that DATA has no images of any more is left alone.
    """
    started = time.monotonic()
    catalog = catalog or update_catalog(data, work)
    there = [task for task in tasks or _TASKS if len(catalog.select(task=task))]
    searches = {task: found for task in there if (found := read_search(work, task))}
    if not searches:
        raise DataError(f"{work}: got no search to apply, expected search/<task>/best.json; run tune.search first")
    metrics: dict[str, Any] = {}
    unreadable: dict[str, str] = {}
    for task, found in searches.items():
        _check_current(catalog, found, task)
        metrics[task] = _TASKS[task](data, catalog, work, found, config)
        unreadable |= found.best["unreadable"]
    record_stage(work, "final", time.monotonic() - started, {"tasks": list(searches)}, asdict(config))
    records = read_records(work)
    metrics["run"] = {
        "versions": versions(),
        "seed": config.seed,
        "permutations": config.permutations,
        "seconds": {stage: record["seconds"] for stage, record in records.items()},
        "left_out": sorted({line for record in records.values() for line in record.get("left_out", [])}),
        "bad_images": [{"image_id": image_id, "reason": reason} for image_id, reason in sorted(unreadable.items())],
    }
    write_result(work, "metrics.json", json.dumps(metrics, indent=1).encode())
    return metrics


def _check_current(catalog: Catalog, found: Found, task: str) -> None:
    now, then = set(catalog.select(task=task).ids.tolist()), set(found.best["ids"]["images"])
    if now != then:
        odd = sorted(now ^ then)[0]
        raise DataError(
            f"{catalog.data}: {len(now ^ then)} {task} images changed since the search, such as {odd!r}; search again"
        )
    if catalog.select(task=task).digest() != found.best.get("digest"):
        raise DataError(f"{catalog.data}: {task} images, classes or groups changed since the search; search again")


def _membership(data: str, catalog: Catalog, work: str, found: Found, config: FinalConfig) -> dict[str, Any]:
    sets, scored = {}, []
    for name, rows in found.best["ids"]["sets"].items():
        configurations, scores = found.rows(name)
        labels, folds, groups = (np.array(rows[key]) for key in ("labels", "folds", "groups"))
        learns = np.array([learns_from_labels(configuration) for configuration in configurations])
        verdict = decide_membership(scores, labels, folds, config.combine, config.rule, learns)
        report: dict[str, Any] = {
            "cross_validated": cross_validated_report(
                verdict, scores, labels, folds, groups, config.permutations, config.seed, config.combine, learns
            ),
            "configuration": _described(verdict, configurations, config),
            "tried": len(scores),
        }
        test = catalog.select("membership", name, "test", "unknown")
        if len(test):
            answers = _decisions(test, rows["real"], labels, verdict, scores)
            write_membership(work, name, test, answers, _nearest(catalog, work, found, rows, configurations, verdict))
            truth = read_membership_truth(data, catalog, name)
            if truth is not None:
                known = np.array(list(truth.values()))
                arguments = (known, answers["score"], answers["prediction"], test.groups(), answers["tried"])
                report |= membership_report(*arguments, config.permutations, config.seed)
                scored.append((known, answers["prediction"], test.groups()))
        sets[name] = report
    result: dict[str, Any] = {"sets": sets}
    if scored:
        result["mean_f1"] = mean_f1(scored, seed=config.seed).as_dict()
    return result


def _described(verdict: Verdict, configurations: list[dict[str, Any]], config: FinalConfig) -> dict[str, Any]:
    combined = verdict.combined
    members = [
        {**configurations[row], "coefficient": round(coefficient, 4)}
        for row, coefficient in zip(combined.members, combined.coefficients, strict=True)
    ]
    return {
        "combine": combined.name,
        "cross_validated_auc": verdict.cross_validated_auc,
        "decide": config.rule,
        "threshold": verdict.threshold,
        "members": members,
    }


def _decisions(
    test: Catalog, real: list[str], labels: np.ndarray, verdict: Verdict, scores: np.ndarray
) -> dict[str, np.ndarray]:
    """For every test slice, in the catalog's order: a slice that cannot be read is not used, and ranks below all."""
    rows = {image_id: row for row, image_id in enumerate(real) if labels[row] == UNKNOWN}
    here = np.array([rows.get(image_id, -1) for image_id in test.ids.tolist()])
    there = here >= 0
    score = np.where(there, verdict.combined.score[here], verdict.combined.score.min() - 1)
    return {
        "score": score,
        "prediction": np.where(there, verdict.decision[here], 0),
        "probability": np.where(there, verdict.combined.probability[here], np.nan),
        "tried": np.where(there, scores[:, here], scores.min(1, keepdims=True) - 1),
        "readable": there,
    }


def _nearest(
    catalog: Catalog,
    work: str,
    found: Found,
    rows: dict[str, Any],
    configurations: list[dict[str, Any]],
    verdict: Verdict,
) -> dict[str, list[str]]:
    """The nearest generated slices of each unknown one, in the embedding of the strongest member."""
    combined = verdict.combined
    strongest = configurations[combined.members[int(np.argmax(np.abs(combined.coefficients)))]]
    vectors = _vectors(catalog, work, found, (strongest["backbone"], strongest["view"]), "membership")
    unknown = [image_id for image_id, label in zip(rows["real"], rows["labels"], strict=True) if label == UNKNOWN]
    if not unknown:
        return {}
    _, order = nearest(
        np.stack([vectors[i] for i in unknown]), np.stack([vectors[i] for i in rows["generated"]]), NEAREST
    )
    return {image_id: [rows["generated"][g] for g in near] for image_id, near in zip(unknown, order, strict=True)}


def _vectors(catalog: Catalog, work: str, found: Found, pair: tuple[str, str], task: str) -> dict[str, np.ndarray]:
    images = catalog.select(task=task)
    hashes = dict(zip(images.ids.tolist(), images.column("sha256").tolist(), strict=True))
    embeddings = shards.read_embeddings(work, found.best["identities"][" ".join(pair)], hashes)
    return dict(zip(hashes, embeddings.vectors, strict=True))


def _attribution(data: str, catalog: Catalog, work: str, found: Found, config: FinalConfig) -> dict[str, Any]:
    best = found.best["best"][""]
    configurations, labelings = found.rows("")
    chosen = best["configuration"]
    labels = labelings[configurations.index(chosen)].astype(np.int64)
    tried = labelings.astype(np.int64)
    vectors = _vectors(catalog, work, found, (chosen["backbone"], chosen["view"]), "attribution")
    ids = found.best["ids"]
    known, test_vectors = (np.stack([vectors[i] for i in ids[key]]) for key in ("known", "test"))
    of_known = catalog.select("attribution", role="generated")
    by_id = dict(zip(of_known.ids.tolist(), of_known.column("generator").tolist(), strict=True))
    generators = np.array([by_id[image_id] for image_id in ids["known"]])
    groups = dict(zip(catalog.ids.tolist(), catalog.groups().tolist(), strict=True))
    found_again = found.known()
    again = np.array(found_again[best["row"]])
    every_again = np.stack([np.array(labels) for labels in found_again if labels is not None])
    known_groups = np.array([groups[i] for i in ids["known"]])
    report: dict[str, Any] = {
        "cross_validated": attribution_report(
            generators, again, known_groups, every_again, config.permutations, config.seed
        ),
        "clusters": int(labels.max()) + 1,
        "configuration": chosen,
        "tried": len(tried),
    }
    limit = int(found.best["search"]["max_memory"] * 1e9)
    both = np.concatenate([known, test_vectors])
    both = prepare(both, chosen["standardise"], chosen["components"], limit=limit)
    names = {n.cluster: n.generator for n in name_clusters(labels, both[len(known) :], both[: len(known)], generators)}
    report["names"] = {str(number): name for number, name in names.items()}
    test = catalog.select("attribution", split="test", role="unknown")
    here = {image_id: row for row, image_id in enumerate(ids["test"])}
    rows = np.array([here.get(image_id, -1) for image_id in test.ids.tolist()])
    for image_id in test.ids[rows < 0]:
        log.warning("%s, attribution: cannot be read, so it goes to the largest cluster", image_id)
    answer = np.where(rows >= 0, labels[rows], 0)
    submitted = submitted_ids(test)
    submit(work, "attribution.csv", dict(zip(submitted, answer.tolist(), strict=True)), binary=False)
    resembles = [names.get(c, "") for c in answer.tolist()]
    table = pa.table(
        {"image_id": submitted, "catalog_id": test.ids.tolist(), "cluster": answer, "resembles": resembles}
    )
    write_table(work, "attribution.parquet", table)
    truth = read_attribution_truth(data, catalog)
    if truth is not None:
        every = np.where(rows >= 0, tried[:, rows], 0)
        answers = np.array(list(truth.values()))
        report |= attribution_report(answers, answer, test.groups(), every, config.permutations, config.seed)
    return report


_TASKS = {"membership": _membership, "attribution": _attribution}


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
        print(summary(final(options.data, work, config, read_collection(options.data, work, options.allow_outside))))


def add_final_options(parser: Parser) -> None:
    """How decisions are made, for every command that makes them."""
    parser.add_argument("--combine", choices=COMBINATIONS, help="default: whichever cross-validates better")
    parser.add_argument(
        "--decide", default="balanced_accuracy", help="threshold: f1, balanced_accuracy, median, or a rate"
    )
    parser.add_argument("--permutations", type=positive, default=1000, help="of the p-values")


def final_config(options: Any) -> FinalConfig:
    """The configuration that those options ask for."""
    return FinalConfig(options.combine, parse_rule(options.decide), options.permutations, options.seed)


if __name__ == "__main__":
    run(main)
