"""What a classifier is trained on, stage by stage: targets of a catalog, folders of classes, published transfers.

A file of stages is a JSON list of objects; weights pass on from each stage to the next:

    name       what the stage is called in logs and results
    data       "attribution"; a membership set's name, or "#1", "#2", ... in the order of the names; a folder or URI;
               "" where one has none: the stage is skipped
    target     used: used against not_used slices of the set. generated: its real slices against its generated ones.
               generator: the attribution's labelled generators. unknown: the set's slices to judge, for pseudo-labels.
               folders: a folder with one sub-folder a class
    labels     supervised; pseudo: by the network of the stage before; none: the stage is skipped
    epochs, optimiser, rate, batch, patience   as gansfp.training.loop.Settings has them

All but name and data may be left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.errors import DataError, UsageError
from gansfp.images.slices import ENDINGS, MAX_BYTES
from gansfp.training.examples import READERS, LabelledSlices
from gansfp.training.loop import Settings

LABELS = ("supervised", "pseudo", "none")
SET_TARGETS = ("used", "generated", "unknown")
TARGETS = (*SET_TARGETS, "generator", "folders")
ATTRIBUTION = "attribution"  # the data of target "generator"
MOST_BYTES = 1 << 20  # of a file of stages
PATIENCE = 10  # epochs; the papers say "early stopping" alone

_SGD: dict[str, Any] = {"optimiser": "sgd", "rate": 1e-3, "batch": 256, "patience": PATIENCE}
_DEFAULTS: dict[str, Any] = {"target": "used", "labels": "supervised", "epochs": 50, **_SGD}
_KEYS = ("name", "data", *_DEFAULTS)

# KDE-med-lab 2024 trained on the first set and then on the second; for attribution, on the labelled generators.
# KDE-lab 2023: its first two data sets (CASIA, COVID-19 CT) are not to be had with the challenge: copy the stages into
# a file and name folders. Of the fourth the paper does not say whether its slices got labels: with "pseudo" they do.
# KDE Lab 2024 does not say its batch (here Keras's default), nor that it stopped early.
_PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "kde-med-2024": [
        {"name": "set 1", "data": "#1", "target": "used", "epochs": 50, **_SGD},
        {"name": "set 2", "data": "#2", "target": "used", "epochs": 50, **_SGD},
    ],
    "kde-med-2024-attribution": [
        {"name": "generators", "data": ATTRIBUTION, "target": "generator", "epochs": 50, **_SGD}
    ],
    "kde-lab-2023": [
        {"name": "natural and tampered images", "data": "", "target": "folders", "epochs": 200, **_SGD},
        {"name": "COVID-19 CT", "data": "", "target": "folders", "epochs": 200, **_SGD},
        {"name": "GANs train", "data": "#1", "target": "used", "epochs": 200, **_SGD},
        {"name": "GANs test", "data": "#1", "target": "unknown", "labels": "none", "epochs": 200, **_SGD},
    ],
    "kde-lab-2024": [
        {
            "name": "set 1",
            "data": "#1",
            "target": "generated",
            "epochs": 50,
            "optimiser": "adam",
            "rate": 1e-4,
            "batch": 32,
            "patience": 0,
        }
    ],
}
PUBLISHED_STAGES: dict[str, str] = {name: json.dumps(stages, indent=1) for name, stages in _PUBLISHED.items()}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage of a training. examples: None where its data is absent; skipped: why the stage will be, "" if not.

    Raises UsageError for unknown labels, DataError where there is one class to tell apart.
    """

    name: str
    examples: LabelledSlices | None
    labels: str = "supervised"
    settings: Settings = field(default_factory=Settings)
    absent: str = ""  # why there are no examples

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise UsageError(f"stage {self.name!r}: labels: got {self.labels!r}, expected one of {list(LABELS)}")
        if self.skipped or self.labels == "pseudo":
            return
        counts = self.examples.counts() if self.examples else {}
        found = [name for name, count in counts.items() if count]
        if len(found) < 2:
            raise DataError(f"stage {self.name!r}: got slices of {found or 'no class'}, expected two classes or more")

    @property
    def skipped(self) -> str:
        """Why the stage will not be trained, as far as can be told beforehand."""
        if self.labels == "none":
            return "it is to have no labels"
        return "" if self.examples and len(self.examples) else self.absent or "no data"


