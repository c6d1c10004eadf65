"""What the final step writes to WORK/results: CSV files in the challenge's format, and Parquet files that hold more."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.submission import problems, submission
from gansfp.decision.conclusion import Patients
from gansfp.decision.judged import DecidedSet, Judged

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class MembershipAnswers:
    """What is said of the test slices of a set, in the catalog's order, (n,) each.

    score: float64; prediction: 0/1; probability: of having been used, NaN where a slice cannot be read; readable: bool.
    """

    score: np.ndarray
    prediction: np.ndarray
    probability: np.ndarray
    readable: np.ndarray


def submitted_ids(test: Catalog) -> list[str]:
    """The ids of a CSV: the catalog's, but of a path below DATA the file's name, as the challenge gives them out, if no
    two of the test's images share one."""
    ids, names = test.ids.tolist(), test.column("name").tolist()
    short = [name if image_id.endswith(f"/{name}") else image_id for image_id, name in zip(ids, names, strict=True)]
    return short if len(set(short)) == len(short) else ids


def write_membership(
    work: str, name: str, test: Catalog, answers: MembershipAnswers, nearest: dict[str, list[str]]
) -> None:
    """Writes the decisions of one set, as CSV and as Parquet; a slice that cannot be read is warned of."""
    ids, full = submitted_ids(test), test.ids.tolist()
    for image_id, readable in zip(ids, answers.readable, strict=True):
        if not readable:
            log.warning("%s, set %s: cannot be read, so it is called not used", image_id, name)
    submit(work, f"membership-{name}.csv", dict(zip(ids, answers.prediction.tolist(), strict=True)))
    unreadable = ~answers.readable
    table = pa.table(
        {
            "image_id": ids,
            "catalog_id": full,
            "score": pa.array(answers.score, mask=unreadable),
            "probability": pa.array(answers.probability, mask=unreadable),
            "prediction": pa.array(answers.prediction, pa.int8()),
            "nearest": pa.array([nearest.get(image_id, []) for image_id in full], pa.list_(pa.string())),
            "group": test.groups().tolist(),
        }
    )
    write_table(work, f"membership-{name}.parquet", table)


def write_judged(work: str, name: str, of_set: DecidedSet, judged: Judged, nearest: Mapping[str, list[str]]) -> None:
    """Writes the slices that the figures of a set rest on, each with its truth: test slices, else the labelled ones."""
    rows, decided = judged.rows, of_set.decided
    ids = [of_set.ids.real[row] for row in rows]
    columns = {
        "catalog_id": ids,
        "group": of_set.groups[rows].tolist(),
        "truth": pa.array(judged.truth, pa.int8()),
        "score": judged.score,
        "probability": decided.combined.probability[rows],
        "prediction": pa.array(decided.decision[rows], pa.int8()),
        "nearest": pa.array([nearest.get(image_id, []) for image_id in ids], pa.list_(pa.string())),
        "labelled": np.full(len(rows), judged.refit is not None),
    }
    write_table(work, f"membership-{name}-judged.parquet", pa.table(columns))


def write_judged_clusters(
    work: str, ids: Sequence[str], clusters: np.ndarray, generators: np.ndarray, labelled: bool
) -> None:
    """Writes the slices that the attribution's figures rest on, each with its generator: test slices, else those of the
    known generators (labelled). clusters: (n,) int; generators: (n,) str."""
    columns = {
        "catalog_id": list(ids),
        "cluster": clusters.astype(np.int64),
        "generator": generators.tolist(),
        "labelled": np.full(len(clusters), labelled),
    }
    write_table(work, "attribution-judged.parquet", pa.table(columns))


def write_patients(work: str, name: str, patients: Patients) -> None:
    """Writes the unknown patients of one set to a CSV, those with the smallest p-values first; only its header where
    there are none."""
    lines = ["patient,slices,score,p,q,named"]
    if listed := patients.listed:
        for row in np.lexsort((-listed.score, listed.p)):
            numbers = f"{listed.slices[row]},{listed.score[row]:.6g},{listed.p[row]:.6g},{listed.q[row]:.6g}"
            lines.append(f"{_quoted(str(patients.names[row]))},{numbers},{int(patients.named[row])}")
    write_result(work, f"membership-{name}-patients.csv", ("\n".join(lines) + "\n").encode())


def _quoted(name: str) -> str:
    """A field of a CSV file (RFC 4180)."""
    return f'"{name.replace(chr(34), chr(34) * 2)}"' if any(mark in name for mark in ',"\r\n') else name


def submit(work: str, name: str, values: dict[str, int], binary: bool = True) -> None:
    """Writes a CSV in the challenge's format to WORK/results, checked by its rules."""
    content = submission(values)
    wrong = problems(content, values, binary)
    if wrong:  # a defect of ours: nobody should hand in such a file
        raise AssertionError(f"{name}: {wrong[0]}")
    write_result(work, name, content)


def write_table(work: str, name: str, table: pa.Table) -> None:
    """Writes a Parquet file to WORK/results."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_result(work, name, sink.getvalue())


def write_result(work: str, name: str, content: bytes | pa.Buffer) -> None:
    """Writes a file to WORK/results, whole or not at all."""
    store.write_bytes_atomically(store.join(work, "results", name), content)
