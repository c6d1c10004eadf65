"""Defines a recipe: one published system as data. Its published metrics are read from published_systems.csv."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gansfp.errors import UsageError
from gansfp.images.views import get_view

PUBLISHED_METRICS = (  # columns of the table
    *("train_f1_db1", "train_f1_db2", "train_f1_mean", "train_ari", "test_f1_mean"),
    *("db1_acc", "db1_prec", "db1_rec", "db1_f1", "db2_acc", "db2_prec", "db2_rec", "db2_f1"),
    *("test_acc", "test_prec", "test_spec", "test_rec", "test_ari"),
)
MEMBERSHIP_METHODS = (
    *("two_means", "classifier", "kmeans_per_class", "cluster_distance", "autoencoder_mse", "autoencoder_ssim"),
)
ATTRIBUTION_METHODS = ("kmeans", "hierarchical", "gmm")
STAGE_DATA = ("labelled", "unlabelled", "real_and_generated", "generators", "")
TARGETS = ("used", "generated", "generator")
SCOPES = ("sets_in_order", "first_set", "each_set", "attribution")

_TABLE = Path(__file__).with_name("published_systems.csv")


@dataclass(frozen=True)
class PlannedStage:
    """One training stage. The network of each stage starts from the weights of the stage before.

    data: "labelled": the real slices that are labelled used or not used; "unlabelled": the unknown real slices;
    "real_and_generated"; "generators": the training slices of the known generators; "": data that only the user can
    give. Without them the stage is skipped and a warning is logged.
    labels: "supervised"; "pseudo": the classes that the network so far predicts; "none": the stage has no labels and
    is skipped.
    """

    name: str
    data: str
    labels: str = "supervised"

    def __post_init__(self) -> None:
        _check("stage data", self.data, STAGE_DATA)
        _check("stage labels", self.labels, ("supervised", "pseudo", "none"))


@dataclass(frozen=True)
class TrainingPlan:
    """How a recipe's network is trained.

    kind: "classifier" or "autoencoder".
    target: the classes of a classifier: "used" against not used, "generated" against real, or the "generator";
    "" for an autoencoder.
    scope: "sets_in_order": one network is trained on each membership set in turn, and then serves all sets;
    "first_set": one network is trained on the first set and serves all sets; "each_set": each set has its own network;
    "attribution": one network is trained on the known generators.
    stages: the training stages of a classifier. An autoencoder has none: it is trained on the generated slices of its
    set.

    optimiser: "sgd" (momentum 0.9) or "adam". rate: learning rate. batch: slices in a step. patience: training stops
    after this many epochs without a better validation loss; 0: it never stops early. held_out: share of the groups
    that is used for validation.
    head: "linear", or "dropout_dense": dropout, then one sigmoid output trained with binary cross-entropy.
    augmentation: "" or the name of an augmentation. copies: how many times each labelled real slice is repeated; each
    copy is augmented at random.
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
    """One published system. Raises UsageError for a value that a recipe cannot have.

    id, paper, run: as in the table. task: "membership" or "attribution". view: a view of gansfp.images.views.
    model: a timm name, "lbp" or "autoencoder". features: "pooled", "flat", "histogram", "output" (of a classifier) or
    "error" (of an autoencoder). size: pixels a side of the input. weights: the weights that the network starts from,
    "imagenet" or "none". preprocess: "timm": the normalisation of each model's own weights. dimensions: the number of
    features that the paper gives, after PCA; 0 where it gives none.

    upscale: "" or "esrgan": super-resolution by 4 of the real slices, before everything else. pca: the share of the
    variance that PCA keeps; 0: no PCA. standardise: z-scores before PCA. method: one of MEMBERSHIP_METHODS or
    ATTRIBUTION_METHODS. metric, linkage, representation ("centroid"), init and covariance are settings of the method;
    "" where the method does not have the setting. k: the number of clusters: of each class, of the generated slices or
    of the test slices; 0 for none. k_train: the number of clusters of the training slices; 0 where the paper does not
    cluster them. rule: "min" or "avg" of the distances to the clusters. threshold: how a slice is decided: "majority"
    of a cluster's labelled slices, "half" of the probability, "nearest_centre", "median", "nearest_mean" or
    "most_similar" mean image; "" for attribution.

    note: remarks of the table, above all contradictions in the paper. assumed: one phrase for each detail that the
    paper leaves open.
    """

    paper: str
    task: str
    method: str
    k: int
    assumed: tuple[str, ...]
    id: int = 0
    name: str = ""
    run: str = ""
    view: str = "full"
    model: str = ""
    features: str = "pooled"
    size: int = 224
    weights: str = "imagenet"
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
        """The backbone before any training, as gansfp.embedding.backbones parses it, at `size` pixels.

        "" for an autoencoder, which is not a backbone. `BACKBONE@FOLDER` names the same backbone after a training.
        """
        if self.model == "autoencoder":
            return ""
        return "lbp" if self.model == "lbp" else f"{self.model}{':flat' * (self.features == 'flat')}:{self.size}"

    @property
    def published(self) -> dict[str, float]:
        """The paper's PUBLISHED_METRICS; nan where the paper gives none."""
        return published_metrics(self.id)


def published_metrics(recipe: int) -> dict[str, float]:
    """Returns the PUBLISHED_METRICS of the recipe with this id, as the paper printed them; nan where it gives none."""
    row = published_rows()[recipe]
    return {name: float(row[name]) if row[name] else float("nan") for name in PUBLISHED_METRICS}


@cache
def published_rows() -> dict[int, dict[str, str]]:
    """Reads published_systems.csv; returns its rows by id, with all values as text."""
    with _TABLE.open(encoding="utf-8", newline="") as lines:
        return {int(row["id"]): row for row in csv.DictReader(lines)}


def _check(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"recipe {field}: got {value!r}, expected one of {list(allowed)}")
