"""The training stages of a classifier: targets of a catalog, folders of classes, published transfers.

A file of training stages is a JSON list of objects. Each stage starts with the weights of the stage before it.

    name       the name of the stage in logs and results
    data       "attribution"; the name of a membership set, or "#1", "#2", ... in the order of the names; a folder or
               URI; "" where there is no data: the stage is skipped
    target     used: used against not used slices of the set. generated: its real slices against its generated slices.
               generator: the labelled generators of the attribution. unknown: the unknown slices of the set, for
               pseudo-labels. folders: a folder with one sub-folder per class
    labels     supervised; pseudo: the network of the stage before gives the labels; none: the stage is skipped
    epochs, optimiser, rate, batch, patience   as in gansfp.training.loop.Settings

Only name and data are required.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gansfp import store
from gansfp.collection.catalog import Catalog
from gansfp.collection.folders import list_images, read_files
from gansfp.errors import DataError, UsageError
from gansfp.training.examples import LabelledSlices
from gansfp.training.loop import Settings

LABELS = ("supervised", "pseudo", "none")
SET_TARGETS = ("used", "generated", "unknown")
TARGETS = (*SET_TARGETS, "generator", "folders")
ATTRIBUTION = "attribution"  # the data of target "generator"
MOST_BYTES = 1 << 20  # of a file of training stages
PATIENCE = 10  # epochs; the papers only say "early stopping"

_Value = str | int | float
_SGD: dict[str, _Value] = {"optimiser": "sgd", "rate": 1e-3, "batch": 256, "patience": PATIENCE}
_DEFAULTS: dict[str, _Value] = {"target": "used", "labels": "supervised", "epochs": 50, **_SGD}
_KEYS = ("name", "data", *_DEFAULTS)

# KDE-med-lab 2024 trained on the first set and then on the second set; for attribution, on the labelled generators.
# KDE-lab 2023: the challenge does not provide its first two data sets (CASIA, COVID-19 CT). To use them, copy the
# stages into a file and name folders. The paper does not say whether the slices of its fourth data set got labels; with
# "pseudo" they get some.
# KDE Lab 2024 gives no batch size (here Keras's default) and does not mention early stopping.
_PUBLISHED: dict[str, list[dict[str, _Value]]] = {
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
    """A training stage. examples: None where its data is absent; absent: the reason for that.

    Raises UsageError for unknown labels, DataError where a stage that is trained has fewer than two classes.
    """

    name: str
    examples: LabelledSlices | None
    labels: str = "supervised"
    settings: Settings = field(default_factory=Settings)
    absent: str = ""

    def __post_init__(self) -> None:
        where = f"training stage {self.name!r}"
        if self.labels not in LABELS:
            raise UsageError(f"{where}: labels: got {self.labels!r}, expected one of {list(LABELS)}")
        if self.skipped or self.labels == "pseudo":
            return
        counts = self.examples.counts() if self.examples else {}
        classes = [name for name, count in counts.items() if count]
        if len(classes) < 2:
            raise DataError(f"{where}: got slices of {classes or 'no class'}, expected two classes or more")

    @property
    def skipped(self) -> str:
        """The reason why the stage will not be trained, as far as it is known before the training; "" otherwise."""
        if self.labels == "none":
            return "its labels are 'none'"
        return "" if self.examples and len(self.examples) else self.absent or "no data"


@dataclass(frozen=True)
class StagePlan:
    """A checked entry of a file of training stages. Its data has not been looked up yet."""

    name: str
    data: str
    target: str
    labels: str
    settings: Settings


def read_stages(source: str) -> tuple[StagePlan, ...]:
    """Reads the training stages of a published transfer, by its name, or of a file, by its path or URI.

    Raises UsageError, one line with file, stage and key, where the file cannot be read or has a wrong entry.
    """
    if source in PUBLISHED_STAGES:
        return parse_stages(PUBLISHED_STAGES[source], source)
    try:
        text = store.read_bytes(source, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"training stages: got {source!r}, which cannot be read ({store.one_line(error)}), expected a JSON file or "
            f"one of {', '.join(PUBLISHED_STAGES)}"
        ) from error
    return parse_stages(text, source)


def parse_stages(text: str, source: str) -> tuple[StagePlan, ...]:
    """Parses the training stages of a JSON text. source: its name in error messages. Raises UsageError."""
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{source}: not JSON ({store.one_line(error)})") from error
    if not isinstance(entries, list) or not entries:
        expected = f"a list of training stages, each with {', '.join(_KEYS)}"
        raise UsageError(f"{source}: got {str(entries)[:40]!r}, expected {expected}")
    plans = tuple(_parse_stage(entry, f"{source}: training stage {number}") for number, entry in enumerate(entries, 1))
    if plans[0].labels == "pseudo":
        raise UsageError(f"{source}: training stage 1: labels: got 'pseudo', expected a stage before it for the labels")
    return plans


def _parse_stage(entry: object, where: str) -> StagePlan:
    values = _checked_values(entry, where)
    where = f"{where} ({values['name']!r})"
    for key, choices in (("target", TARGETS), ("labels", LABELS)):
        if values[key] not in choices:
            raise UsageError(f"{where}: {key}: got {values[key]!r}, expected one of {', '.join(choices)}")
    if values["target"] == "unknown" and values["labels"] == "supervised":
        raise UsageError(f"{where}: labels: got 'supervised' for target 'unknown', expected pseudo or none")
    if values["target"] == "generator" and values["data"] not in ("", ATTRIBUTION):
        raise UsageError(f"{where}: data: got {values['data']!r}, expected {ATTRIBUTION!r} for target 'generator'")
    try:
        settings = Settings(**{key: values[key] for key in ("epochs", "optimiser", "rate", "batch", "patience")})
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    return StagePlan(values["name"], values["data"], values["target"], values["labels"], settings)


def _checked_values(entry: object, where: str) -> Mapping[str, Any]:
    """Returns the values of an entry, with defaults. Raises UsageError for wrong keys and values of a wrong type."""
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: got {str(entry)[:40]!r}, expected an object with {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise UsageError(f"{where}: got key {key!r}, expected one of {', '.join(_KEYS)}")
    values = _DEFAULTS | entry
    for key in _KEYS:
        if key not in values:
            raise UsageError(f"{where}: no key {key!r}, expected {', '.join(_KEYS)}")
        kind = type(_DEFAULTS.get(key, ""))
        if isinstance(values[key], bool) or not isinstance(values[key], (float, int) if kind is float else kind):
            raise UsageError(f"{where}: {key}: got {values[key]!r}, expected {_TYPE_NAMES[kind]}")
    return values


_TYPE_NAMES: dict[type, str] = {str: "text", int: "a whole number", float: "a number"}


def find_stages(plans: Sequence[StagePlan], catalog: Catalog) -> tuple[Stage, ...]:
    """Looks up the data of training stages. A stage without data is kept, without examples, and a warning names it.

    Raises DataError for a folder of classes that cannot be listed or has fewer than two classes.
    """
    stages = []
    for plan in plans:
        try:
            examples, absent = _examples(plan, catalog), ""
        except _AbsentError as error:
            examples, absent = None, str(error)
        stages.append(Stage(plan.name, examples, plan.labels, plan.settings, absent))
        if stages[-1].skipped:
            log.warning("training stage %r is skipped: %s", plan.name, stages[-1].skipped)
    return tuple(stages)


class _AbsentError(Exception):
    """The reason why a training stage has no data."""


def _examples(plan: StagePlan, catalog: Catalog) -> LabelledSlices | None:
    if plan.labels == "none":
        return None
    if not plan.data:
        raise _AbsentError("no data is named")
    if plan.target == "folders":
        if not store.exists(plan.data):
            raise _AbsentError(f"{plan.data} does not exist")
        return labelled_folders(plan.data)
    if plan.target in SET_TARGETS:
        return labelled(catalog, plan.target, _set_name(plan.data, catalog))
    if not len(catalog.known_generators()):
        raise _AbsentError("there are no labelled generators")
    return labelled(catalog, plan.target)


def _set_name(data: str, catalog: Catalog) -> str:
    """Returns the membership set that a stage names, by its name or as #1, #2, ...; raises _AbsentError."""
    sets = catalog.sets()
    if data.startswith("#") and data[1:].isdigit() and 1 <= int(data[1:]) <= len(sets):
        return sets[int(data[1:]) - 1]
    if data not in sets:
        raise _AbsentError(f"there is no set {data!r}, only {', '.join(sets) or 'none'}")
    return data


