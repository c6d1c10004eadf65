"""What a published system says of a collection: predictions from a recipe, embeddings and trained networks; no truth.

WORK/results/reproduction/<id>-<name>/ holds <set>.csv or attribution.csv in the challenge's format, known.csv with the
clusters of the known generators' slices where the paper clusters those, too, and, written last, made.json: what made
them, without which they are made anew.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.decision.result_files import submit, submitted_ids
from gansfp.embedding import shards
from gansfp.errors import DataError, GansfpError
from gansfp.images.slices import SIDE
from gansfp.labels import NOT_USED, UNKNOWN, USED
from gansfp.published.recipe import Recipe

FOLDER = "reproduction"  # below WORK/results
CPU_BATCH, GPU_BATCH = 16, 256  # slices of 256 pixels a side through a classifier at once; of larger ones fewer
_WORDS = ("paper", "run", "assumed", "note")  # of a recipe, which change nothing that it does
LABELS = {"used": USED, "not_used": NOT_USED, "unknown": UNKNOWN}

Part = tuple[str, str, str]  # task, split, role of slices
REAL: tuple[Part, ...] = (
    ("membership", "train", "used"),
    ("membership", "train", "not_used"),
    ("membership", "test", "unknown"),
)
CLUSTERED: Part = ("membership", "", "generated")  # of a set's test, or where it has none there, of its training
LEARNT_GENERATED: Part = ("membership", "train", "generated")


@dataclass(frozen=True)
class Source:
    """The numbers that a system decides by.

    identity: that of an embedding. Or models: trained networks in WORK/models, by set, "" for one that serves all sets;
    pictures: the folder in WORK/enlarged with what they look at instead of slices, "" for the slices; side: of those,
    in pixels.
    """

    identity: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    pictures: str = ""
    side: int = SIDE


def parts(recipe: Recipe) -> frozenset[Part]:
    """The slices that a recipe's decision looks at, beside those that its network is trained on."""
    if recipe.task == "attribution":
        known = {("attribution", "train", "generated")} if recipe.k_train else set()
        return frozenset({("attribution", "test", "unknown"), *known})
    if recipe.method == "cluster_distance":
        return frozenset({REAL[2], CLUSTERED})
    return frozenset(REAL)


def select(catalog: Catalog, wanted: frozenset[Part]) -> Catalog:
    """The slices of those parts."""
    rows = catalog.table.select(["task", "set", "split", "role"]).to_pylist()
    tested = {row["set"] for row in rows if row["role"] == "generated" and row["split"] == "test"}
    keep = []
    for row in rows:
        clustered = row["role"] == "generated" and (row["split"] == "test" or row["set"] not in tested)
        part = (row["task"], row["split"], row["role"])
        keep.append(part in wanted or (clustered and (row["task"], "", row["role"]) in wanted))
    return catalog.where(pa.array(keep, pa.bool_()))


def clusters_known(recipe: Recipe, catalog: Catalog) -> bool:
    """True where a system clusters the known generators' slices, too, and there are enough of them."""
    known = catalog.known_generators()
    return bool(recipe.k_train) and len(known) >= recipe.k_train


def nothing_to_decide(task: str, catalog: Catalog) -> str:
    """Why a task cannot be done with a collection; "" where there are slices to decide about."""
    if task == "attribution":
        there = len(catalog.unattributed()) > 0
        return "" if there else "there are no slices to attribute, expected attribution/test"
    return (
        "" if catalog.sets_to_decide() else "there are no slices to decide about, expected membership/SET/test/unknown"
    )


def folder(work: str, recipe: Recipe) -> str:
    """Where a system's predictions are."""
    return store.join(work, "results", FOLDER, f"{recipe.id}-{recipe.name}")


