"""The published systems as data: what each paper did, what it leaves open, and which default stands in.

Papers: KDE-med-lab 2024 (km24), KDE Lab 2024 (kl24), KDE-lab 2023 (k23), Biomedical Imaging Goa 2024 (goa24) and AI
Multimedia Lab 2024 (aim24), all at ImageCLEFmedical GANs. A recipe is only data: decision rules are in rules.py,
training is in gansfp.training. Published metrics and remarks are read from published_systems.csv.

A recipe's name is PAPER-t1|t2[-NUMBER][-VIEW]-BACKBONE[-DETAIL]. t1 is membership, t2 is attribution. NUMBER is the
paper's number of its run, where every run of the paper has one; for task 2 of AI Multimedia Lab it is the id in the
table. VIEW is left out when it is "full".

To add a system, add its row to published_systems.csv and its recipe here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gansfp.errors import UsageError
from gansfp.published.recipe import PlannedStage, Recipe, TrainingPlan, published_rows

_PAPERS = {
    "km24": "KDE-med-lab 2024",
    "kl24": "KDE Lab 2024",
    "k23": "KDE-lab 2023",
    "goa24": "Biomedical Imaging Goa 2024",
    "aim24": "AI Multimedia Lab 2024",
}
_PAPER_KEYS = {paper: key for key, paper in _PAPERS.items()}
_TASKS = {"membership": "t1", "attribution": "t2"}
_MODELS = {  # the paper's name of a network -> timm's name, where they differ
    "swin": "swin_tiny_patch4_window7_224",
    "mobilenetv2": "mobilenetv2_100",
    "vit_b_32": "vit_base_patch32_224",
    "vgg11": "vgg11_1000",
}

# Where a paper's text contradicts its tables. The metrics are those of the tables. These remarks follow the note of
# the system's row in published_systems.csv.
_CONTRADICTIONS = {
    1: "the abstract's 50.6 % is its accuracy on the first set, though Swin has the best F1",
    2: "the text gives it the best precision on the first set, .495, where the unmasked DenseNet has .509",
    3: "the text gives it the best recall on the second set, .505, where the unmasked DenseNet has .521",
    6: "degenerate: next to nothing is called used",
    35: "the text calls .5385 the first set's best F1; it is the mean of both sets",
    38: "the text calls .62753 the second set's best F1; it is the mean of both sets",
    54: "the abstract says .996; the closing text swaps it with DenseNet",
    60: "the closing text swaps it with MobileNetV2",
}

NORMALISED = "grey levels normalised as timm's weights were trained, not as Keras does it"
WHOLE_SLICE = "the whole slice resized, no centre crop"
LUNG_MASK = "lung mask as --lungs says: the paper's U-Net is not published"
TEN_STARTS = "k-means with 10 starts"
ONLY_TEST = "only the test slices are clustered"


def _complete(recipe: Recipe, network: str, number: str = "", detail: str = "") -> Recipe:
    """Returns the recipe with its name, its model and its note. network: the paper's name of the network."""
    view = "" if recipe.view == "full" else recipe.view.removesuffix("_uncropped")
    name = (_PAPER_KEYS[recipe.paper], _TASKS[recipe.task], number, view, network.replace("_", "-"), detail)
    notes = (published_rows()[recipe.id]["note"], _CONTRADICTIONS.get(recipe.id, ""))
    return replace(
        recipe,
        name="-".join(part for part in name if part),
        model=_MODELS.get(network, network),
        note="; ".join(note for note in notes if note),
    )


