"""What a recipe is: one published system as data, its figures read from published_systems.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gansfp.errors import UsageError
from gansfp.images.views import get_view

FIGURES = (
    *("train_f1_db1", "train_f1_db2", "train_f1_mean", "train_ari", "test_f1_mean"),
    *("db1_acc", "db1_prec", "db1_rec", "db1_f1", "db2_acc", "db2_prec", "db2_rec", "db2_f1"),
    *("test_acc", "test_prec", "test_spec", "test_rec", "test_ari"),
)
MEMBERSHIP_METHODS = (
    *("two_means", "classifier", "kmeans_per_class", "cluster_distance", "autoencoder_mse", "autoencoder_ssim"),
)
ATTRIBUTION_METHODS = ("kmeans", "hierarchical", "gmm")
DATA = ("labelled", "unlabelled", "real_and_generated", "generators", "")
TARGETS = ("used", "generated", "generator")
SCOPES = ("sets_in_order", "first_set", "each_set", "attribution")

_TABLE = Path(__file__).with_name("published_systems.csv")


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a training: weights go on from each to the next.

    data: "labelled", the real slices labelled used and not used; "unlabelled", the unknown ones; "real_and_generated";
    "generators", the training slices of known generators; "" for data that only the user can give, without which the
    stage is skipped with a warning. labels: "supervised", "pseudo" (what the model so far says of them), or "none":
    there are none, and the stage is skipped.
    """

    name: str
    data: str
    labels: str = "supervised"

    def __post_init__(self) -> None:
        _check("stage data", self.data, DATA)
        _check("stage labels", self.labels, ("supervised", "pseudo", "none"))


@dataclass(frozen=True)
class TrainingPlan:
    """How a recipe's network is trained.

    kind: "classifier" or "autoencoder". target: what a classifier tells apart: "used" from not used, "generated" from
    real, or which "generator"; "" for an autoencoder. scope: "sets_in_order", one model that goes through the stages
    with each membership set after the other and then serves them all; "first_set", one model of the first set for all;
    "each_set", a model of its own for each; "attribution", one of the known generators. stages: of a classifier; an
    autoencoder learns the generated slices of its set.

    optimiser: "sgd" (momentum 0.9) or "adam"; rate: learning rate; batch: slices a step; patience: epochs without a
    better validation loss before training stops, 0 for never; held_out: share of the groups that validates.
    head: "linear", or "dropout_dense": dropout, then one sigmoid under binary cross-entropy. augmentation: "" or the
    name of one; copies: how many times a labelled real slice is there, each time augmented anew.
    """

    target: str
    scope: str
    stages: tuple[PlannedStage, ...]
    optimiser: str
    rate: float
    batch: int
    epochs: int
    patience: int
    kind: str = "classifier"
    head: str = "linear"
    augmentation: str = ""
    copies: int = 1
    held_out: float = 0.2

    def __post_init__(self) -> None:
        _check("training kind", self.kind, ("classifier", "autoencoder"))
        _check("training target", self.target, TARGETS if self.kind == "classifier" else ("",))
        _check("training scope", self.scope, SCOPES)
        _check("optimiser", self.optimiser, ("sgd", "adam"))
        _check("head", self.head, ("linear", "dropout_dense"))
        _check("augmentation", self.augmentation, ("", "kde-lab-2024"))


@dataclass(frozen=True)
class Recipe:
    """One published system. Raises UsageError for a field that no recipe can have.

    paper, run: as the table names them. task: "membership" or "attribution". view: of gansfp.images.views. model: a timm
    name, "lbp" or "autoencoder"; features: "pooled", "flat", "histogram" or "error" (of an autoencoder); size: input
    in pixels a side; weights: those it starts from, "imagenet" or "none"; preprocess: "timm", each model's own
    normalisation; dimensions: the number of features that the paper gives, after PCA, 0 where it gives none.

    upscale: "" or "esrgan", x4 super-resolution of the real slices before all else. pca: share of the variance kept, 0
    for no PCA; standardise: z-scores before it. method: one of MEMBERSHIP_METHODS or ATTRIBUTION_METHODS; metric,
    linkage, representation ("centroid"), init and covariance belong to it and are "" where it has none. k: clusters, of
    each class, of the generated slices or of the test slices, 0 for none; k_train: clusters of the training slices, 0
    where the paper clusters none. rule: "min" or "avg" over the distances to clusters. threshold: what decides:
    "majority" of a cluster's labelled slices, "half" of the probability, "nearest_centre", "median", "nearest_mean" or
    "most_similar" mean image; "" for attribution.

    note: what the table remarks, contradictions of the paper above all. assumed: one phrase for each point that the
    paper leaves open.
    """

    id: int
    name: str
    paper: str
    task: str
    run: str
    view: str
    model: str
    features: str
    size: int
    weights: str
    method: str
    k: int
    assumed: tuple[str, ...]
    note: str = ""
    preprocess: str = "timm"
    dimensions: int = 0
    upscale: str = ""
    pca: float = 0
    standardise: bool = False
    metric: str = ""
    linkage: str = ""
    representation: str = ""
    init: str = ""
    covariance: str = ""
    k_train: int = 0
    rule: str = ""
    threshold: str = ""
    training: TrainingPlan | None = None

    def __post_init__(self) -> None:
        _check("task", self.task, ("membership", "attribution"))
        _check("method", self.method, MEMBERSHIP_METHODS if self.task == "membership" else ATTRIBUTION_METHODS)
        _check("weights", self.weights, ("imagenet", "none"))
        _check("upscale", self.upscale, ("", "esrgan"))
        _check("rule", self.rule, ("", "min", "avg"))
        get_view(self.view)

    @property
    def backbone(self) -> str:
        """The backbone as gansfp.embedding.backbones parses it, the whole slice at `size` pixels, before any training; "" for an
        autoencoder, which is none. `BACKBONE@FOLDER` is it after a training."""
        if self.model == "autoencoder":
            return ""
        return "lbp" if self.model == "lbp" else f"{self.model}{':flat' * (self.features == 'flat')}:{self.size}"

    @property
    def published(self) -> dict[str, float]:
        """The paper's FIGURES; nan where it gives none."""
        return published(self.id)


def published(recipe: int) -> dict[str, float]:
    """The FIGURES of the recipe of that id, as the paper printed them; nan where it gives none."""
    row = table()[recipe]
    return {name: float(row[name]) if row[name] else float("nan") for name in FIGURES}


@cache
def table() -> dict[int, dict[str, str]]:
    """The table's rows by id, all values as text."""
    with _TABLE.open(encoding="utf-8", newline="") as lines:
        return {int(row["id"]): row for row in csv.DictReader(lines)}


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"recipe {what}: got {value!r}, expected one of {list(known)}")