@dataclass(frozen=True)
class StagePlan:
    """One entry of a file of stages, checked, its data not yet looked up."""

    name: str
    data: str
    target: str
    labels: str
    settings: Settings


def read_stages(source: str) -> tuple[StagePlan, ...]:
    """The stages of a published transfer, by its name, or of a file, by its path or URI.

    Raises UsageError, one line with file, stage and key, where it cannot be read or says what nobody understands.
    """
    if source in PUBLISHED_STAGES:
        return parse_stages(PUBLISHED_STAGES[source], source)
    try:
        text = store.read_bytes(source, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"stages: {source!r} cannot be read ({store.one_line(error)}), expected a JSON file or one of "
            f"{', '.join(PUBLISHED_STAGES)}"
        ) from error
    return parse_stages(text, source)


def parse_stages(text: str, source: str) -> tuple[StagePlan, ...]:
    """The stages of a JSON text. source: what errors call it. Raises UsageError."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{source}: not JSON ({store.one_line(error)})") from error
    if not isinstance(entries, list) or not entries:
        what = f"a list of stages, each with {', '.join(_KEYS)}"
        raise UsageError(f"{source}: got {str(entries)[:40]!r}, expected {what}")
    plans = tuple(_plan(entry, f"{source}: stage {number}") for number, entry in enumerate(entries, 1))
    if plans[0].labels == "pseudo":
        raise UsageError(f"{source}: stage 1: labels: got 'pseudo', expected a stage before it to give them")
    return plans


def _plan(entry: Any, where: str) -> StagePlan:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: got {str(entry)[:40]!r}, expected an object with {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise UsageError(f"{where}: got key {key!r}, expected one of {', '.join(_KEYS)}")
    values = _DEFAULTS | entry
    for key in _KEYS:
        if key not in values:
            raise UsageError(f"{where}: no key {key!r}, expected {', '.join(_KEYS)}")
        kind = str if key in ("name", "data") else type(_DEFAULTS[key])
        if isinstance(values[key], bool) or not isinstance(values[key], (float, int) if kind is float else kind):
            raise UsageError(f"{where}: {key}: got {values[key]!r}, expected {_KINDS[kind]}")
    where = f"{where} ({values['name']!r})"
    for key, known in (("target", TARGETS), ("labels", LABELS)):
        if values[key] not in known:
            raise UsageError(f"{where}: {key}: got {values[key]!r}, expected one of {', '.join(known)}")
    if values["target"] == "unknown" and values["labels"] == "supervised":
        raise UsageError(f"{where}: labels: got 'supervised' of unknown slices, expected pseudo or none")
    if values["target"] == "generator" and values["data"] not in ("", ATTRIBUTION):
        raise UsageError(f"{where}: data: got {values['data']!r}, expected {ATTRIBUTION!r} for target 'generator'")
    try:
        settings = Settings(**{key: values[key] for key in ("epochs", "optimiser", "rate", "batch", "patience")})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return StagePlan(values["name"], values["data"], values["target"], values["labels"], settings)


_KINDS = {str: "text", int: "a whole number", float: "a number"}


def find_stages(plans: Sequence[StagePlan], catalog: Catalog) -> tuple[Stage, ...]:
    """The stages with their data. A stage whose data is absent is kept, without examples; a warning says so.

    Raises DataError for a folder whose files cannot be read, or that has one class.
    """
    stages = []
    for plan in plans:
        try:
            examples, absent = _examples(plan, catalog), ""
        except _AbsentError as error:
            examples, absent = None, str(error)
        stages.append(Stage(plan.name, examples, plan.labels, plan.settings, absent))
        if stages[-1].skipped:
            log.warning("stage %r is skipped: %s", plan.name, stages[-1].skipped)
    return tuple(stages)


class _AbsentError(Exception):
    """Why there is no data for a stage."""


def _examples(plan: StagePlan, catalog: Catalog) -> LabelledSlices | None:
    if plan.labels == "none":
        return None
    if not plan.data:
        raise _AbsentError("no data is named")
    if plan.target == "folders":
        if not store.exists(plan.data):
            raise _AbsentError(f"{plan.data} is not there")
        return labelled_folders(plan.data)
    name = plan.data
    if plan.target in SET_TARGETS:
        sets = catalog.sets()
        if name.startswith("#") and name[1:].isdigit() and 1 <= int(name[1:]) <= len(sets):
            name = sets[int(name[1:]) - 1]
        if name not in sets:
            raise _AbsentError(f"there is no set {name!r}, only {', '.join(sets) or 'none'}")
    elif not len(catalog.select(task="attribution", split="train")):
        raise _AbsentError("there are no labelled generators")
    return labelled(catalog, plan.target, name)


def labelled(catalog: Catalog, target: str, set: str = "") -> LabelledSlices:
    """The slices of a target, one of `used`, `generated`, `generator` and `unknown`; set: a membership set's name.

    Classes of used: not_used, used; of generated: real (used and not used), generated; of generator: their names. Those
    of unknown have none. Only training slices have labels here, whatever else DATA may know. Files that are known not
    to be readable are left out. Raises DataError where a class is missing or nothing is left, UsageError for another
    target.
    """
    if target not in (*SET_TARGETS, "generator"):
        raise UsageError(f"target: got {target!r}, expected one of {[*SET_TARGETS, 'generator']}")
    task, part = ("attribution", None) if target == "generator" else ("membership", set)
    split = "test" if target == "unknown" else "train"
    chosen = catalog.select(task=task, set=part, split=split, status="ok")
    if target == "unknown":
        chosen = chosen.select(role="unknown")
    elif target == "used":
        rows = pc.is_in(chosen.table["role"], pa.array(["used", "not_used"]))
        chosen = chosen.where(rows)
    names, classes = _CLASSES[target](chosen)
    found = LabelledSlices(
        tuple(chosen.column("uri").tolist()),
        tuple(classes.index(name) if classes else -1 for name in names),
        tuple(chosen.groups().tolist()),
        tuple(chosen.column("sha256").tolist()),
        classes,
    )
    where = "the attribution's training slices" if target == "generator" else f"set {set!r}"
    if not len(found):
        raise DataError(f"target {target!r}: got no slices of {where}")
    present = [name for name, count in found.counts().items() if count]
    if classes and len(present) < 2:
        raise DataError(f"target {target!r}: got {present} alone in {where}, expected two classes or more")
    return found


def _used(chosen: Catalog) -> tuple[list[str], tuple[str, ...]]:
    return chosen.column("role").tolist(), ("not_used", "used")


def _generated(chosen: Catalog) -> tuple[list[str], tuple[str, ...]]:
    return np.where(chosen.column("role") == "generated", "generated", "real").tolist(), ("real", "generated")


def _generator(chosen: Catalog) -> tuple[list[str], tuple[str, ...]]:
    names = chosen.column("generator").tolist()
    return names, tuple(sorted(frozenset(names)))


def _unknown(chosen: Catalog) -> tuple[list[str], tuple[str, ...]]:
    return [""] * len(chosen), ()


_CLASSES: dict[str, Callable[[Catalog], tuple[list[str], tuple[str, ...]]]] = {
    "used": _used,
    "generated": _generated,
    "generator": _generator,
    "unknown": _unknown,
}


def labelled_folders(folder: str) -> LabelledSlices:
    """The images of a folder or URI with one sub-folder a class, which may have sub-folders of its own.

    Every image is a group of its own. Raises DataError where a file cannot be read, or there are not two classes.
    """
    base = store.open_store(folder)[1].rstrip("/")
    files = [uri for uri in store.list_files(folder, recursive=True) if uri.partition("?")[0].lower().endswith(ENDINGS)]
    below = [store.open_store(uri)[1][len(base) :].lstrip("/").split("/") for uri in files]
    images = [(uri, parts[0]) for uri, parts in zip(files, below, strict=True) if len(parts) > 1]
    classes = tuple(sorted({name for _, name in images}))
    if len(classes) < 2:
        raise DataError(f"{folder}: got classes {list(classes)}, expected two sub-folders of images or more")
    uris = tuple(uri for uri, _ in images)
    with ThreadPoolExecutor(READERS) as readers:
        sha256 = tuple(readers.map(_hash, uris))
    return LabelledSlices(uris, tuple(classes.index(name) for _, name in images), uris, sha256, classes)


def _hash(uri: str) -> str:
    """ "" where the file cannot be read: it will be left out."""
    try:
        return hashlib.sha256(store.read_bytes(uri, MAX_BYTES)).hexdigest()
    except OSError:
        return ""