def _km24() -> Iterator[Recipe]:
    """KDE-med-lab 2024: networks are fine-tuned on the labelled slices, then k-means clusters their features."""
    by_set = TrainingPlan("used", "sets_in_order", (PlannedStage("each set", "labelled"),), "sgd", 1e-3, 256, 50, 10)
    stages = (PlannedStage("known generators", "generators"),)
    by_generator = replace(by_set, target="generator", scope="attribution", stages=stages)
    open_points = (
        "ImageNet's starting weights",
        "features of the last pooling layer",
        "input 224 pixels",
        NORMALISED,
        WHOLE_SLICE,
        "early stopping after 10 epochs without a better validation loss, 80/20 split by group",
    )
    clustered_together = (
        "k-means on labelled and unknown real slices together, 10 starts",
        "a cluster gets the label of most of its labelled slices; in a tie: not used",
        "the network after the last set serves all sets",
    )
    membership = Recipe(_PAPERS["km24"], "membership", "two_means", 2, (*open_points, *clustered_together))
    membership = replace(membership, metric="euclidean", threshold="majority", training=by_set)
    attribution = Recipe(_PAPERS["km24"], "attribution", "kmeans", 4, (*open_points, ONLY_TEST, TEN_STARTS))
    attribution = replace(attribution, metric="euclidean", training=by_generator)
    masked = (LUNG_MASK, "outside the lungs zero, no crop")
    inception = ("inception_resnet_v2", "inception_v3")
    for base, first, networks in (
        (membership, 1, ("swin", *inception, "densenet121", "efficientnet_b3")),
        (attribution, 7, ("resnet18", "densenet121", inception[0], "efficientnet_b3", inception[1])),
    ):
        yield _complete(replace(base, id=first), "densenet121")
        for row, network in enumerate(networks, first + 1):
            assumed = (*base.assumed, *masked, *(("Swin-Tiny",) if network == "swin" else ()))
            yield _complete(replace(base, id=row, view="lungs_uncropped", assumed=assumed), network)


def _kl24() -> Iterator[Recipe]:
    """KDE Lab 2024: a classifier of real slices, each augmented fifty times, against generated ones.

    The fourth system enlarges the real slices first.
    """
    stages = (PlannedStage("real against generated", "real_and_generated"),)
    plan = TrainingPlan("generated", "first_set", stages, optimiser="adam", rate=1e-4, batch=32, epochs=50, patience=0)
    plan = replace(plan, head="dropout_dense", augmentation="kde-lab-2024", copies=50)
    open_points = (
        "what looks generated is called used: the paper does not map real/generated to used/not used",
        "trained only on the labelled and the generated slices of the first set",
        "batches of 32 slices, dropout of one half, generated slices not augmented",
        "best epoch of an 80/20 split by group",
        NORMALISED,
        WHOLE_SLICE,
    )
    base = Recipe(_PAPERS["kl24"], "membership", "classifier", 0, open_points)
    base = replace(base, features="output", threshold="half", training=plan)
    for number, network in enumerate(("mobilenetv2", "densenet121", "resnet50"), 1):
        yield _complete(replace(base, id=12 + number, run=f"Method{number}"), network, str(number))
    assumed = (*open_points, "generated slices resized to 896 pixels")
    enlarged = replace(base, id=16, run="Method4", size=896, weights="none", upscale="esrgan", assumed=assumed)
    yield _complete(enlarged, "mobilenetv2", "4", "superres")


def _k23() -> Iterator[Recipe]:
    """KDE-lab 2023: four training stages. The first two need data that the user has to give."""
    stages = (
        PlannedStage("natural images, tampered or authentic", ""),
        PlannedStage("COVID-19 CT", ""),
        PlannedStage("labelled real slices", "labelled"),
        PlannedStage("unknown real slices", "unlabelled", "none"),
    )
    plan = TrainingPlan("used", "each_set", stages, optimiser="sgd", rate=1e-3, batch=256, epochs=200, patience=10)
    open_points = (
        "transductive: the paper's fourth stage uses the test slices and does not say with which labels; left out, "
        "pseudo-labels where asked for",
        "stages whose data are not given are skipped",
        "input 224 pixels",
        NORMALISED,
        WHOLE_SLICE,
        "early stopping after 10 epochs without a better validation loss, split by group",
        "slices are two-dimensional",
    )
    for row, number, network in ((17, 1, "conv5"), (18, 3, "resnet18"), (19, 4, "vgg11"), (20, 5, "vit_b_32")):
        weights, start = ("none", "random") if network == "conv5" else ("imagenet", "ImageNet's")
        assumed = (*open_points, f"{start} starting weights")
        recipe = Recipe(_PAPERS["k23"], "membership", "classifier", 0, assumed, id=row, run=f"Submission{number}")
        recipe = replace(recipe, weights=weights, features="output", threshold="half", training=plan)
        yield _complete(recipe, network, str(number))


