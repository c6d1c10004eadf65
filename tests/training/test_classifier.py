"""Classifiers: they learn, pass on their weights, go on after a kill, are backbones, and refuse what cannot be."""

import json
import logging

import numpy as np
import pytest
import timm
import torch
from torch import distributed

from gansfp.collection.catalog import read_catalog
from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import Embedder, load_all_weights
from gansfp.embedding.preparation import preparation
from gansfp.errors import DataError, UsageError, WeightsError
from gansfp.images.lungs import threshold_mask
from gansfp.images.slices import load
from gansfp.networks.model_files import read_model
from gansfp.networks.weights import Weights, load_weights
from gansfp.simulation.challenge import SimulationConfig, simulate
from gansfp.simulation.phantom import phantoms
from gansfp.training import classifier
from gansfp.training.classifier import ClassifierTraining, predict
from gansfp.training.examples import split_by_group
from gansfp.training.heads import HEADS, InputTransform, SliceLearner, folded
from gansfp.training.loop import Settings
from gansfp.training.stages import Stage, labelled

QUICK = Settings("adam", 1e-3, batch=8, epochs=1, patience=0, max_steps=2)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Real slices, and those of a generator that is easy to tell from them and from `warp`."""
    out = tmp_path_factory.mktemp("easy") / "data"
    counts = {"labelled": 30, "unknown": 4, "generated": 60, "generated_test": 2, "attributed": 40}
    simulate(SimulationConfig.tiny(sets=("eigen",), **counts), str(out), progress=lambda line: None)
    return read_catalog(str(out))


@pytest.fixture(scope="module")
def few(catalog):
    """12 slices of two classes."""
    slices = labelled(catalog, "generated", "eigen")
    return slices.take([*np.flatnonzero(slices.labels)[:6], *np.flatnonzero(np.equal(slices.labels, 0))[:6]])


@pytest.fixture(scope="module")
def trained(few, tmp_path_factory):
    """A folder with a network of 48 pixels that has seen lungs, and its facts."""
    folder = str(tmp_path_factory.mktemp("models") / "small")
    training = ClassifierTraining("resnet10t", (Stage("one", few, settings=QUICK),), "lungs_uncropped", size=48)
    return folder, training, training.run(folder, "cpu")


# 4 seconds each.
@pytest.mark.parametrize("target", ["generated", "generator"])
def test_learns_what_is_easy_to_tell(catalog, tmp_path, target):
    slices = labelled(catalog, target, "eigen")
    seen, held_out = map(slices.take, split_by_group(slices.labels, slices.groups, share=0.25, seed=7))
    settings = Settings("adam", 1e-3, batch=16, epochs=24, patience=0)  # 1.0 with each of three seeds
    facts = ClassifierTraining("conv5", (Stage("only", seen, settings=settings),), size=48).run(str(tmp_path), "cpu")
    assert facts["identity"]["classes"] == list(slices.classes)
    said = predict(str(tmp_path), held_out, "cpu")
    assert np.mean(said.argmax(1) == held_out.labels) >= 0.95
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)


def test_a_trained_network_is_a_backbone_and_equals_timms_forward(trained, few):
    folder, _, facts = trained
    name = f"resnet10t@{folder}"
    pixels = np.stack([load(uri).pixels for uri in few.uris[:5]])
    masks = np.stack([threshold_mask(one) for one in pixels])
    weights = load_all_weights([name], None)
    (loaded,) = weights.values()
    assert loaded.size == facts["identity"]["size"] == 48
    pair = (name, "lungs_uncropped")
    found = Embedder([pair], weights, precision="float32")(pixels, masks)[pair]
    network = timm.create_model("resnet10t", num_classes=2).eval()
    network.load_state_dict(read_model(folder)[1])
    prepared = preparation("resnet10t", 48)
    shown = torch.from_numpy(np.where(masks | ~masks.any((1, 2), keepdims=True), pixels, 0)).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (prepared.mean, prepared.std))
    inputs = (prepared.apply(shown)[:, None] / 255 - mean) / std
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(inputs), pre_logits=True)
        probabilities = network(inputs).softmax(1)
    assert np.abs(found - expected.numpy()).max() < 1e-3 * expected.abs().max()
    np.testing.assert_allclose(predict(folder, few.take(range(5)), "cpu", batch=2), probabilities, atol=1e-4)
    other = parse_backbone(f"resnet10t:flat:64@{folder}")
    assert (other.size, other.network) == (64, parse_backbone(name).network)


def test_a_vision_transformer_goes_on_at_another_size(few, tmp_path):
    training = ClassifierTraining("test_vit", (Stage("one", few, settings=QUICK),), size=64)
    training.run(str(tmp_path / "vit"), "cpu")
    pixels = np.stack([load(uri).pixels for uri in few.uris[:2]])
    names = [f"test_vit@{tmp_path}/vit", f"test_vit:96@{tmp_path}/vit"]
    pairs = [(name, "full") for name in names]
    found = Embedder(pairs, load_all_weights(names, None))(pixels, np.zeros(pixels.shape, bool))
    assert {vectors.shape for vectors in found.values()} == {(2, 64)}
    start = load_weights("test_vit", None, trained=str(tmp_path / "vit"))
    ClassifierTraining("test_vit", training.stages, start=start).run(str(tmp_path / "own"), "cpu")


@pytest.mark.parametrize("view", ["full", "lungs", "lungs_uncropped", "outer"])
def test_inputs_are_those_of_embedding(view):
    pixels = phantoms(3, 1, seed=5)[0]
    masks = np.stack([threshold_mask(one) for one in pixels])
    pair = ("test_resnet@random", view)
    embedder = Embedder([pair], load_all_weights([pair[0]], None), precision="float32")
    network = embedder._networks["test_resnet@random", 0]
    seen = []
    network.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network.model.forward_features = lambda images: seen.append(images) or torch.zeros(3, 512, 1, 1)
    embedder(pixels, masks)
    input_transform = InputTransform("test_resnet", 0, view)
    found = input_transform(torch.from_numpy(pixels), None if view == "full" else torch.from_numpy(masks))
    torch.testing.assert_close(found, seen[0])


def test_weights_pass_on_from_stage_to_stage(catalog, few, tmp_path):
    generators = labelled(catalog, "generator")
    stages = (
        Stage("a", few, settings=QUICK),
        Stage("absent", None, absent="no data is named"),
        Stage("b", generators.take(range(0, 80, 8)), settings=QUICK),
        Stage("c", generators.take(range(4, 80, 8)), settings=QUICK),
    )
    told = []
    training = ClassifierTraining("conv5", stages, size=32)
    facts = training.run(str(tmp_path / "m"), "cpu", told.append)
    assert facts["skipped"] == [{"stage": "absent", "why": "no data is named"}] == training.skipped
    assert [stage["stage"] for stage in facts["stages"]] == ["a", "b", "c"] == [epoch["stage"] for epoch in told]
    assert training.epochs == 3
    assert facts["identity"]["classes"] == ["eigen", "warp"]
    last, before = (read_model(str(tmp_path / "m" / name))[1] for name in ("", "stage-4"))
    assert all(torch.equal(last[name], before[name]) for name in last)
    # Where classes stay, all weights do; where they change, all but the head's.
    left = read_model(str(tmp_path / "m" / "stage-3"))[1]
    network = training._network(left, ("eigen", "warp"), ("eigen", "warp"))
    assert all(torch.equal(tensor, left[name]) for name, tensor in network.state_dict().items())
    anew = training._network(left, ("real", "generated"), ("eigen", "warp")).state_dict()
    differing = {name for name in left if not torch.equal(anew[name], left[name])}
    assert differing == {"head.weight", "head.bias"}


def test_finished_stages_are_not_trained_again(few, tmp_path, monkeypatch):
    stages = (Stage("a", few, settings=QUICK), Stage("b", few, settings=QUICK))
    training = ClassifierTraining("conv5", stages, size=32)
    calls = []

    def train(learner, folder, *rest):
        calls.append(folder.rpartition("/")[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(learner, folder, *rest)

    real = classifier.train
    monkeypatch.setattr(classifier, "train", train)
    with pytest.raises(KeyboardInterrupt):
        training.run(str(tmp_path), "cpu")
    with pytest.raises(WeightsError, match="trained network: got"):
        read_model(str(tmp_path))
    facts = training.run(str(tmp_path), "cpu")
    assert calls == ["stage-1", "stage-2", "stage-2"]
    assert training.run(str(tmp_path), "cpu") == json.loads(json.dumps(facts))
    assert len(calls) == 3
    with pytest.raises(UsageError, match="holds a network trained with size 32, got 40"):
        ClassifierTraining("conv5", stages, size=40).run(str(tmp_path), "cpu")


def test_pseudo_labels_are_those_of_the_stage_before(catalog, few, tmp_path, caplog, monkeypatch):
    unknown = labelled(catalog, "unknown", "eigen")
    stages = (Stage("a", few, settings=QUICK), Stage("asked", unknown, "pseudo", QUICK))
    training = ClassifierTraining("conv5", stages, size=32)
    seen = []

    def says(folder, slices, device, masker=None):
        probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.4, 0.6]], np.float32)
        seen.append((folder, slices))
        return probabilities if len(seen) == 1 else np.tile(np.float32([0.9, 0.1]), (4, 1))

    monkeypatch.setattr(classifier, "predict", says)
    learnt = []
    real = training._learner
    object.__setattr__(training, "_learner", lambda *given: learnt.append(given[1]) or real(*given))
    facts = training.run(str(tmp_path / "m"), "cpu")
    assert seen == [(str(tmp_path / "m" / "stage-1"), unknown)]
    assert learnt[1] == unknown.take([0, 2, 3]).relabelled([0, 1, 1], few.classes)
    assert [stage["stage"] for stage in facts["stages"]] == ["a", "asked"]
    # Where all are alike there is nothing to learn: the network before stays.
    with caplog.at_level(logging.WARNING):
        facts = ClassifierTraining("conv5", stages, size=32).run(str(tmp_path / "n"), "cpu")
    assert facts["skipped"] == [{"stage": "asked", "why": "its slices are all 'real' to the network before"}]
    assert [stage["stage"] for stage in facts["stages"]] == ["a"]
    assert "stage 'asked' is skipped" in caplog.text


def test_with_other_processes_all_learn_from_the_same_labels(catalog, few, tmp_path):
    stages = (Stage("a", few, settings=QUICK), Stage("asked", labelled(catalog, "unknown", "eigen"), "pseudo", QUICK))
    training = ClassifierTraining("conv5", stages, size=32)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        facts = training.run(str(tmp_path / "together"), "cpu")
    finally:
        distributed.destroy_process_group()
    alone = training.run(str(tmp_path / "alone"), "cpu")
    assert facts["figures"] == alone["figures"]
    assert facts["skipped"] == alone["skipped"]


def test_masks_of_a_network(few, tmp_path, monkeypatch):
    class Segmenter:
        def __init__(self, name, weights, device):
            assert (name, weights.digest, device) == ("unet:models/a", "d1", "cpu")

        def __call__(self, pixels):
            return np.stack([threshold_mask(one) for one in pixels])

    monkeypatch.setattr("gansfp.embedding.network_masks.Segmenter", Segmenter)
    stages, weights = (Stage("a", few, settings=QUICK),), Weights("unet:models/a", {}, "d1")
    training = ClassifierTraining("conv5", stages, "lungs", "unet:models/a", size=32, mask_weights=weights)
    facts = training.run(str(tmp_path / "unet"), "cpu")
    assert facts["identity"]["mask"] == "unet:d1"
    ClassifierTraining("conv5", stages, "lungs", size=32).run(str(tmp_path / "threshold"), "cpu")
    expected = predict(str(tmp_path / "threshold"), few, "cpu")
    said = predict(str(tmp_path / "unet"), few, "cpu", masker=training._masker("cpu"))
    np.testing.assert_array_equal(said, expected)
    with pytest.raises(UsageError, match="which a network computes"):
        predict(str(tmp_path / "unet"), few, "cpu")
    with pytest.raises(UsageError, match="'threshold' takes no weights"):
        ClassifierTraining("conv5", stages, "lungs", size=32, mask_weights=weights)


def test_the_published_head_and_copies(few, tmp_path):
    training = ClassifierTraining(
        "mobilenetv2_100",
        (Stage("a", few, settings=QUICK),),
        size=32,
        augmentation="kde-lab-2024",
        copies=5,
        head="dropout_dense",
        start=load_weights("mobilenetv2_100", None, random=True),
    )
    facts = training.run(str(tmp_path), "cpu")
    real = [few.labels[row] == 0 for row in split_by_group(few.labels, few.groups)[0]]
    assert facts["examples"] == [5 * sum(real) + len(real) - sum(real), 12 - len(real)]
    assert read_model(str(tmp_path))[1]["classifier.weight"].shape == (1, 1280)
    said = predict(str(tmp_path), few, "cpu")
    assert said.shape == (12, 2)
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-6)


def test_losses_equal_plain_ones():
    rng = np.random.default_rng(0)
    labels = torch.tensor([0, 1, 1, 0])
    values = rng.normal(0, 2, (4, 2))
    logits, shares = torch.from_numpy(values), np.exp(values) / np.exp(values).sum(1, keepdims=True)
    np.testing.assert_allclose(HEADS["linear"].loss(logits, labels), -np.log(shares[range(4), labels]))
    np.testing.assert_allclose(HEADS["linear"].probabilities(logits), shares)
    one = logits[:, :1]
    p = 1 / (1 + np.exp(-one.numpy()[:, 0]))
    expected = -np.log(np.where(labels.numpy() == 1, p, 1 - p))
    np.testing.assert_allclose(HEADS["dropout_dense"].loss(one, labels), expected)
    np.testing.assert_allclose(HEADS["dropout_dense"].probabilities(one), np.stack([1 - p, p], 1))


def test_a_lone_example_has_a_finite_loss_and_gradient():
    network = timm.create_model("resnet10t", num_classes=2).train()
    learner = SliceLearner(network, [], [], InputTransform("resnet10t", 32, "full"), HEADS["linear"])
    batch = {"pixels": torch.zeros(1, 256, 256, dtype=torch.uint8), "label": torch.tensor([1])}
    losses = learner.losses(network, batch)
    assert losses.shape == (1,)
    losses.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    sums = learner.measure(network.eval(), batch)
    assert set(sums) == {"loss", "right", "count"}
    assert learner.figures({"loss": 6.0, "right": 3.0, "count": 4.0}) == {"loss": 1.5, "accuracy": 0.75}


def test_folded_batch_norms_keep_their_statistics():
    network = timm.create_model("resnet10t", num_classes=2)
    layers = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert folded(network) == []  # as it is made
    for layer in layers:
        layer.running_var.fill_(1 - layer.eps)
    assert folded(network) == layers
    network.train()
    batch = {"pixels": torch.randint(0, 256, (4, 256, 256), dtype=torch.uint8), "label": torch.tensor([0, 1, 0, 1])}
    learner = SliceLearner(network, [], [], InputTransform("resnet10t", 32, "full"), HEADS["linear"], layers)
    losses = learner.losses(network, batch)
    torch.testing.assert_close(losses, learner.losses(network.eval(), batch))
    losses.sum().backward()
    assert all(layer.bias.grad is not None and not layer.running_mean.any() for layer in layers)
    layers[0].running_mean[0] = 0.1
    assert folded(network) == []  # as training leaves it


def test_predictions_of_files_that_cannot_be_read_are_no_numbers(trained, few, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    slices = few.take([0, 1, 2])
    uris = (slices.uris[0], str(tmp_path / "bad.png"), slices.uris[2])
    said = predict(trained[0], type(few)(uris, (-1,) * 3, slices.groups, slices.sha256), "cpu")
    assert np.isnan(said).all(1).tolist() == [False, True, False]


def test_another_architecture_is_refused(trained, tmp_path):
    folder = trained[0]
    with pytest.raises(WeightsError, match=r"holds no trained 'resnet18', .* backbone 'resnet10t'"):
        load_weights("resnet18", None, trained=folder)
    with pytest.raises(WeightsError, match=r"got '.*gone', expected a folder that jobs\.train has written"):
        load_weights("resnet18", None, trained=str(tmp_path / "gone"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "state.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="whose training has not ended; run it again"):
        load_weights("resnet18", None, trained=str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backbone": "resnt18"}, "got 'resnt18', expected a timm model"),
        ({"backbone": "resnet18@random"}, "got 'resnet18@random', expected the name of a timm model alone"),
        ({"backbone": "highpass"}, "got 'highpass', expected the name of a timm model alone"),
        ({"view": "half"}, "view: got 'half'"),
        ({"mask": "half"}, "lung mask: got 'half'"),
        ({"augmentation": "half"}, "augmentation: got 'half'"),
        ({"head": "half"}, "head: got 'half'"),
        ({"copies": 5}, "copies: got 5, expected 1, or more with an augmentation"),
        ({"size": 8}, "input size 8"),
        ({"backbone": "inception_v3", "size": 64}, "'inception_v3': no classifier of 64 pixels"),
        ({"start": load_weights("test_resnet", None, random=True)}, "got weights of 'test_resnet@random'"),
        ({"stages": ()}, r"no stage can be trained \(none named\)"),
        ({"stages": (Stage("a", None),)}, r"no stage can be trained \('a': no data\)"),
    ],
)
def test_what_cannot_be_trained_is_one_line(few, changes, said):
    told = {"backbone": "conv5", "stages": (Stage("one", few),), "size": 32} | changes
    with pytest.raises((UsageError, DataError), match=said) as caught:
        ClassifierTraining(**told)
    assert "\n" not in str(caught.value)


def test_pseudo_labels_need_a_network(few):
    with pytest.raises(DataError, match=r"'a': there is no network before it"):
        ClassifierTraining("conv5", (Stage("a", few, "pseudo"),), size=32)
    with pytest.raises(UsageError, match=r"labels: got 'soft', expected one of \['supervised', 'pseudo', 'none'\]"):
        Stage("a", few, "soft")