def key(recipe: Recipe, catalog: Catalog, source: Source, seed: int) -> str:
    """What predictions depend on: a system's with another key are made anew."""
    does = {name: value for name, value in asdict(recipe).items() if name not in _WORDS}
    told = [does, catalog.select(task=recipe.task).digest(), asdict(source), seed]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def made(work: str, recipe: Recipe, wanted: str) -> dict[str, Any] | None:
    """What made.json holds, if the predictions are there and made by what `wanted` says, a key; else None."""
    place = store.join(folder(work, recipe), "made.json")
    try:
        told = json.loads(store.read_bytes(place))
        return told if told["key"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not ours: made anew
        return None


def run_system(
    recipe: Recipe, catalog: Catalog, work: str, source: Source, seed: int, device: str = "cpu"
) -> dict[str, Any]:
    """Writes a system's predictions and made.json, and returns what that holds.

    Raises GansfpError where the system cannot say anything of this collection.
    """
    started = time.monotonic()
    told = DECIDE[recipe.method](recipe, catalog, work, source, seed, device)
    facts = {"key": key(recipe, catalog, source, seed), "seconds": round(time.monotonic() - started, 3), "told": told}
    store.write_bytes_atomically(store.join(folder(work, recipe), "made.json"), json.dumps(facts).encode())
    return facts


def read_answers(work: str, recipe: Recipe, name: str, images: Catalog) -> np.ndarray:
    """(n,) int64: the predictions in <name>.csv, in the order of these images. Raises DataError for another number."""
    place = store.join(folder(work, recipe), f"{name}.csv")
    try:
        lines = store.read_bytes(place).decode().splitlines()
        answers = np.array([int(line.rpartition(",")[2]) for line in lines], np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"{place}: cannot be read ({store.one_line(error)}); remove its folder") from error
    if len(answers) != len(images):
        raise DataError(f"{place}: got {len(answers)} lines, expected {len(images)}; remove its folder")
    return answers


def _write(work: str, recipe: Recipe, name: str, images: Catalog, answers: np.ndarray) -> None:
    values = dict(zip(submitted_ids(images), answers.tolist(), strict=True))
    place = "/".join((FOLDER, f"{recipe.id}-{recipe.name}", f"{name}.csv"))
    submit(work, place, values, binary=recipe.task == "membership")


def _vectors(images: Catalog, work: str, source: Source) -> shards.Embeddings:
    hashes = images.hashes()
    return shards.read_embeddings(work, source.identity, hashes)


def _by_vectors(recipe: Recipe, catalog: Catalog, work: str, source: Source, seed: int, device: str) -> list[str]:
    """Membership by embeddings; returns what is to be said of it."""
    from gansfp.published.rules import decide

    told = []
    for name in catalog.sets_to_decide():
        images = select(catalog.of_set(name), parts(recipe))
        found, roles = _vectors(images, work, source), images.column("role")
        real = (roles != "generated") & found.ok
        labels = np.array([LABELS[role] for role in roles[real]])
        generated = found.vectors[(roles == "generated") & found.ok] if recipe.method == "cluster_distance" else None
        with _of_set(name):
            decision = decide(recipe, found.vectors[real], labels, generated, seed)
        answers = np.zeros(len(images), np.int64)
        answers[real] = decision.prediction
        unknown = catalog.unknown(name)
        _write(work, recipe, name, unknown, answers[roles == "unknown"])
        told += [f"set {name}: {what} {value}" for what, value in decision.told.items()]
    return told


def _by_classifier(recipe: Recipe, catalog: Catalog, work: str, source: Source, seed: int, device: str) -> list[str]:
    """Membership by a classifier's probabilities of the unknown slices."""
    from gansfp.networks.model_files import read_model
    from gansfp.published.rules import classifier_decision
    from gansfp.training.classifier import predict
    from gansfp.training.examples import LabelledSlices

    assert recipe.training is not None
    for name in catalog.sets_to_decide():
        unknown = catalog.unknown(name)
        place = store.join(work, "models", source.models.get(name) or source.models[""])
        hashes, uris = unknown.column("sha256").tolist(), unknown.column("uri").tolist()
        if source.pictures:
            uris = [store.join(work, "enlarged", source.pictures, f"{sha256}.png") for sha256 in hashes]
        none = (-1,) * len(unknown)
        slices = LabelledSlices(tuple(uris), none, tuple(unknown.ids.tolist()), tuple(hashes), (), source.side)
        batch = (CPU_BATCH if device == "cpu" else GPU_BATCH) * SIDE**2 // source.side**2
        probabilities = predict(place, slices, device, max(1, batch))
        with _of_set(name):
            decision = classifier_decision(
                probabilities, read_model(place)[0]["identity"]["classes"], recipe.training.target
            )
        _write(work, recipe, name, unknown, decision.prediction)
    return []


def _by_autoencoder(recipe: Recipe, catalog: Catalog, work: str, source: Source, seed: int, device: str) -> list[str]:
    """Membership by the errors of an autoencoder of the set's generated slices."""
    from gansfp.published.rules import most_similar_mean, nearest_mean_error
    from gansfp.training import autoencoder

    for name in catalog.sets_to_decide():
        real = select(catalog.of_set(name), frozenset(REAL))
        place, uris = store.join(work, "models", source.models[name]), real.column("uri").tolist()
        labels = np.array([LABELS[role] for role in real.column("role")])
        answers = np.zeros(len(real), np.int64)
        with _of_set(name):
            if recipe.method == "autoencoder_mse":
                errors = autoencoder.errors(place, uris, device)
                there = np.isfinite(errors)
                answers[there] = nearest_mean_error(errors[there], labels[there]).prediction
            else:
                means = autoencoder.mean_error_images(place, uris, labels, device)
                there = labels == UNKNOWN
                alike = autoencoder.similarities(place, [uris[row] for row in np.flatnonzero(there)], means, device)
                answers[there] = most_similar_mean(alike[:, 0], alike[:, 1]).prediction
        _write(work, recipe, name, catalog.unknown(name), answers[labels == UNKNOWN])
    return []


def _by_clusters(recipe: Recipe, catalog: Catalog, work: str, source: Source, seed: int, device: str) -> list[str]:
    """Attribution: clusters of the test slices, and of the known generators' where the paper has those; what cannot be
    read goes to the largest cluster."""
    from gansfp.published.rules import attribute

    test = catalog.unattributed()
    wanted = [("attribution", test, recipe.k)]
    if clusters_known(recipe, catalog):
        wanted.append(("known", catalog.known_generators(), recipe.k_train))
    for name, images, k in wanted:
        found = _vectors(images, work, source)
        answers = np.zeros(len(images), np.int64)
        answers[found.ok] = attribute(recipe, found.vectors[found.ok], k, seed).labels
        _write(work, recipe, name, images, answers)
    return []


@contextmanager
def _of_set(name: str) -> Iterator[None]:
    """An error of ours says which set it is about."""
    try:
        yield
    except GansfpError as error:
        raise type(error)(f"set {name}: {error}") from error


DECIDE: dict[str, Callable[[Recipe, Catalog, str, Source, int, str], list[str]]] = {
    **dict.fromkeys(("two_means", "kmeans_per_class", "cluster_distance"), _by_vectors),
    **dict.fromkeys(("kmeans", "hierarchical", "gmm"), _by_clusters),
    "classifier": _by_classifier,
    **dict.fromkeys(("autoencoder_mse", "autoencoder_ssim"), _by_autoencoder),
}
ON_DEVICE = ("classifier", "autoencoder_mse", "autoencoder_ssim")  # methods whose decisions need a network
