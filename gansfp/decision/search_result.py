"""What a search leaves in WORK/search/<task>/ for the final step: best.json, trials.parquet, nearest.parquet.

The search writes these files, the final step reads them, and both use the records below. A row is always counted over
all rows of trials.parquet, failed ones too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.nearest_slices import read_nearest
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError

Scalar = str | int | float | bool

TRIALS_DIGEST = b"gansfp_trials_digest"  # in the metadata of trials.parquet; best.json has the same value


@dataclass(frozen=True)
class Trial:
    """One way to prepare an embedding; everything else is swept inside the trial.

    components: principal components: 0 for none, or the share of variance kept. metric: of the distances (membership).
    standardise: z-scores first (attribution). None: the task has no such choice.
    """

    backbone: str
    view: str
    components: int | float
    metric: str | None = None
    standardise: bool | None = None

    @property
    def pair(self) -> Pair:
        """The embedding that is prepared."""
        return self.backbone, self.view

    def as_dict(self) -> dict[str, Scalar]:
        """The choices that the task has, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def to_json(self) -> str:
        """The choices as JSON, from which Trial.from_json makes the trial again."""
        return json.dumps(self.as_dict())

    @classmethod
    def from_json(cls, text: str) -> Trial:
        """The trial that to_json wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Configuration:
    """All choices behind one row of a search, by name: those of its trial, then the parameters swept in the trial."""

    choices: Mapping[str, Scalar]

    @property
    def pair(self) -> Pair:
        """The embedding (backbone, view) that the row was computed from."""
        return str(self.choices["backbone"]), str(self.choices["view"])

    def to_json(self) -> str:
        """The choices as one line of JSON, as trials.parquet holds them."""
        return json.dumps(dict(self.choices))

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """The configuration that to_json wrote."""
        return cls(json.loads(text))


@dataclass(frozen=True)
class BestRow:
    """The row of a set (attribution: of the task) that the search prefers.

    row: its index in trials.parquet. columns: its short columns there, without those that are null.
    """

    row: int
    configuration: Configuration
    columns: Mapping[str, Scalar]

    def as_dict(self) -> dict[str, object]:
        """As best.json holds it."""
        return {**self.columns, "configuration": dict(self.configuration.choices), "row": self.row}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BestRow:
        """The row that as_dict wrote."""
        columns = {name: value for name, value in values.items() if name not in ("configuration", "row")}
        return cls(values["row"], Configuration(values["configuration"]), columns)


@dataclass(frozen=True)
class SetIds:
    """One membership set: the slices, in the order of the scores. labels: 1 used, 0 not used, -1 unknown; folds: -1 for
    unknown slices."""

    real: list[str]
    generated: list[str]
    labels: list[int]
    folds: list[int]
    groups: list[str]

    @property
    def unknown(self) -> list[str]:
        """The slices to decide about."""
        return [image_id for image_id, label in zip(self.real, self.labels, strict=True) if label < 0]


@dataclass(frozen=True)
class SearchedIds:
    """Which image each entry of a row's `scores` and `known` belongs to.

    images: all of the task. sets: of membership. test, known: of attribution.
    """

    images: list[str]
    sets: dict[str, SetIds] = field(default_factory=dict)
    test: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """As best.json and the metadata of trials.parquet hold them: what the task does not have is absent."""
        if self.sets:
            return {"images": self.images, "sets": {name: asdict(ids) for name, ids in self.sets.items()}}
        return {"images": self.images, "test": self.test, "known": self.known}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchedIds:
        """The ids that as_dict wrote."""
        sets = {name: SetIds(**ids) for name, ids in values.get("sets", {}).items()}
        return cls(values["images"], sets, values.get("test", []), values.get("known", []))


@dataclass(frozen=True)
class SearchResult:
    """What best.json holds.

    best: by set, "" for attribution. tried, failed: rows of trials.parquet. search: the search's configuration.
    identities: of the embeddings, by "<backbone> <view>". unreadable: reasons by image id. digest: of the images and
    their classes, see Catalog.digest. names: attribution: the known generator, or "new", that each cluster of the best
    row resembles; None for membership, and where an earlier version wrote the file. trials_digest: of the trials whose
    rows `best` counts, as the metadata of trials.parquet hold it; "" where an earlier version wrote the files.
    """

    task: str
    best: dict[str, BestRow]
    tried: int
    failed: int
    search: Mapping[str, object]
    identities: Mapping[str, Mapping[str, str]]
    unreadable: Mapping[str, str]
    ids: SearchedIds
    digest: str
    names: Mapping[int, str] | None = None
    trials_digest: str = ""

    def to_json(self) -> str:
        """The text of best.json."""
        values = {name: getattr(self, name) for name in ("task", "tried", "failed", "search", "identities")}
        values |= {"unreadable": self.unreadable, "ids": self.ids.as_dict(), "digest": self.digest}
        values["trials_digest"] = self.trials_digest
        values["best"] = {name: best.as_dict() for name, best in self.best.items()}
        if self.names is not None:
            values["names"] = {str(cluster): name for cluster, name in self.names.items()}
        return json.dumps(values, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> SearchResult:
        """The result that to_json wrote, or an earlier version. Raises ValueError for any other text."""
        values = json.loads(text)
        try:
            names = values.get("names")
            return cls(
                values["task"],
                {name: BestRow.from_dict(best) for name, best in values["best"].items()},
                values["tried"],
                values["failed"],
                {"max_memory": values["search"]["max_memory"], **values["search"]},
                values["identities"],
                values["unreadable"],
                SearchedIds.from_dict(values["ids"]),
                values["digest"],
                None if names is None else {int(cluster): name for cluster, name in names.items()},
                values.get("trials_digest", ""),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"best.json was written by another version ({type(error).__name__}: {error})") from error


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """The rows of one set (attribution: of the task) that did not fail.

    rows: (c,) their indices in trials.parquet; scores: (c, n) float32.
    """

    rows: np.ndarray
    configurations: list[Configuration]
    scores: np.ndarray

    def of_row(self, row: int) -> np.ndarray:
        """The scores (n,) of the row with that index in trials.parquet."""
        return self.scores[int(np.flatnonzero(self.rows == row)[0])]


@dataclass(frozen=True, eq=False)
class Search:
    """A search as it lies in WORK: its result, its trials, and the nearest generated slices."""

    folder: str
    result: SearchResult

    @cached_property
    def trials(self) -> pq.ParquetFile:
        """trials.parquet, opened when it is first needed. Raises OSError or ValueError where it is broken."""
        file_system, place = store.open_store(store.join(self.folder, "trials.parquet"))
        return store.open_parquet(file_system.open_input_file(place))

    @property
    def pairs(self) -> list[Pair]:
        """The embeddings that were searched."""
        return [(backbone, view) for backbone, _, view in (name.rpartition(" ") for name in self.result.identities)]

    @property
    def complete(self) -> bool:
        """False where an earlier version left neither nearest slices nor names of clusters."""
        return read_nearest(self.folder) is not None if self.result.ids.sets else self.result.names is not None

    def rows(self, name: str, last: Callable[[Configuration], bool] = lambda configuration: False) -> ScoredRows:
        """The rows of a set ("" for attribution) that did not fail, in the order of the trials; those for which `last`
        is true come after the others."""
        table = self.trials.read(["set", "status", "configuration"])
        of_set = np.array([value or "" for value in table["set"].to_pylist()]) == name
        rows = np.flatnonzero(of_set & (np.array(table["status"].to_pylist()) == "ok"))
        found = [Configuration.from_json(text) for text in table["configuration"].take(rows).to_pylist()]
        order = np.argsort([last(configuration) for configuration in found], kind="stable")
        scores = self._scores(rows, np.argsort(order))
        return ScoredRows(rows[order], [found[place] for place in order], scores)

    def _scores(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The scores (c, n) of rows (c,) of trials.parquet, rising, each at its place. They are read one trial at a
        time, so that they are in memory once."""
        scores = np.empty((0, 0), np.float32)
        first = 0
        for group in range(self.trials.num_row_groups):
            count = self.trials.metadata.row_group(group).num_rows
            chosen = (rows >= first) & (rows < first + count)
            if chosen.any():
                column = self.trials.read_row_group(group, ["scores"])["scores"].take(rows[chosen] - first)
                of_group = column.combine_chunks().flatten().to_numpy().reshape(int(chosen.sum()), -1)
                if not scores.size:
                    scores = np.empty((len(rows), of_group.shape[1]), of_group.dtype)
                scores[places[chosen]] = of_group
            first += count
        return scores

    def known_clusters(self) -> dict[int, np.ndarray]:
        """The clusters (m,) of the known generators' slices, by row; only rows that have them."""
        clusters = self.trials.read(["known"])["known"].to_pylist()
        return {row: np.array(labels) for row, labels in enumerate(clusters) if labels is not None}

    def nearest(self, name: str, pair: Pair) -> dict[str, list[str]]:
        """Returns the nearest generated slices of each real slice of a set in an embedding.

        Raises DataError where an earlier version left none.
        """
        rows = read_nearest(self.folder)
        if rows is None:
            raise DataError(f"{self.folder}: holds no nearest.parquet; run tune.search again, finished trials are kept")
        for column, value in zip(("set", "backbone", "view"), (name, *pair), strict=True):
            rows = rows.filter(pc.equal(rows[column], value))
        return dict(zip(rows["image_id"].to_pylist(), rows["nearest"].to_pylist(), strict=True))


