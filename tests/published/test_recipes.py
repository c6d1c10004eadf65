"""Recipes against the table of published systems, row by row and column by column."""

import csv
import dataclasses
import math
import pickle
import re
from pathlib import Path

import pytest

import gansfp.published.recipe
from gansfp.embedding.backbones import parse_backbone
from gansfp.errors import UsageError
from gansfp.published.recipe import PUBLISHED_METRICS, PlannedStage, TrainingPlan, published_metrics
from gansfp.published.recipes import RECIPES, find

PACKAGED = Path(gansfp.published.recipe.__file__).with_name("published_systems.csv")
TABLE = {int(row["id"]): row for row in csv.DictReader(PACKAGED.read_text(encoding="utf-8").splitlines())}
FAMILIES = {
    "swin": "swin_tiny_patch4_window7_224",
    "mobilenetv2": "mobilenetv2_100",
    "vit_b_32": "vit_base_patch32_224",
    "vgg11": "vgg11_1000",
    "conv5 (5 convolution blocks, 512-d fc)": "conv5",
    "autoencoder trained on generated images": "autoencoder",
}
VIEWS = {
    ("AI Multimedia Lab 2024", "lungs"): "lungs",  # cropped to the lungs' box
    ("KDE-med-lab 2024", "lungs"): "lungs_uncropped",
}
METHODS = {
    "k-means into two classes": ("two_means",),
    "k-means": ("kmeans",),
    "hierarchical": ("hierarchical",),
    "gaussian mixture": ("gmm",),
    "binary classifier": ("classifier",),
    "k-means per class, class of the nearest centre": ("kmeans_per_class",),
    "hierarchical clusters of the generated images, distance of the real image to them": ("cluster_distance",),
    "autoencoder, mean MSE, nearest of the two class means": ("autoencoder_mse",),
    "autoencoder, SSIM to the two mean error images": ("autoencoder_ssim",),
}
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.name)


def test_the_packaged_table_is_the_reference(shared):
    reference = shared.parent / "reference" / "published_systems.csv"
    if not reference.is_file():
        pytest.skip("no reference beside this checkout")
    assert PACKAGED.read_bytes() == reference.read_bytes()


def test_sixty_recipes_in_order_each_with_a_name_of_its_own():
    assert [r.id for r in RECIPES] == list(range(1, 61)) == sorted(TABLE)
    names = {r.name for r in RECIPES}
    assert len(names) == 60
    assert all(re.fullmatch(r"(km24|kl24|k23|goa24|aim24)-t[12](-[a-z0-9]+)+", name) for name in names)
    assert {
        "aim24-t1-5-outer-resnet50-min10",
        "goa24-t1-873-resnet50-k32",
        "km24-t1-lungs-densenet121",
        "kl24-t1-4-mobilenetv2-superres",
        "k23-t1-1-conv5",
        "aim24-t2-53-mobilenetv2-kmeans",
    } <= names


@each_recipe
def test_what_it_is_agrees_with_the_table(recipe):
    row = TABLE[recipe.id]
    assert (recipe.paper, recipe.task, recipe.run) == (row["paper"], row["task"], row["run"])
    assert recipe.note.startswith(row["note"])
    assert recipe.view == VIEWS.get((row["paper"], row["mask"]), row["mask"])
    assert recipe.model == FAMILIES.get(row["backbone"], row["backbone"])
    if recipe.model in ("lbp", "autoencoder"):
        assert recipe.weights == "none", "they have no ImageNet weights, although the table says so"
    elif row["weights"] == "not stated":
        assert recipe.weights == ("none" if recipe.model == "conv5" else "imagenet")
    else:
        assert recipe.weights == row["weights"].removesuffix(" (not stated)")
    assert any("starting weights" in point for point in recipe.assumed) == ("not stated" in row["weights"])


@each_recipe
def test_its_numbers_agree_with_the_table(recipe):
    row = TABLE[recipe.id]
    stated = int(row["input_px"] or 0)
    if recipe.model == "lbp":
        assert (stated, recipe.size) == (224, 256)
        assert any("256 pixels" in point for point in recipe.assumed)
    elif stated:
        assert recipe.size == stated
    else:
        assert recipe.size == (256 if recipe.model == "autoencoder" else 224)
        assert f"input {recipe.size} pixels" in recipe.assumed
    features = row["features"]
    numbers = [int(n) for n in re.findall(r"\d+", features)]
    assert recipe.dimensions == (numbers[-1] if numbers else 0)
    kind = {"classifier output": "output", "reconstruction error": "error", "per-pixel error image": "error"}
    expected = {"vgg16": "flat", "lbp": "histogram"}.get(recipe.model, kind.get(features, "pooled"))
    assert recipe.features == expected
    assert recipe.pca == (0 if row["pca"] == "none" else int(row["pca"].rstrip("%")) / 100)
    assert not recipe.standardise


@each_recipe
def test_its_decision_agrees_with_the_table(recipe):
    row = TABLE[recipe.id]
    assert (recipe.method,) == METHODS[row["method"]]
    ks = {"": (0, 0), "3 train, 4 test": (4, 3)}.get(row["k"]) or (int(row["k"]), 0)
    assert (recipe.k, recipe.k_train) == ks
    if row["rule"] in ("min", "avg"):
        assert (recipe.rule, recipe.linkage, recipe.metric) == (row["rule"], "ward", "euclidean")
        assert (recipe.threshold, recipe.representation) == ("median", "centroid")
    elif row["rule"].startswith("init "):
        assert (f"init {recipe.init}", recipe.covariance) == (row["rule"], "full")
    elif row["rule"]:
        assert (row["rule"], recipe.metric) == ("manhattan to nearest centre", "manhattan")
    else:
        assert not recipe.rule
    assert (recipe.threshold == "") == (recipe.task == "attribution")


