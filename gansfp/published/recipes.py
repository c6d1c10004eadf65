"""The 60 published systems as data: what each paper did, what it leaves open and which default stands in, its figures.

Papers: KDE-med-lab 2024 (km24), KDE Lab 2024 (kl24), KDE-lab 2023 (k23), Biomedical Imaging Goa 2024 (goa24) and AI
Multimedia Lab 2024 (aim24), all at ImageCLEFmedical GANs. A recipe says, it does nothing: decision rules are in
published.py, training in classifiers.py and autoencoder.py. Figures and remarks are read from published_systems.csv.

A recipe's name is PAPER-t1|t2[-NUMBER][-VIEW]-BACKBONE[-DETAIL]: t1 is membership, t2 attribution; NUMBER is the
paper's for its run where every run has one, for AI Multimedia Lab's task 2 the table's id; VIEW is left out when full.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from gansfp.errors import UsageError
from gansfp.published.recipe import PlannedStage, Recipe, TrainingPlan, table

_PAPERS = {
    "km24": "KDE-med-lab 2024",
    "kl24": "KDE Lab 2024",
    "k23": "KDE-lab 2023",
    "goa24": "Biomedical Imaging Goa 2024",
    "aim24": "AI Multimedia Lab 2024",
}
_TASKS = {"membership": "t1", "attribution": "t2"}
_MODELS = {  # what the papers call a network -> what timm does, where they differ
    "swin": "swin_tiny_patch4_window7_224",
    "mobilenetv2": "mobilenetv2_100",
    "vit_b_32": "vit_base_patch32_224",
    "vgg11": "vgg11_1000",
}

# Where a paper's text says otherwise than its tables, whose figures are taken; beside the notes there.
_CONTRADICTED = {
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
TEST_ALONE = "clusters of the test slices alone"


def _recipe(place: tuple[int, str, str, str, str], number: str = "", detail: str = "", **rest: Any) -> Recipe:
    """A recipe with its name, its model and what the table remarks.

    place: the table's id, the paper's key, the task, the run, and the network as the paper calls it.
    """
    row, key, task, run, network = place
    view = rest.setdefault("view", "full")
    seen = "" if view == "full" else view.removesuffix("_uncropped")
    parts = (key, _TASKS[task], number, seen, network.replace("_", "-"), detail)
    return Recipe(
        id=row,
        name="-".join(part for part in parts if part),
        paper=_PAPERS[key],
        task=task,
        run=run,
        model=_MODELS.get(network, network),
        note="; ".join(said for said in (table()[row]["note"], _CONTRADICTED.get(row, "")) if said),
        **{"weights": "imagenet", "features": "pooled", "size": 224, **rest},
    )


def _km24() -> Iterator[Recipe]:
    """KDE-med-lab 2024: networks fine-tuned on the labelled slices, then k-means on their features."""
    schedule: dict[str, Any] = {"optimiser": "sgd", "rate": 1e-3, "batch": 256, "epochs": 50, "patience": 10}
    by_set = TrainingPlan("used", "sets_in_order", (PlannedStage("each set", "labelled"),), **schedule)
    by_generator = TrainingPlan(
        "generator", "attribution", (PlannedStage("known generators", "generators"),), **schedule
    )
    open_points = (
        "ImageNet's starting weights",
        "features of the last pooling",
        "input 224 pixels",
        NORMALISED,
        WHOLE_SLICE,
        "early stopping after 10 epochs without a better validation loss, 80/20 split by group",
    )
    membership: dict[str, Any] = {
        "method": "two_means",
        "metric": "euclidean",
        "k": 2,
        "threshold": "majority",
        "training": by_set,
    }
    attribution: dict[str, Any] = {"method": "kmeans", "metric": "euclidean", "k": 4, "training": by_generator}
    decided = (
        "k-means on labelled and unknown real slices together, 10 starts",
        "a cluster is what most of its labelled slices are, in a tie not used",
        "the network after the last set serves all sets",
    )
    masked = (LUNG_MASK, "outside the lungs zero, no crop")
    inception = ("inception_resnet_v2", "inception_v3")
    for task, first, networks, how, open_here in (
        ("membership", 1, ("swin", *inception, "densenet121", "efficientnet_b3"), membership, decided),
        (
            "attribution",
            7,
            ("resnet18", "densenet121", inception[0], "efficientnet_b3", inception[1]),
            attribution,
            (TEST_ALONE, "k-means with 10 starts"),
        ),
    ):
        yield _recipe((first, "km24", task, "", "densenet121"), assumed=(*open_points, *open_here), **how)
        for row, network in enumerate(networks, first + 1):
            assumed = (*open_points, *open_here, *masked, *(("Swin-Tiny",) if network == "swin" else ()))
            yield _recipe((row, "km24", task, "", network), view="lungs_uncropped", assumed=assumed, **how)


def _kl24() -> Iterator[Recipe]:
    """KDE Lab 2024: real, augmented fifty times, against generated; the fourth enlarges the real slices first."""
    stages = (PlannedStage("real against generated", "real_and_generated"),)
    schedule: dict[str, Any] = {"optimiser": "adam", "rate": 1e-4, "batch": 32, "epochs": 50, "patience": 0}
    augmented: dict[str, Any] = {"head": "dropout_dense", "augmentation": "kde-lab-2024", "copies": 50}
    plan = TrainingPlan("generated", "first_set", stages, **schedule, **augmented)
    decided: dict[str, Any] = {"features": "output", "method": "classifier", "k": 0, "threshold": "half"}
    enlarged: dict[str, Any] = {"detail": "superres", "size": 896, "weights": "none", "upscale": "esrgan"}
    open_points = (
        "what looks generated is called used: the paper does not map real/generated to used/not used",
        "trained on the labelled slices and the generated ones of the first set alone",
        "batches of 32 slices, dropout of one half, generated slices not augmented",
        "best epoch of an 80/20 split by group",
        NORMALISED,
        WHOLE_SLICE,
    )
    for number, network in enumerate(("mobilenetv2", "densenet121", "resnet50", "mobilenetv2"), 1):
        more = enlarged if number == 4 else {}
        assumed = (*open_points, "generated slices resized to 896 pixels") if more else open_points
        place = (12 + number, "kl24", "membership", f"Method{number}", network)
        yield _recipe(place, number=str(number), **decided, **more, training=plan, assumed=assumed)


def _k23() -> Iterator[Recipe]:
    """KDE-lab 2023: four-stage transfer, of which the first two need data that the user has to give."""
    stages = (
        PlannedStage("natural images, tampered or authentic", ""),
        PlannedStage("COVID-19 CT", ""),
        PlannedStage("labelled real slices", "labelled"),
        PlannedStage("unknown real slices", "unlabelled", "none"),
    )
    plan = TrainingPlan("used", "each_set", stages, optimiser="sgd", rate=1e-3, batch=256, epochs=200, patience=10)
    decided: dict[str, Any] = {"features": "output", "method": "classifier", "k": 0, "threshold": "half"}
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
        place = (row, "k23", "membership", f"Submission{number}", network)
        yield _recipe(place, number=str(number), weights=weights, **decided, training=plan, assumed=assumed)


def _goa24() -> Iterator[Recipe]:
    """Biomedical Imaging Goa 2024: nearest k-means centre of either class, and Gaussian mixtures."""
    open_points = ("input 224 pixels", NORMALISED, WHOLE_SLICE)
    centres = (*open_points, "centres of each set's own labelled slices", "k-means with 10 starts")
    nearest: dict[str, Any] = {"method": "kmeans_per_class", "metric": "manhattan", "threshold": "nearest_centre"}
    for row, run, k in ((21, 876, 1), (22, 877, 2), (23, 898, 4), (24, 875, 8), (25, 874, 16), (26, 873, 32)):
        place = (row, "goa24", "membership", f"id {run}", "resnet50")
        yield _recipe(place, str(run), f"k{k}", **nearest, dimensions=2048, k=k, assumed=centres)
    mixed = (*open_points, "full covariances, 1e-6 added to their diagonals", TEST_ALONE)
    mixture: dict[str, Any] = {"method": "gmm", "covariance": "full", "k": 4, "assumed": mixed}
    for row, init in enumerate(("kmeans", "k-means++", "random", "random_from_data"), 27):
        detail = "gmm-" + init.replace("k-means++", "kmeanspp").replace("_", "-")
        place = (row, "goa24", "attribution", f"init {init}", "resnet50")
        yield _recipe(place, detail=detail, init=init, dimensions=2048, **mixture)


def _aim24_membership() -> Iterator[Recipe]:
    """AI Multimedia Lab 2024, task 1: distance to clusters of the generated slices."""
    open_points = (
        "threshold: median split",
        "linkage: Ward",
        "metric: euclidean",
        "distance to a cluster: to its centroid",
        "clusters of the test's generated slices, or of the training's where it has none",
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
    how: dict[str, Any] = {"method": "cluster_distance", "linkage": "ward", "metric": "euclidean"}
    for number, (view, network, k, rule) in enumerate(runs, 1):
        sized = "input 256 pixels, as 8x8 feature maps imply" + (" for DenseNet" if network == "resnet50" else "")
        yield _recipe(
            (30 + number, "aim24", "membership", f"#{number}", network),
            str(number),
            f"{rule}{k}",
            **how,
            view=view,
            size=256,
            k=k,
            rule=rule,
            dimensions=2048 if network == "resnet50" else 1024,
            representation="centroid",
            threshold="median",
            assumed=(*open_points, sized, *(() if view == "full" else (LUNG_MASK,))),
        )


def _aim24_autoencoders() -> Iterator[Recipe]:
    """AI Multimedia Lab 2024, task 1: errors of an autoencoder of the generated slices."""
    schedule: dict[str, Any] = {"optimiser": "adam", "rate": 1e-3, "batch": 64, "epochs": 50, "patience": 10}
    plan = TrainingPlan("", "each_set", (), **schedule, kind="autoencoder", held_out=0.15)
    open_points = (
        "autoencoder: convolutions of 32, 64, 128 and 256 channels, 128 latent numbers, mean squared error",
        "Adam 1e-3, batches of 64, 50 epochs, early stopping after 10, 15 % of the slices held out",
        "input 256 pixels",
        "one autoencoder a set, of all its generated slices",
        "class means of the set's own labelled slices",
    )
    similar = "SSIM with scikit-image's defaults, range of the error images"
    network: dict[str, Any] = {"size": 256, "weights": "none", "features": "error", "k": 0, "training": plan}
    for number, detail, threshold, more in ((7, "mse", "nearest_mean", ()), (8, "ssim", "most_similar", (similar,))):
        yield _recipe(
            (30 + number, "aim24", "membership", f"#{number}", "autoencoder"),
            str(number),
            detail,
            **network,
            method=f"autoencoder_{detail}",
            threshold=threshold,
            assumed=(*open_points, *more),
        )


def _aim24_attribution() -> Iterator[Recipe]:
    """AI Multimedia Lab 2024, task 2: k-means and hierarchical clusters of eleven kinds of features."""
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
    of_method = {"kmeans": "k-means with 10 starts", "hierarchical": "linkage: Ward"}
    for place, (network, pca, dimensions, runs) in enumerate(features):
        lbp = network == "lbp"
        open_points = (
            "LBP: histogram of uniform patterns, 8 neighbours, radius 1, of the slice at its own 256 pixels; "
            "the table's one feature would be lbp-mean"
            if lbp
            else f"{NORMALISED}; {WHOLE_SLICE}",
            *(("input 224 pixels, as VGG16's 25,088 features imply",) if network == "vgg16" else ()),
            *(("input 224 pixels, as VGG16's features imply",) if network not in ("vgg16", "lbp") else ()),
            *(("PCA fitted to the slices that are clustered, not whitened, features not standardised",) if pca else ()),
            TEST_ALONE,
        )
        for second, method in enumerate(of_method):
            row = 39 + 2 * place + second
            parts = (f"pca{pca * 100:.0f}" if pca else "", "ward" if second else "kmeans")
            yield _recipe(
                (row, "aim24", "attribution", runs[second], network),
                str(row),
                "-".join(part for part in parts if part),
                size=256 if lbp else 224,
                weights="none" if lbp else "imagenet",
                features={"lbp": "histogram", "vgg16": "flat"}.get(network, "pooled"),
                dimensions=dimensions,
                pca=pca,
                method=method,
                metric="euclidean",
                linkage="ward" if second else "",
                k=4,
                k_train=3,
                assumed=(*open_points, of_method[method]),
            )


def find(names: Sequence[str | int]) -> list[Recipe]:
    """The recipes of these ids and names, in order of their ids, each once; "all" is all of them.

    Raises UsageError, with names that are near, for one that there is not, and for none at all.
    """
    chosen: set[int] = set()
    for name in (str(name).strip() for name in names):
        found = [r.id for r in RECIPES if name in (str(r.id), r.name, "all")]
        if not found:
            known = [r.name for r in RECIPES]
            near = difflib.get_close_matches(name, known, 3, 0.4) or [k for k in known if name in k][:3]
            hint = f" (near: {', '.join(near)})" if near else ""
            raise UsageError(f"system: got {name!r}, expected an id from 1 to {len(RECIPES)}, a name{hint} or all")
        chosen.update(found)
    if not chosen:
        raise UsageError("system: got none, expected ids, names or all")
    return [r for r in RECIPES if r.id in chosen]


RECIPES: tuple[Recipe, ...] = (
    *(*_km24(), *_kl24(), *_k23(), *_goa24()),
    *(*_aim24_membership(), *_aim24_autoencoders(), *_aim24_attribution()),
)