def check_current(catalog: Catalog, result: SearchResult) -> None:
    """Raises DataError where the images of a task, their classes or groups are not those that were searched."""
    images = catalog.select(task=result.task)
    changed = set(images.ids.tolist()) ^ set(result.ids.images)
    if changed:
        raise DataError(
            f"{catalog.data}: {len(changed)} {result.task} images changed since the search, such as "
            f"{sorted(changed)[0]!r}; search again"
        )
    if images.digest() != result.digest:
        raise DataError(
            f"{catalog.data}: {result.task} images, classes or groups changed since the search; search again"
        )


def search_folder(work: str, task: str) -> str:
    """Where the search of a task is."""
    return store.join(work, "search", task)


def read_search(work: str, task: str) -> Search | None:
    """The search of a task in WORK, or None where there was none. Raises DataError where its files are broken
    or do not belong together."""
    folder = search_folder(work, task)
    if not store.exists(store.join(folder, "best.json")):
        return None
    try:
        result = SearchResult.from_json(store.read_bytes(store.join(folder, "best.json")))
        search = Search(folder, result)
        metadata = search.trials.metadata.metadata or {}  # a broken file must be reported here
        if metadata.get(TRIALS_DIGEST, b"").decode() != result.trials_digest:  # a search was stopped between the two
            raise ValueError("best.json belongs to other trials than trials.parquet")
        return search
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid and json's errors are ValueErrors
        raise DataError(f"{folder}: cannot be read ({store.one_line(error)}); run tune.search again") from error


def write_result(folder: str, result: SearchResult) -> None:
    """Writes best.json."""
    store.write_bytes_atomically(store.join(folder, "best.json"), result.to_json().encode())
