"""gansfp.decision.search_result: best.json and its rows are read as they were written, earlier versions too."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gansfp.decision.nearest_slices import nearest_table, write_nearest
from gansfp.decision.search_result import (
    TRIALS_DIGEST,
    BestRow,
    Configuration,
    Search,
    SearchedIds,
    SearchResult,
    SetIds,
    Trial,
    read_search,
    search_folder,
    write_result,
)
from gansfp.errors import DataError

PAIR = ("highpass", "full")
IDS = SetIds(["a", "b", "c"], ["g0", "g1"], [1, 0, -1], [0, 1, -1], ["p", "q", "r"])


def result(**changes):
    choices = {"backbone": "highpass", "view": "full", "components": 0, "metric": "euclidean", "method": "reverse"}
    best = BestRow(2, Configuration(choices), {"task": "membership", "set": "s", "auc": 0.75})
    values = {
        "task": "membership",
        "best": {"s": best},
        "tried": 3,
        "failed": 1,
        "search": {"task": "membership", "seed": 0, "max_memory": 4.0},
        "identities": {"highpass full": {"backbone": "highpass"}},
        "unreadable": {"d": "empty file"},
        "ids": SearchedIds(["a", "b", "c", "d", "g0", "g1"], {"s": IDS}),
        "digest": "0f",
    }
    return SearchResult(**values | changes)


def write_trials(folder):
    """Two trials: one that failed, one with rows of two sets, of which the second set's is row 2."""
    failed = {"set": [None], "status": ["failed"], "configuration": ["{}"], "scores": [None], "known": [None]}
    rows = {
        "set": ["t", "s"],
        "status": ["ok", "ok"],
        "configuration": ['{"method": "span"}', '{"method": "reverse"}'],
        "scores": [[9.0], [0.5, 0.25, 2.0]],
        "known": [None, [1, 0]],
    }
    types = {"set": pa.string(), "status": pa.string(), "configuration": pa.string()}
    types |= {"scores": pa.list_(pa.float32()), "known": pa.list_(pa.int64())}
    folder.mkdir(parents=True)
    with pq.ParquetWriter(folder / "trials.parquet", pa.schema(types)) as writer:
        for trial in (failed, rows):
            writer.write_table(pa.table(trial, schema=pa.schema(types)))


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "search" / "membership"
    write_trials(folder)
    write_result(str(folder), result())
    return str(tmp_path)


@pytest.mark.parametrize("names", [None, {}, {0: "gan", 1: "new"}])
def test_what_is_written_is_read(names):
    written = result(names=names)
    assert SearchResult.from_json(written.to_json()) == written


def test_the_shape_of_best_json():
    values = json.loads(result().to_json())
    assert values["best"]["s"] == {
        "task": "membership", "set": "s", "auc": 0.75, "row": 2, "configuration":
        {"backbone": "highpass", "view": "full", "components": 0, "metric": "euclidean", "method": "reverse"},
    }  # fmt: skip
    assert values["ids"]["sets"]["s"]["labels"] == [1, 0, -1]
    assert "names" not in values
    attribution = result(ids=SearchedIds(["t", "k"], test=["t"], known=["k"]), names={0: "gan"})
    values = json.loads(attribution.to_json())
    assert values["ids"] == {"images": ["t", "k"], "test": ["t"], "known": ["k"]}
    assert values["names"] == {"0": "gan"}


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"task": "membership"}'])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match=r"\S"):
        SearchResult.from_json(text)


def test_a_result_without_a_memory_limit_is_of_another_version():
    values = json.loads(result().to_json())
    del values["search"]["max_memory"]
    with pytest.raises(ValueError, match="another version"):
        SearchResult.from_json(json.dumps(values))


@pytest.mark.parametrize("trial", [Trial("lbp", "full", 0, metric="cosine"), Trial("lbp", "outer", 0.95, None, False)])
def test_a_trial_is_its_choices(trial):
    assert Trial.from_json(trial.to_json()) == trial
    assert None not in trial.as_dict().values()
    assert trial.pair == (trial.backbone, trial.view)


def test_a_row_has_one_index_failed_rows_counted(work):
    search = read_search(work, "membership")
    rows = search.rows("s")
    assert rows.rows.tolist() == [2]
    assert rows.configurations == [Configuration({"method": "reverse"})]
    np.testing.assert_array_equal(rows.of_row(search.result.best["s"].row), [0.5, 0.25, 2.0])
    assert search.rows("t").rows.tolist() == [1]
    assert not len(search.rows("neither").scores)
    assert {row: labels.tolist() for row, labels in search.known_clusters().items()} == {2: [1, 0]}


def test_rows_of_all_trials_are_in_their_order_but_the_last_ones(tmp_path):
    rng, trials = np.random.default_rng(0), []
    for number in range(4):
        scores, names = rng.random((5, 3)).astype(np.float32), [f"{number}{row}" for row in range(5)]
        of_set = ["s" if rng.random() < 0.7 else "t" for _ in range(5)]
        status = ["ok" if rng.random() < 0.7 else "failed" for _ in range(5)]
        trials += list(zip(of_set, status, names, scores.tolist(), strict=True))
    columns = dict(zip(("set", "status", "configuration", "scores"), map(list, zip(*trials, strict=True)), strict=True))
    columns["configuration"] = [json.dumps({"method": name}) for name in columns["configuration"]]
    columns["scores"] = pa.array(columns["scores"], pa.list_(pa.float32()))
    pq.write_table(pa.table(columns), tmp_path / "trials.parquet", row_group_size=5)
    rows = Search(str(tmp_path), result()).rows("s", last=lambda configuration: configuration.choices["method"] < "2")
    of_s = [row for row, trial in enumerate(trials) if trial[:2] == ("s", "ok")]
    expected = [row for row in of_s if trials[row][2] >= "2"] + [row for row in of_s if trials[row][2] < "2"]
    assert rows.rows.tolist() == expected != of_s
    assert [configuration.choices["method"] for configuration in rows.configurations] == [
        trials[row][2] for row in expected
    ]
    np.testing.assert_array_equal(rows.scores, np.float32([trials[row][3] for row in expected]))
    assert rows.scores.dtype == np.float32


def test_nearest_slices(work):
    search = read_search(work, "membership")
    assert not search.complete
    with pytest.raises(DataError, match=r"run tune\.search again, finished trials are kept"):
        search.nearest("s", PAIR)
    table = nearest_table("s", PAIR, IDS.real, IDS.generated, np.array([[0, 1], [1, 0], [1, 0]]))
    write_nearest(search_folder(work, "membership"), [table], "digest")
    search = read_search(work, "membership")
    assert search.complete
    assert search.nearest("s", PAIR) == {"a": ["g0", "g1"], "b": ["g1", "g0"], "c": ["g1", "g0"]}
    assert search.nearest("s", ("highpass", "outer")) == search.nearest("t", PAIR) == {}


def test_a_result_of_other_trials_is_refused(work):
    """As a search leaves them that is stopped after it wrote trials.parquet and before it wrote best.json."""
    folder = search_folder(work, "membership")
    place = f"{folder}/trials.parquet"
    pq.write_table(pq.read_table(place).replace_schema_metadata({TRIALS_DIGEST: b"0a"}), place)
    with pytest.raises(DataError, match=r"best.json belongs to other trials .*; run tune\.search again"):
        read_search(work, "membership")
    write_result(folder, result(trials_digest="0a"))
    assert read_search(work, "membership").result.trials_digest == "0a"


def test_no_search_is_none(work):
    assert read_search(work, "attribution") is None
