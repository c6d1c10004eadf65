"""Runs a published system on a collection: predictions from a recipe, embeddings and trained networks. Reads no truth.

WORK/results/reproduction/<id>-<name>/ holds <set>.csv or attribution.csv in the format of the challenge. It also holds
known.csv with the clusters of the known generators' slices, where the paper clusters those too. made.json is written
last and says what the predictions were made from. Without it, or if it does not match, they are made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.result_files import submit, submitted_ids
from gansfp.embedding import shards
from gansfp.errors import DataError, GansfpError
from gansfp.images.slices import SIDE, Source
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.published.recipe import Recipe

FOLDER = "reproduction"  # below WORK/results
CPU_BATCH, GPU_BATCH = 16, 256  # slices of 256 pixels a side in one pass of a classifier; of larger slices fewer
LABEL_OF_ROLE = {"used": USED, "not_used": NOT_USED, "unknown": UNKNOWN}
_TEXT_FIELDS = ("paper", "run", "assumed", "note")  # fields of a recipe that do not change its predictions


class SliceKind(NamedTuple):
    """Slices of a collection by what they are for. The values are those of the catalog's columns."""

    task: str
    split: str
    role: str


LABELLED_USED = SliceKind("membership", "train", "used")
LABELLED_NOT_USED = SliceKind("membership", "train", "not_used")
UNKNOWN_REAL = SliceKind("membership", "test", "unknown")
REAL_KINDS = (LABELLED_USED, LABELLED_NOT_USED, UNKNOWN_REAL)
TRAIN_GENERATED = SliceKind("membership", "train", "generated")
CLUSTERED_GENERATED = SliceKind("membership", "", "generated")  # of a set's test; if it has none there, of its training
KNOWN_GENERATORS = SliceKind("attribution", "train", "generated")
TO_ATTRIBUTE = SliceKind("attribution", "test", "unknown")


@dataclass(frozen=True)
class DecisionInput:
    """Where the numbers come from that a system decides by: an embedding or trained networks.

    identity: the identity of an embedding. models: names of folders in WORK/models by set; "" for one network that
    serves all sets. pictures: the folder in WORK/enlarged with the enlarged slices that the networks get; "" for the
    slices themselves. side: pixels a side of what the networks get.
    """

    identity: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    pictures: str = ""
    side: int = SIDE


@dataclass(frozen=True)
class Made:
    """The content of made.json. key: the decision_key of the predictions; notes: remarks about this run."""

    key: str
    seconds: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Returns the content as JSON values."""
        return {"key": self.key, "seconds": self.seconds, "told": list(self.notes)}

    @classmethod
    def from_dict(cls, content: Mapping[str, object]) -> Made:
        """Reads what as_dict returns. Raises KeyError, TypeError or ValueError for anything else."""
        key, seconds, notes = content["key"], content["seconds"], content["told"]
        if not (isinstance(key, str) and isinstance(seconds, int | float) and isinstance(notes, list)):
            raise ValueError(f"got {content!r}, expected the content of made.json")
        return cls(key, seconds, tuple(map(str, notes)))


def slice_kinds(recipe: Recipe) -> frozenset[SliceKind]:
    """Returns the kinds of slices that a recipe's decision needs, apart from those that its network is trained on."""
    if recipe.task == "attribution":
        return frozenset({TO_ATTRIBUTE, KNOWN_GENERATORS} if recipe.k_train else {TO_ATTRIBUTE})
    if recipe.method == "cluster_distance":
        return frozenset({UNKNOWN_REAL, CLUSTERED_GENERATED})
    return frozenset(REAL_KINDS)


def select_kinds(catalog: Catalog, kinds: frozenset[SliceKind]) -> Catalog:
    """Returns the slices of these kinds."""
    rows = catalog.table.select(["task", "set", "split", "role"]).to_pylist()
    sets_with_test = {row["set"] for row in rows if row["role"] == "generated" and row["split"] == "test"}
    selected = []
    for row in rows:
        clustered = row["role"] == "generated" and (row["split"] == "test" or row["set"] not in sets_with_test)
        kind = SliceKind(row["task"], row["split"], row["role"])
        selected.append(kind in kinds or (clustered and kind._replace(split="") in kinds))
    return catalog.where(pa.array(selected, pa.bool_()))


def clusters_known_generators(recipe: Recipe, catalog: Catalog) -> bool:
    """Returns whether a system also clusters the known generators' slices, and the collection has enough of them."""
    return bool(recipe.k_train) and len(catalog.known_generators()) >= recipe.k_train