@each_recipe
def test_its_training_agrees_with_the_table(recipe):
    text, plan = TABLE[recipe.id]["training"], recipe.training
    assert (recipe.upscale == "esrgan") == ("ESRGAN x4" in text)
    if text == "none":
        assert plan is None or plan.kind == "autoencoder"
        assert (plan is None) == (recipe.model != "autoencoder")
        return
    assert plan.optimiser == ("sgd" if "SGD" in text else "adam")
    assert plan.rate == float(re.search(r"lr ([\d.e-]+)", text)[1])
    assert plan.epochs == int(re.search(r"(\d+) epochs", text)[1])
    if "batch" in text:
        assert plan.batch == int(re.search(r"batch (\d+)", text)[1])
    else:
        assert any(f"batches of {plan.batch}" in point for point in recipe.assumed)
    assert (plan.patience > 0) == ("early stopping" in text)
    assert (plan.head == "dropout_dense") == ("dropout + dense sigmoid, BCE" in text)
    assert plan.augmentation == ("kde-lab-2024" if "flip, zoom .97-1.03, rotation 10 deg, shift .05" in text else "")
    assert plan.copies == (50 if "x50 augmented" in text else 1)
    assert (
        plan.scope
        == {
            "two-": "sets_in_order",
            "fine": "attribution",
            "200 ": "first_set",
            "four": "each_set",
        }[text[:4]]
    )
    assert plan.target == {"two-": "used", "fine": "generator", "200 ": "generated", "four": "used"}[text[:4]]
    assert len(plan.stages) == (4 if text.startswith("four") else 1)
    if text.startswith("four"):
        assert [(s.data, s.labels) for s in plan.stages] == [
            ("", "supervised"),
            ("", "supervised"),
            ("labelled", "supervised"),
            ("unlabelled", "none"),
        ]
        assert any("transductive" in point for point in recipe.assumed)


@each_recipe
def test_every_published_figure_is_there(recipe):
    row = TABLE[recipe.id]
    first = list(row).index("train_f1_db1")
    assert list(recipe.published) == list(PUBLISHED_METRICS) == list(row)[first:-1]
    for name, value in published_metrics(recipe.id).items():
        assert math.isnan(value) if row[name] == "" else value == float(row[name])


@each_recipe
def test_its_backbone_is_one(recipe):
    if recipe.model == "autoencoder":
        assert recipe.backbone == ""
    else:
        backbone = parse_backbone(recipe.backbone)
        assert backbone.kind.name == ("lbp" if recipe.model == "lbp" else "timm")
        assert backbone.size == (0 if recipe.model == "lbp" else recipe.size)


@each_recipe
def test_what_a_paper_leaves_open_is_named(recipe):
    assert recipe.assumed
    assert all(point and "\n" not in point for point in recipe.assumed)
    assert len(set(recipe.assumed)) == len(recipe.assumed)
    named = " ".join(recipe.assumed)
    for needed, where in (
        ("median split", recipe.threshold == "median"),
        ("Ward", recipe.linkage == "ward"),
        ("lung mask", recipe.view != "full"),
        ("normalised as timm", recipe.model not in ("lbp", "autoencoder")),
        ("covariances", recipe.method == "gmm"),
        ("PCA fitted", recipe.pca > 0),
        ("what looks generated is called used", recipe.paper == "KDE Lab 2024"),
    ):
        assert (needed in named) == where, needed


def test_a_recipe_travels_and_can_be_scaled():
    recipe = RECIPES[15]
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert dataclasses.replace(recipe, size=64).backbone == "mobilenetv2_100:64"


def test_find_by_id_name_or_all():
    assert [r.id for r in find(["35", "goa24-t1-873-resnet50-k32", 2, "35"])] == [2, 26, 35]
    assert find(["all"]) == list(RECIPES)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["61"], "system: got '61', expected an id from 1 to 60, a name"),
        (["0"], "got '0', expected an id"),
        (["goa24-t1-873-resnet50-k33"], r"near: goa24-t1-873-resnet50-k32"),
        (["conv5"], r"near: .*k23-t1-1-conv5"),
        (["1", "nothing like it!"], "got 'nothing like it!', expected"),
        ([], "system: got none, expected"),
    ],
)
def test_find_names_the_possible_values(names, message):
    with pytest.raises(UsageError, match=message) as raised:
        find(names)
    assert "\n" not in str(raised.value)


def test_impossible_recipes_are_refused():
    plan = TrainingPlan("used", "each_set", (), "sgd", 1e-3, 256, 50, 10)
    for changed, message in (
        (lambda: PlannedStage("x", "everything"), "stage data: got 'everything'"),
        (lambda: PlannedStage("x", "labelled", "some"), "stage labels: got 'some'"),
        (lambda: dataclasses.replace(plan, target="sex"), "training target: got 'sex'"),
        (lambda: dataclasses.replace(plan, scope="all"), "training scope: got 'all'"),
        (lambda: dataclasses.replace(plan, optimiser="lion"), "optimiser: got 'lion'"),
        (lambda: dataclasses.replace(RECIPES[0], method="gmm"), "method: got 'gmm'"),
        (lambda: dataclasses.replace(RECIPES[0], view="heart"), "view: got 'heart'"),
    ):
        with pytest.raises(UsageError, match=message):
            changed()