def labelled(catalog: Catalog, target: str, set: str = "") -> LabelledSlices:
    """Returns the slices of a target: `used`, `generated`, `generator` or `unknown`. set: a membership set's name.

    The classes of used are not_used and used; those of generated are real (used and not used) and generated; those of
    generator are the names of the generators; unknown has no classes. Only training slices get labels here, even where
    the truth of test slices is known. Files that the catalog marks as unreadable are left out. Raises DataError where a
    class is missing or no slices are left, UsageError for another target.
    """
    if target not in (*SET_TARGETS, "generator"):
        raise UsageError(f"target: got {target!r}, expected one of {[*SET_TARGETS, 'generator']}")
    where = "the attribution's training slices" if target == "generator" else f"set {set!r}"
    slices = _slices_of(catalog, target, set)
    if not len(slices):
        raise DataError(f"target {target!r}: got no slices of {where}, expected some")
    sources, groups, hashes = slices.sources(), slices.groups().tolist(), list(slices.hashes().values())
    if target == "unknown":
        return LabelledSlices.unlabelled(sources, groups, hashes)
    names, classes = _CLASSES[target](slices)
    present = [name for name in classes if name in names]
    if len(present) < 2:
        raise DataError(f"target {target!r}: got only {present} in {where}, expected two classes or more")
    labels = tuple(classes.index(name) for name in names)
    return LabelledSlices(tuple(sources), labels, tuple(groups), tuple(hashes), classes)