def _goa24() -> Iterator[Recipe]:
    """Biomedical Imaging Goa 2024: nearest k-means centre of the two classes, and Gaussian mixtures."""
    open_points = ("input 224 pixels", NORMALISED, WHOLE_SLICE)
    assumed = (*open_points, "centres of each set's own labelled slices", TEN_STARTS)
    for row, run, k in ((21, 876, 1), (22, 877, 2), (23, 898, 4), (24, 875, 8), (25, 874, 16), (26, 873, 32)):
        nearest = Recipe(_PAPERS["goa24"], "membership", "kmeans_per_class", k, assumed, id=row, run=f"id {run}")
        nearest = replace(nearest, metric="manhattan", threshold="nearest_centre", dimensions=2048)
        yield _complete(nearest, "resnet50", str(run), f"k{k}")
    assumed = (*open_points, "full covariances, 1e-6 added to their diagonals", ONLY_TEST)
    for row, init in enumerate(("kmeans", "k-means++", "random", "random_from_data"), 27):
        mixture = Recipe(_PAPERS["goa24"], "attribution", "gmm", 4, assumed, id=row, run=f"init {init}")
        mixture = replace(mixture, init=init, covariance="full", dimensions=2048)
        detail = "gmm-" + init.replace("k-means++", "kmeanspp").replace("_", "-")
        yield _complete(mixture, "resnet50", detail=detail)


def _aim24_membership() -> Iterator[Recipe]:
    """AI Multimedia Lab 2024, task 1: distance to clusters of the generated slices."""
    open_points = (
        "threshold: median split",
        "linkage: Ward",
        "metric: euclidean",
        "distance to a cluster: to its centroid",
        "clusters of the test's generated slices; where the test has none, of the training's",
        NORMALISED,
        WHOLE_SLICE,
    )
    runs = (
        ("full", "densenet121", 50, "min"),
        ("full", "resnet50", 8, "min"),
        ("lungs", "resnet50", 4, "avg"),
        ("lungs", "densenet121", 20, "avg"),
        ("outer", "resnet50", 10, "min"),
        ("outer", "densenet121", 60, "min"),
    )
    for number, (view, network, k, rule) in enumerate(runs, 1):
        size = "input 256 pixels, as 8x8 feature maps imply" + (" for DenseNet" if network == "resnet50" else "")
        assumed = (*open_points, size, *(() if view == "full" else (LUNG_MASK,)))
        recipe = Recipe(
            _PAPERS["aim24"],
            "membership",
            "cluster_distance",
            k,
            assumed,
            id=30 + number,
            run=f"#{number}",
            view=view,
            size=256,
            dimensions=2048 if network == "resnet50" else 1024,
            metric="euclidean",
            linkage="ward",
            representation="centroid",
            rule=rule,
            threshold="median",
        )
        yield _complete(recipe, network, str(number), f"{rule}{k}")


def _aim24_autoencoders() -> Iterator[Recipe]:
    """AI Multimedia Lab 2024, task 1: errors of an autoencoder that is trained on the generated slices."""
    plan = TrainingPlan("", "each_set", (), "adam", 1e-3, 64, 50, 10, kind="autoencoder", held_out=0.15)
    open_points = (
        "autoencoder: convolutions of 32, 64, 128 and 256 channels, 128 latent numbers, mean squared error",
        "Adam 1e-3, batches of 64, 50 epochs, early stopping after 10, 15 % of the slices held out",
        "input 256 pixels",
        "one autoencoder for each set, trained on all its generated slices",
        "class means of the set's own labelled slices",
    )
    similarity = "SSIM with scikit-image's defaults, range of the error images"
    for number, detail, threshold, assumed in (
        (7, "mse", "nearest_mean", open_points),
        (8, "ssim", "most_similar", (*open_points, similarity)),
    ):
        recipe = Recipe(_PAPERS["aim24"], "membership", f"autoencoder_{detail}", 0, assumed, id=30 + number)
        recipe = replace(recipe, run=f"#{number}", size=256, weights="none", features="error", training=plan)
        yield _complete(replace(recipe, threshold=threshold), "autoencoder", str(number), detail)


