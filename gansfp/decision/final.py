"""The final step: decides about the test slices with what the search found, and scores where the truth is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from gansfp.collection.catalog import Catalog
from gansfp.collection.truth import read_attribution_truth, read_membership_truth
from gansfp.decision.blind import collect_facts
from gansfp.decision.conclusion import Left, conclude
from gansfp.decision.decide import Decision, FinalConfig, decide_membership
from gansfp.decision.evidence import Evidence, attribution_evidence, cross_validated_evidence, membership_evidence
from gansfp.decision.judged import DecidedSet, Judged, is_of_labelled_patient, judged_by_others, judged_by_truth
from gansfp.decision.planted import read_planted
from gansfp.decision.real_slices import read_real_slices
from gansfp.decision.reports import (
    AttributionReport,
    DecisionReport,
    MembershipReport,
    Metrics,
    RunReport,
    SetReport,
)
from gansfp.decision.result_files import (
    MembershipAnswers,
    submit,
    submitted_ids,
    write_judged,
    write_judged_clusters,
    write_membership,
    write_patients,
    write_table,
)
from gansfp.decision.search_result import (
    Configuration,
    ScoredRows,
    Search,
    SearchResult,
    SetIds,
    check_current,
    read_search,
)
from gansfp.decision.shortcuts import Shortcut, read_shortcuts
from gansfp.decision.verdict import judge_clusters
from gansfp.device import release_memory
from gansfp.errors import DataError
from gansfp.labels import UNKNOWN
from gansfp.rows import as_slice
from gansfp.scoring.membership import learns_from_labels
from gansfp.statistics.intervals import SetDecisions, mean_f1

TASKS = ("membership", "attribution")
LEAST_PATIENTS = 2  # of each class, which the blind control needs

log = logging.getLogger(__name__)


def final(data: str, work: str, config: FinalConfig, catalog: Catalog, tasks: Sequence[str] | None = None) -> Metrics:
    """Writes the decisions to WORK/results and returns their figures.

    tasks: those to decide about, by default all. The search of a task that DATA has no images of any more is ignored.
    Raises DataError where there is no search to apply.
    """
    present = [task for task in tasks or TASKS if len(catalog.select(task=task))]
    searches = {task: search for task in present if (search := read_search(work, task))}
    if not searches:
        raise DataError(f"{work}: got no search to apply, expected search/<task>/best.json; run tune.search first")
    for search in searches.values():
        check_current(catalog, search.result)
    job = _Job(data, work, config, catalog)
    unreadable = {i: reason for search in searches.values() for i, reason in search.result.unreadable.items()}
    return Metrics(
        RunReport(
            config.seed,
            config.permutations,
            unreadable,
            {line.reading: line.slices for line in catalog.readings()},
            catalog.findings,
            alpha=config.alpha,
        ),
        decide_sets(job, searches["membership"]) if "membership" in searches else None,
        decide_clusters(job, searches["attribution"]) if "attribution" in searches else None,
    )


@dataclass(frozen=True, eq=False)
class _Job:
    """What both tasks take."""

    data: str
    work: str
    config: FinalConfig
    catalog: Catalog


def decide_sets(job: _Job, search: Search) -> MembershipReport:
    """Decides about the unknown slices of every set, writes the decisions, and scores them where there is truth."""
    shortcuts, reports, scored = read_shortcuts(search.folder) or {}, {}, []
    for name in search.result.ids.sets:
        reports[name], decisions = _decide_set(job, search, name, shortcuts.get(name, []))
        scored += [decisions] if decisions else []
        release_memory()  # of the scores of all configurations
    return MembershipReport(reports, mean_f1(scored, seed=job.config.seed) if scored else None)


def _decide_set(
    job: _Job, search: Search, name: str, shortcuts: Sequence[Shortcut]
) -> tuple[SetReport, SetDecisions | None]:
    """Decides about one set. Returns its report, and the decisions that the truth scores, None where it scores none."""
    of_set = _read_set(job, search, name)
    decided = of_set.decided
    evidence = cross_validated_evidence(
        decided, of_set.rows.scores, of_set.labels, of_set.folds, of_set.groups, job.config, of_set.learns
    )
    judged, test_evidence, left_out, decisions = judged_by_others(of_set, job.config.combine), None, 0, None
    nearest = search.nearest(name, _strongest(decided, of_set.rows).pair)
    test = job.catalog.unknown(name)
    if len(test):
        answers, slices = _answers(test, of_set.ids, decided)
        write_membership(job.work, name, test, answers, nearest)
        truth = read_membership_truth(job.data, job.catalog, name)
        if truth is not None:
            of_test = judge_test(of_set, truth, test.groups(), answers, slices, job.config)
            test_evidence, left_out = of_test.evidence, of_test.left_out
            if test_evidence:
                judged, decisions = of_test.judged, of_test.decisions
            else:
                evidence = replace(evidence, warnings=(*evidence.warnings, of_test.warning))
    write_judged(job.work, name, of_set, judged, nearest)
    concluded = conclude(of_set, judged, test_evidence or evidence, _read_left(job, search, name), job.config)
    write_patients(job.work, name, concluded.patients)
    described, tried = _described(decided, of_set.rows, job.config), len(of_set.rows.scores)
    return SetReport(concluded, evidence, described, tried, test_evidence, shortcuts, left_out), decisions


@dataclass(frozen=True, eq=False)
class JudgedTest:
    """What the truth says of the test slices of a set.

    judged, decisions: slices of patients without labelled slices. left_out: how many patients have test and labelled
    slices. evidence: None where these are left out and too few others remain. warning: says so, "" where none is left
    out.
    """

    judged: Judged
    decisions: SetDecisions
    left_out: int
    evidence: Evidence | None
    warning: str


def judge_test(
    of_set: DecidedSet,
    truth: Mapping[str, int],
    groups: np.ndarray,
    answers: MembershipAnswers,
    slices: np.ndarray,
    config: FinalConfig,
) -> JudgedTest:
    """Scores the decisions about the test slices of a set.

    truth: by id, in the order of the test slices; groups: (m,) of these; slices: (m,) rows among the set's real slices,
    -1 for one that cannot be read.
    """
    known, judged = is_of_labelled_patient(of_set, groups), judged_by_truth(of_set, truth)
    used, prediction, groups_left = np.array(list(truth.values()))[~known], answers.prediction[~known], groups[~known]
    decisions = SetDecisions(truth=used, prediction=prediction, groups=groups_left)
    left_out, evidence, warning = len(np.unique(groups[known])), None, ""
    if not left_out or min(judged.patients) >= LEAST_PATIENTS:
        tried = _tried(of_set.rows.scores, slices[~known])
        evidence = membership_evidence(used, answers.score[~known], prediction, groups_left, tried, config)
    if left_out:
        warning = (
            f"{left_out:,} patients have labelled and test slices. The fit that scores their {known.sum():,} test "
            "slices has seen these patients, so no figure and no p-value rests on these slices"
        )
        if evidence and (evidence.p_value_smallest or 0) < config.alpha:
            evidence = replace(evidence, warnings=(*evidence.warnings, warning))
        else:
            evidence = None
            warning += ". Too few other test slices remain: all figures rest on the labelled slices"
    return JudgedTest(judged, decisions, left_out, evidence, warning)


def _read_set(job: _Job, search: Search, name: str) -> DecidedSet:
    def learns_of(configuration: Configuration) -> bool:
        return learns_from_labels(configuration.choices)

    ids, rows = search.result.ids.sets[name], search.rows(name, last=learns_of)
    labels, folds, groups = np.array(ids.labels), np.array(ids.folds), np.array(ids.groups)
    learns = np.array([learns_of(configuration) for configuration in rows.configurations])
    decided = decide_membership(rows.scores, labels, folds, job.config.combine, job.config.rule, learns)
    return DecidedSet(ids, rows, labels, folds, groups, learns, decided)


def _read_left(job: _Job, search: Search, name: str) -> Left:
    """What the search left for the conclusion. It is read here, because what comes before takes much memory."""
    own, planted = read_real_slices(search.folder) or {}, read_planted(search.folder) or {}
    facts = None
    if name in own:
        facts = collect_facts(own[name], search.result.ids.sets[name].real, job.catalog.select(task="membership"))
    return Left(facts, planted.get(name))


def _described(decided: Decision, rows: ScoredRows, config: FinalConfig) -> DecisionReport:
    combined = decided.combined
    members = [rows.configurations[member] for member in combined.members]
    return DecisionReport(
        combined.name,
        decided.cross_validated_auc,
        config.rule,
        decided.threshold,
        list(zip(members, combined.coefficients, strict=True)),
    )


def _strongest(decided: Decision, rows: ScoredRows) -> Configuration:
    """The member with the largest coefficient."""
    combined = decided.combined
    return rows.configurations[combined.members[int(np.argmax(np.abs(combined.coefficients)))]]


def _answers(test: Catalog, ids: SetIds, decided: Decision) -> tuple[MembershipAnswers, np.ndarray]:
    """The answers for every test slice, in the catalog's order, and its row (n,) among the set's real slices, or -1.

    A slice that cannot be read is called not used, and ranks below all others.
    """
    row_of = {image_id: row for row, image_id in enumerate(ids.real) if ids.labels[row] == UNKNOWN}
    slices = np.array([row_of.get(image_id, -1) for image_id in test.ids.tolist()])
    readable = slices >= 0
    combined = decided.combined
    answers = MembershipAnswers(
        score=np.where(readable, combined.score[slices], combined.score.min() - 1),
        prediction=np.where(readable, decided.decision[slices], 0),
        probability=np.where(readable, combined.probability[slices], np.nan),
        readable=readable,
    )
    return answers, slices


def _tried(scores: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """The scores (c, m) of all configurations for test slices. slices: (m,) as _answers gives them."""
    tried, unreadable = scores[:, as_slice(slices)], slices < 0
    if unreadable.any():  # then they are a copy
        tried[:, unreadable] = scores.min(1, keepdims=True) - 1
    return tried


def decide_clusters(job: _Job, search: Search) -> AttributionReport:
    """Writes the clusters of the attribution's test slices, and scores them where there is truth."""
    best, ids, config = search.result.best[""], search.result.ids, job.config
    if search.result.names is None:
        raise DataError(
            f"{search.folder}: best.json names no clusters; run tune.search again, finished trials are kept"
        )
    rows, known_clusters = search.rows(""), search.known_clusters()
    labels, tried = rows.of_row(best.row).astype(np.int64), rows.scores.astype(np.int64)
    generators, groups = _of_known(job.catalog, ids.known)
    clusterings = np.stack(list(known_clusters.values()))
    evidence = attribution_evidence(generators, known_clusters[best.row], groups, clusterings, config, chosen_here=True)
    test = job.catalog.unattributed()
    answer, tried = _write_clusters(job.work, test, ids.test, labels, tried, search.result)
    truth = read_attribution_truth(job.data, job.catalog)
    test_evidence: Evidence | None = None
    judged = ids.known, known_clusters[best.row], generators
    if truth is not None:
        judged = test.ids.tolist(), answer, np.array(list(truth.values()))
        test_evidence = attribution_evidence(judged[2], answer, test.groups(), tried, config)
    write_judged_clusters(job.work, *judged, labelled=truth is None)
    shortcuts = (read_shortcuts(search.folder) or {}).get("", [])
    clusters, verdict = int(labels.max()) + 1, judge_clusters(test_evidence or evidence, config.alpha, shortcuts)
    return AttributionReport(
        verdict, evidence, clusters, best.configuration, len(tried), search.result.names, test_evidence, shortcuts
    )