def missing_slices(task: str, catalog: Catalog) -> str:
    """Returns why a collection has nothing to decide for a task; "" if it has slices to decide about."""
    if task == "attribution":
        missing = not len(catalog.unattributed())
        return "there are no slices to attribute, expected attribution/test" if missing else ""
    missing = not catalog.sets_to_decide()
    return "there are no slices to decide about, expected membership/SET/test/unknown" if missing else ""


def folder(work: str, recipe: Recipe) -> str:
    """Returns the folder of a system's predictions."""
    return store.join(work, "results", FOLDER, f"{recipe.id}-{recipe.name}")


def decision_key(recipe: Recipe, catalog: Catalog, source: DecisionInput, seed: int) -> str:
    """Returns a digest of everything that the predictions depend on. Predictions with another key are made again."""
    settings = {name: value for name, value in asdict(recipe).items() if name not in _TEXT_FIELDS}
    content = [settings, catalog.select(task=recipe.task).digest(), asdict(source), seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_made(work: str, recipe: Recipe, key: str) -> Made | None:
    """Reads made.json. Returns None where there is none, it cannot be read, or it has another key."""
    place = store.join(folder(work, recipe), "made.json")
    try:
        made = Made.from_dict(json.loads(store.read_bytes(place)))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made if made.key == key else None


def run_system(
    recipe: Recipe, catalog: Catalog, work: str, source: DecisionInput, seed: int, device: str = "cpu"
) -> Made:
    """Writes a system's predictions and made.json, and returns the content of made.json.

    Raises GansfpError where the system cannot decide about this collection.
    """
    started = time.monotonic()
    notes = METHODS[recipe.method](recipe, catalog, work, source, seed, device)
    seconds = round(time.monotonic() - started, 3)
    made = Made(decision_key(recipe, catalog, source, seed), seconds, tuple(notes))
    store.write_bytes_atomically(store.join(folder(work, recipe), "made.json"), json.dumps(made.as_dict()).encode())
    return made


def read_predictions(work: str, recipe: Recipe, name: str, images: Catalog) -> np.ndarray:
    """Reads <name>.csv; returns (n,) int64 in the order of the images. Raises DataError for another number of lines."""
    place = store.join(folder(work, recipe), f"{name}.csv")
    try:
        lines = store.read_bytes(place).decode().splitlines()
        predictions = np.array([int(line.rpartition(",")[2]) for line in lines], np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: cannot be read ({store.one_line(error)}); remove its folder") from error
    if len(predictions) != len(images):
        raise DataError(f"{place}: got {len(predictions)} lines, expected {len(images)}; remove its folder")
    return predictions


def _write(work: str, recipe: Recipe, name: str, images: Catalog, predictions: np.ndarray) -> None:
    values = dict(zip(submitted_ids(images), predictions.tolist(), strict=True))
    place = "/".join((FOLDER, f"{recipe.id}-{recipe.name}", f"{name}.csv"))
    submit(work, place, values, binary=recipe.task == "membership")


def _read_vectors(images: Catalog, work: str, source: DecisionInput) -> shards.Embeddings:
    return shards.read_embeddings(work, source.identity, images.hashes())


def _by_embeddings(
    recipe: Recipe, catalog: Catalog, work: str, source: DecisionInput, seed: int, device: str
) -> list[str]:
    """Decides membership by embeddings; returns notes. A slice that cannot be read is not used."""
    from gansfp.published.rules import decide

    notes = []
    for name in catalog.sets_to_decide():
        images = select_kinds(catalog.of_set(name), slice_kinds(recipe))
        embeddings, roles = _read_vectors(images, work, source), images.column("role")
        generated = (roles == "generated") & embeddings.ok
        real = (roles != "generated") & embeddings.ok
        labels = np.array([LABEL_OF_ROLE[role] for role in roles[real]])
        with _naming_the_set(name):
            decision = decide(recipe, embeddings.vectors[real], labels, embeddings.vectors[generated], seed)
        predictions = np.zeros(len(images), np.int64)
        predictions[real] = decision.prediction
        _write(work, recipe, name, catalog.unknown(name), predictions[roles == "unknown"])
        notes += [f"set {name}: {detail} {value}" for detail, value in decision.details.items()]
    return notes


def _by_classifier(
    recipe: Recipe, catalog: Catalog, work: str, source: DecisionInput, seed: int, device: str
) -> list[str]:
    """Decides membership by a classifier's probabilities for the unknown slices."""
    from gansfp.networks.model_files import identity_of, read_model
    from gansfp.published.rules import classifier_decision
    from gansfp.training.examples import LabelledSlices
    from gansfp.training.prediction import predict

    assert recipe.training is not None
    for name in catalog.sets_to_decide():
        unknown = catalog.unknown(name)
        model = store.join(work, "models", source.models.get(name) or source.models[""])
        hashes, sources = list(unknown.hashes().values()), unknown.sources()
        if source.pictures:
            sources = [Source(store.join(work, "enlarged", source.pictures, f"{name}.png")) for name in hashes]
        slices = LabelledSlices.unlabelled(sources, unknown.ids.tolist(), hashes, source.side)
        batch = (CPU_BATCH if device == "cpu" else GPU_BATCH) * SIDE**2 // source.side**2
        probabilities = predict(model, slices, device, max(1, batch))
        with _naming_the_set(name):
            classes = identity_of(read_model(model)[0])["classes"]
            assert isinstance(classes, list)
            decision = classifier_decision(probabilities, classes, recipe.training.target)
        _write(work, recipe, name, unknown, decision.prediction)
    return []


def _by_reconstruction_error(
    recipe: Recipe, catalog: Catalog, work: str, source: DecisionInput, seed: int, device: str
) -> list[str]:
    """Decides membership by the errors of an autoencoder that was trained on the set's generated slices."""
    from gansfp.published.rules import nearest_mean_error
    from gansfp.training import autoencoder

    for name in catalog.sets_to_decide():
        real = select_kinds(catalog.of_set(name), frozenset(REAL_KINDS))
        labels = np.array([LABEL_OF_ROLE[role] for role in real.column("role")])
        predictions = np.zeros(len(real), np.int64)
        with _naming_the_set(name):
            model = store.join(work, "models", source.models[name])
            errors = autoencoder.errors(model, real.sources(), device)
            readable = np.isfinite(errors)
            predictions[readable] = nearest_mean_error(errors[readable], labels[readable]).prediction
        _write(work, recipe, name, catalog.unknown(name), predictions[labels == UNKNOWN])
    return []


def _by_error_images(
    recipe: Recipe, catalog: Catalog, work: str, source: DecisionInput, seed: int, device: str
) -> list[str]:
    """Decides membership by how similar the autoencoder's error images are to the mean error images of the classes."""
    from gansfp.published.rules import most_similar_mean
    from gansfp.training import autoencoder

    for name in catalog.sets_to_decide():
        real = select_kinds(catalog.of_set(name), frozenset(REAL_KINDS))
        labels, sources = np.array([LABEL_OF_ROLE[role] for role in real.column("role")]), real.sources()
        unknown = [source for source, label in zip(sources, labels, strict=True) if label == UNKNOWN]
        with _naming_the_set(name):
            model = store.join(work, "models", source.models[name])
            means = autoencoder.mean_error_images(model, sources, labels, device)
            similarities = autoencoder.similarities(model, unknown, means, device)
            decision = most_similar_mean(similarities[:, 0], similarities[:, 1])
        _write(work, recipe, name, catalog.unknown(name), decision.prediction)
    return []


def _by_clusters(
    recipe: Recipe, catalog: Catalog, work: str, source: DecisionInput, seed: int, device: str
) -> list[str]:
    """Clusters the slices to attribute, and those of the known generators where the paper clusters them too.

    A slice that cannot be read is put into the largest cluster, which has number 0.
    """
    from gansfp.published.rules import attribute

    parts = [("attribution", catalog.unattributed(), recipe.k)]
    if clusters_known_generators(recipe, catalog):
        parts.append(("known", catalog.known_generators(), recipe.k_train))
    for name, images, k in parts:
        embeddings = _read_vectors(images, work, source)
        clusters = np.zeros(len(images), np.int64)
        clusters[embeddings.ok] = attribute(recipe, embeddings.vectors[embeddings.ok], k, seed).labels
        _write(work, recipe, name, images, clusters)
    return []


@contextmanager
def _naming_the_set(name: str) -> Iterator[None]:
    """Puts the name of the set in front of gansfp's own errors."""
    try:
        yield
    except GansfpError as error:
        raise type(error)(f"set {name}: {error}") from error


METHODS: dict[str, Callable[[Recipe, Catalog, str, DecisionInput, int, str], list[str]]] = {
    **dict.fromkeys(("two_means", "kmeans_per_class", "cluster_distance"), _by_embeddings),
    **dict.fromkeys(("kmeans", "hierarchical", "gmm"), _by_clusters),
    "classifier": _by_classifier,
    "autoencoder_mse": _by_reconstruction_error,
    "autoencoder_ssim": _by_error_images,
}
ON_DEVICE = ("classifier", "autoencoder_mse", "autoencoder_ssim")  # methods whose decisions need a network