def _aim24_attribution() -> Iterator[Recipe]:
    """AI Multimedia Lab 2024, task 2: k-means and hierarchical clusters of eleven kinds of features."""
    # network, share of the variance that PCA keeps, dimensions, the paper's runs with k-means and with Ward's linkage
    features = (
        ("vgg16", 0, 25088, ("", "")),
        ("vgg16", 0.95, 351, ("#8", "#7")),
        ("vgg16", 0.9, 235, ("", "")),
        ("lbp", 0, 1, ("#4", "#3")),
        ("resnet50", 0, 2048, ("#10", "#9")),
        ("resnet50", 0.95, 152, ("", "")),
        ("resnet50", 0.9, 78, ("", "")),
        ("mobilenetv2", 0, 1280, ("#6", "#5")),
        ("efficientnet_b0", 0, 1280, ("", "")),
        ("efficientnet_b0", 0.95, 3, ("", "")),
        ("densenet121", 0, 1024, ("#2", "#1")),
    )
    for row, (network, pca, dimensions, runs) in zip(range(39, 61, 2), features, strict=True):
        open_points = _aim24_open_points(network, pca)
        kmeans = Recipe(_PAPERS["aim24"], "attribution", "kmeans", 4, (*open_points, TEN_STARTS), id=row, run=runs[0])
        kmeans = replace(kmeans, dimensions=dimensions, pca=pca, metric="euclidean", k_train=3)
        if network == "lbp":
            kmeans = replace(kmeans, features="histogram", size=256, weights="none")
        if network == "vgg16":
            kmeans = replace(kmeans, features="flat")
        assumed = (*open_points, "linkage: Ward")
        ward = replace(kmeans, id=row + 1, run=runs[1], method="hierarchical", linkage="ward", assumed=assumed)
        share = f"pca{pca * 100:.0f}-" if pca else ""
        yield _complete(kmeans, network, str(row), f"{share}kmeans")
        yield _complete(ward, network, str(row + 1), f"{share}ward")


def _aim24_open_points(network: str, pca: float) -> tuple[str, ...]:
    """Returns what the paper leaves open about its features for attribution."""
    fitted = "PCA fitted to the slices that are clustered, not whitened, features not standardised"
    clustering = (*((fitted,) if pca else ()), ONLY_TEST)
    if network == "lbp":
        histogram = (
            "LBP: histogram of uniform patterns, 8 neighbours, radius 1, of the slice at its own 256 pixels; "
            "the table's one feature would be lbp-mean"
        )
        return (histogram, *clustering)
    features = "VGG16's 25,088 features" if network == "vgg16" else "VGG16's features"
    return (f"{NORMALISED}; {WHOLE_SLICE}", f"input 224 pixels, as {features} imply", *clustering)


def find(names: Sequence[str | int]) -> list[Recipe]:
    """Returns the recipes with these ids and names, ordered by id, each once; "all" stands for all of them.

    Raises UsageError for an unknown name, with similar names, and for an empty list.
    """
    chosen: set[int] = set()
    for name in (str(name).strip() for name in names):
        matches = [recipe.id for recipe in RECIPES if name in (str(recipe.id), recipe.name, "all")]
        if not matches:
            raise UsageError(_unknown_name(name))
        chosen.update(matches)
    if not chosen:
        raise UsageError("system: got none, expected ids, names or all")
    return [recipe for recipe in RECIPES if recipe.id in chosen]


def _unknown_name(name: str) -> str:
    names = [recipe.name for recipe in RECIPES]
    similar = difflib.get_close_matches(name, names, 3, 0.4) or [known for known in names if name in known][:3]
    hint = f" (near: {', '.join(similar)})" if similar else ""
    return f"system: got {name!r}, expected an id from 1 to {len(RECIPES)}, a name{hint} or all"


RECIPES: tuple[Recipe, ...] = (
    *(*_km24(), *_kl24(), *_k23(), *_goa24()),
    *(*_aim24_membership(), *_aim24_autoencoders(), *_aim24_attribution()),
)