def _of_known(catalog: Catalog, known: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Generators (m,) and groups (m,) of the known generators' slices with these ids."""
    images = catalog.known_generators()
    row_of = {image_id: row for row, image_id in enumerate(images.ids.tolist())}
    rows = [row_of[image_id] for image_id in known]
    return images.column("generator")[rows], images.groups()[rows]


def _write_clusters(
    work: str, test: Catalog, searched: Sequence[str], labels: np.ndarray, tried: np.ndarray, result: SearchResult
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the cluster of every test slice, and returns them (n,) with those of all clusterings (c, n), in the
    catalog's order. A slice that cannot be read goes to the largest cluster, number 0.

    searched: the ids of the slices that labels and tried are of.
    """
    row_of = {image_id: row for row, image_id in enumerate(searched)}
    rows = np.array([row_of.get(image_id, -1) for image_id in test.ids.tolist()])
    for image_id in test.ids[rows < 0]:
        log.warning("%s, attribution: cannot be read, so it goes to the largest cluster", image_id)
    answer = np.where(rows >= 0, labels[rows], 0)
    ids, names = submitted_ids(test), result.names or {}
    submit(work, "attribution.csv", dict(zip(ids, answer.tolist(), strict=True)), binary=False)
    resembles = [names.get(cluster, "") for cluster in answer.tolist()]
    columns = {"image_id": ids, "catalog_id": test.ids.tolist(), "cluster": answer, "resembles": resembles}
    write_table(work, "attribution.parquet", pa.table(columns))
    return answer, np.where(rows >= 0, tried[:, rows], 0)