def _slices_of(catalog: Catalog, target: str, set: str) -> Catalog:
    """Returns the readable slices that a target is about."""
    if target == "generator":
        return catalog.known_generators().select(status="ok")
    if target == "unknown":
        return catalog.unknown(set).select(status="ok")
    training = catalog.of_set(set).select(split="train", status="ok")
    return training.where(training.column("role") != "generated") if target == "used" else training


def _used(slices: Catalog) -> tuple[list[str], tuple[str, ...]]:
    return slices.column("role").tolist(), ("not_used", "used")


def _generated(slices: Catalog) -> tuple[list[str], tuple[str, ...]]:
    return np.where(slices.column("role") == "generated", "generated", "real").tolist(), ("real", "generated")


def _generator(slices: Catalog) -> tuple[list[str], tuple[str, ...]]:
    names = slices.column("generator").tolist()
    return names, tuple(sorted(frozenset(names)))


# The class of each slice, and all classes in the order of their labels.
_CLASSES: dict[str, Callable[[Catalog], tuple[list[str], tuple[str, ...]]]] = {
    "used": _used,
    "generated": _generated,
    "generator": _generator,
}


def labelled_folders(folder: str) -> LabelledSlices:
    """Reads the images of a folder or URI that has one sub-folder per class; these may have sub-folders, too.

    Every file is a group of its own. Raises DataError where the folder cannot be listed or has fewer than two classes.
    """
    images = [(store.join(folder, path), path.split("/")[0]) for path in list_images(folder) if "/" in path]
    classes = tuple(sorted({name for _, name in images}))
    if len(classes) < 2:
        raise DataError(f"{folder}: got classes {list(classes)}, expected two or more sub-folders with images")
    slices = [
        (source, classes.index(name), uri, file.sha256)
        for (uri, name), file in zip(images, read_files([uri for uri, _ in images]), strict=True)
        for source in file.sources
    ]
    sources, labels, groups, hashes = map(tuple, zip(*slices, strict=True))
    return LabelledSlices(sources, labels, groups, hashes, classes)
