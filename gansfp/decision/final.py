"""The final step: decides about the test slices with what the search found, and scores where the truth is there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gansfp.collection.catalog import Catalog
from gansfp.collection.truth import read_attribution_truth, read_membership_truth
from gansfp.decision.decision import (
    FinalConfig,
    Verdict,
    attribution_report,
    cross_validated_report,
    decide_membership,
    membership_report,
)
from gansfp.decision.result_files import (
    Found,
    read_search,
    submit,
    submitted_ids,
    write_membership,
    write_table,
)
from gansfp.embedding import shards
from gansfp.errors import DataError
from gansfp.labels import UNKNOWN
from gansfp.scoring.attribution import prepare
from gansfp.scoring.distances import nearest
from gansfp.scoring.known_generators import name_clusters
from gansfp.scoring.membership import learns_from_labels
from gansfp.statistics.intervals import SetDecisions, mean_f1

NEAREST = 3  # generated slices named beside each decision

log = logging.getLogger(__name__)


def final(
    data: str, work: str, config: FinalConfig, catalog: Catalog, tasks: Sequence[str] | None = None
) -> dict[str, Any]:
    """Writes the decisions to WORK/results and returns what metrics.json holds of the tasks, and the bad images.

    tasks: those to decide about, by default all; the search of one that DATA has no images of any more is left alone.
    Raises DataError where there is no search to apply.
    """
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
    bad = [{"image_id": image_id, "reason": reason} for image_id, reason in sorted(unreadable.items())]
    return metrics | {"run": {"seed": config.seed, "permutations": config.permutations, "bad_images": bad}}


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
        test = catalog.unknown(name)
        if len(test):
            answers = _decisions(test, rows["real"], labels, verdict, scores)
            write_membership(work, name, test, answers, _nearest(catalog, work, found, rows, configurations, verdict))
            truth = read_membership_truth(data, catalog, name)
            if truth is not None:
                known = np.array(list(truth.values()))
                arguments = (known, answers["score"], answers["prediction"], test.groups(), answers["tried"])
                report |= membership_report(*arguments, config.permutations, config.seed)
                scored.append(SetDecisions(truth=known, prediction=answers["prediction"], groups=test.groups()))
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
    hashes = images.hashes()
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
    of_known = catalog.known_generators()
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
    test = catalog.unattributed()
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
