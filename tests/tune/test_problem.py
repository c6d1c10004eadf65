"""tune.problem and tune.search, without Ray: which trials are kept, which run again, and what becomes of their rows."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from gansfp.decision.search_result import Search, SearchedIds, SearchResult, Trial, read_search, write_result
from gansfp.errors import DataError, UsageError
from gansfp.labels import NOT_USED, USED
from tune import search
from tune.membership import MEMBERSHIP, MembershipSlices
from tune.problem import Problem, SearchConfig, is_there
from tune.search import _collect, best_rows
from tune.set_slices import SetSlices

PAIR = ("lbp", "full")
EUCLIDEAN, COSINE = (Trial(*PAIR, 0, metric=metric) for metric in ("euclidean", "cosine"))
VECTORS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)


@pytest.fixture
def problem(tmp_path):
    """The problem, and the folder of its search; `vectors` holds its vectors, or an error that is raised instead."""
    labels, folds = np.repeat([USED, NOT_USED], 20), np.arange(40) % 4
    of_set = SetSlices("s", np.arange(20), np.arange(20, 60), labels, np.arange(40).astype(str), folds)
    vectors = [VECTORS]

    def vectors_of(pair):
        if isinstance(vectors[0], Exception):
            raise vectors[0]
        return vectors[0]

    config, slices = SearchConfig("membership", ks=(2,)), MembershipSlices((of_set,))
    folder = str(tmp_path / "search" / "membership")
    made = Problem(config, MEMBERSHIP, folder, vectors_of, {PAIR: "key"}, slices, 6)
    return SimpleNamespace(made=made, vectors=vectors, work=str(tmp_path))


def statuses(problem, trial):
    return set(pq.read_table(problem.made.place(trial))["status"].to_pylist())


@pytest.mark.parametrize(
    "error",
    [DataError("W/embeddings/lbp/full: no embedding of 3 images"), MemoryError("no room"), RuntimeError("CUDA error")],
)
def test_what_may_not_fail_again_is_tried_again_by_the_next_command(problem, error):
    problem.vectors[0] = error
    assert list(problem.made.run([EUCLIDEAN], "cpu")) == [-1.0]
    place = problem.made.place(EUCLIDEAN)
    (row,) = pq.read_table(place).to_pylist()
    assert (row["status"], row["error"]) == ("failed", f"{type(error).__name__}: {error}")
    assert not is_there(place)
    problem.vectors[0] = VECTORS
    assert next(problem.made.run([EUCLIDEAN], "cpu")) > 0
    assert statuses(problem, EUCLIDEAN) == {"ok"}
    assert is_there(place)


def test_what_is_not_possible_is_kept(problem):
    problem.vectors[0] = UsageError("PCA components: got 5000")
    list(problem.made.run([EUCLIDEAN], "cpu"))
    assert is_there(problem.made.place(EUCLIDEAN))
    problem.vectors[0] = VECTORS
    assert list(problem.made.run([EUCLIDEAN], "cpu")) == [-1.0]


def collect(problem, *trials):
    ids = SearchedIds([], problem.made.slices.ids(SimpleNamespace(ids=np.arange(60).astype(str))).sets)
    return ids, *_collect(problem.made, [problem.made.place(trial) for trial in trials], ids)


def test_best_json_of_other_trials_is_refused_until_the_search_is_through(problem):
    """A search that goes on after another one, and is stopped after it wrote trials.parquet."""
    list(problem.made.run([EUCLIDEAN], "cpu"))
    problem.vectors[0] = MemoryError("no room")
    list(problem.made.run([COSINE], "cpu"))

    def finish(*trials):
        ids, table, digest = collect(problem, *trials)
        best, described = best_rows(table), ({"max_memory": 1}, {}, {})
        result = SearchResult("membership", best, 1, 0, *described, ids, "", trials_digest=digest)
        write_result(problem.made.folder, result)

    finish(EUCLIDEAN, COSINE)
    assert read_search(problem.work, "membership").trials.metadata.num_row_groups == 2
    collect(problem, EUCLIDEAN, COSINE)  # the same again
    assert read_search(problem.work, "membership")
    problem.vectors[0] = VECTORS
    list(problem.made.run([COSINE], "cpu"))
    for trials in ((EUCLIDEAN, COSINE), (COSINE, EUCLIDEAN), (COSINE,)):  # one that failed before; another order; fewer
        collect(problem, *trials)
        with pytest.raises(DataError, match=r"best\.json belongs to other trials .*; run tune\.search again"):
            read_search(problem.work, "membership")
        finish(*trials)
        assert isinstance(read_search(problem.work, "membership"), Search)


def test_trials_that_were_drawn_have_one_order(problem, monkeypatch):
    drawing = SimpleNamespace(
        **{name: getattr(problem.made, name) for name in ("task", "place")}, config=SearchConfig("membership", "optuna")
    )
    ended = [EUCLIDEAN, COSINE, Trial(*PAIR, 0.9, metric="cosine")]
    runs = []
    for order in (ended, ended[::-1]):
        monkeypatch.setattr(search, "run_trials", lambda *_, order=order: order)
        runs.append(search._run(drawing, [PAIR]))
    assert runs[0] == runs[1]
    assert sorted(map(Trial.to_json, runs[0])) == sorted(map(Trial.to_json, ended))
