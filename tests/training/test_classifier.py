"""Classifiers: they learn, pass on weights between stages, resume, serve as backbones, and check their arguments."""

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
from gansfp.images.slices import Source, load
from gansfp.networks.model_files import read_model
from gansfp.networks.weights import Weights, load_weights
from gansfp.simulation.challenge import SimulationConfig, simulate
from gansfp.simulation.phantom import phantoms
from gansfp.training import classifier
from gansfp.training.classifier import ClassifierTraining
from gansfp.training.examples import LabelledSlices, split_by_group
from gansfp.training.heads import InputTransform
from gansfp.training.loop import Settings
from gansfp.training.prediction import predict
from gansfp.training.records import SkippedStage, read_record
from gansfp.training.stages import Stage, labelled

QUICK = Settings("adam", 1e-3, batch=8, epochs=1, patience=0, max_steps=2)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Real slices, and slices of a generator that is easy to distinguish from them and from `warp`."""
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
    """The folder of a network with inputs of 48 pixels that was trained on lungs, and its record."""
    folder = str(tmp_path_factory.mktemp("models") / "small")
    training = ClassifierTraining("resnet10t", (Stage("one", few, settings=QUICK),), "lungs_uncropped", size=48)
    return folder, training.run(folder, "cpu")


# 4 seconds each.
@pytest.mark.parametrize("target", ["generated", "generator"])
def test_learns_classes_that_are_easy_to_distinguish(catalog, tmp_path, target):
    slices = labelled(catalog, target, "eigen")
    training_slices, held_out = map(slices.take, split_by_group(slices.labels, slices.groups, share=0.25, seed=7))
    settings = Settings("adam", 1e-3, batch=16, epochs=24, patience=0)  # 1.0 with each of three seeds
    stage = Stage("only", training_slices, settings=settings)
    record = ClassifierTraining("conv5", (stage,), size=48).run(str(tmp_path), "cpu")
    assert record.identity["classes"] == list(slices.classes)
    probabilities = predict(str(tmp_path), held_out, "cpu")
    assert np.mean(probabilities.argmax(1) == held_out.labels) >= 0.95
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_a_trained_network_is_a_backbone_and_equals_timms_forward(trained, few):
    folder, record = trained
    name = f"resnet10t@{folder}"
    pixels = np.stack([load(source).pixels for source in few.sources[:5]])
    masks = np.stack([threshold_mask(slice_) for slice_ in pixels])
    weights = load_all_weights([name], None)
    (loaded,) = weights.values()
    assert loaded.size == record.identity["size"] == 48
    pair = (name, "lungs_uncropped")
    vectors = Embedder([pair], weights, precision="float32")(pixels, masks)[pair]
    network = timm.create_model("resnet10t", num_classes=2).eval()
    network.load_state_dict(read_model(folder)[1])
    prepared = preparation("resnet10t", 48)
    shown = torch.from_numpy(np.where(masks | ~masks.any((1, 2), keepdims=True), pixels, 0)).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (prepared.mean, prepared.std))
    inputs = (prepared.apply(shown)[:, None] / 255 - mean) / std
    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(inputs), pre_logits=True)
        probabilities = network(inputs).softmax(1)
    assert np.abs(vectors - expected.numpy()).max() < 1e-3 * expected.abs().max()
    np.testing.assert_allclose(predict(folder, few.take(range(5)), "cpu", batch=2), probabilities, atol=1e-4)
    other = parse_backbone(f"resnet10t:flat:64@{folder}")
    assert (other.size, other.network) == (64, parse_backbone(name).network)


def test_a_vision_transformer_continues_at_another_size(few, tmp_path):
    training = ClassifierTraining("test_vit", (Stage("one", few, settings=QUICK),), size=64)
    training.run(str(tmp_path / "vit"), "cpu")
    pixels = np.stack([load(source).pixels for source in few.sources[:2]])
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


def test_each_stage_starts_with_the_weights_of_the_stage_before(catalog, few, tmp_path):
    generators = labelled(catalog, "generator")
    stages = (
        Stage("a", few, settings=QUICK),
        Stage("absent", None, absent="no data is named"),
        Stage("b", generators.take(range(0, 80, 8)), settings=QUICK),
        Stage("c", generators.take(range(4, 80, 8)), settings=QUICK),
    )
    reports = []
    training = ClassifierTraining("conv5", stages, size=32)
    record = training.run(str(tmp_path / "m"), "cpu", reports.append)
    assert list(record.skipped) == [SkippedStage("absent", "no data is named")] == training.skipped
    assert [stage.stage for stage in record.stages] == ["a", "b", "c"] == [report["stage"] for report in reports]
    assert training.epochs == 3
    assert record.identity["classes"] == ["eigen", "warp"]
    last, before = (read_model(str(tmp_path / "m" / name))[1] for name in ("", "stage-4"))
    assert all(torch.equal(last[name], before[name]) for name in last)
    # With the same classes the network starts with all weights; with other classes it gets a new head.
    tensors = read_model(str(tmp_path / "m" / "stage-3"))[1]
    network = training._network(tensors, ("eigen", "warp"), ("eigen", "warp"))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in network.state_dict().items())
    with_new_head = training._network(tensors, ("real", "generated"), ("eigen", "warp")).state_dict()
    differing = {name for name in tensors if not torch.equal(with_new_head[name], tensors[name])}
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
    record = training.run(str(tmp_path), "cpu")
    assert calls == ["stage-1", "stage-2", "stage-2"]
    assert read_model(str(tmp_path))[0] == json.loads(json.dumps(record.as_dict()))
    assert training.run(str(tmp_path), "cpu") == record
    assert len(calls) == 3
    with pytest.raises(UsageError, match="holds a network trained with size 32, got 40"):
        ClassifierTraining("conv5", stages, size=40).run(str(tmp_path), "cpu")


def test_pseudo_labels_come_from_the_stage_before(catalog, few, tmp_path, caplog, monkeypatch):
    unknown = labelled(catalog, "unknown", "eigen")
    stages = (Stage("a", few, settings=QUICK), Stage("asked", unknown, "pseudo", QUICK))
    training = ClassifierTraining("conv5", stages, size=32)
    calls = []

    def predictions(folder, slices, device, masker=None):
        probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.4, 0.6]], np.float32)
        calls.append((folder, slices))
        return probabilities if len(calls) == 1 else np.tile(np.float32([0.9, 0.1]), (4, 1))

    monkeypatch.setattr(classifier, "predict", predictions)
    trained_on = []
    real = training._learner
    object.__setattr__(training, "_learner", lambda *values: trained_on.append(values[1]) or real(*values))
    record = training.run(str(tmp_path / "m"), "cpu")
    assert calls == [(str(tmp_path / "m" / "stage-1"), unknown)]
    assert trained_on[1] == unknown.take([0, 2, 3]).relabelled([0, 1, 1], few.classes)
    assert [stage.stage for stage in record.stages] == ["a", "asked"]
    # Where all labels are equal, the stage is skipped and the network of the stage before stays.
    with caplog.at_level(logging.WARNING):
        record = ClassifierTraining("conv5", stages, size=32).run(str(tmp_path / "n"), "cpu")
    why = "the previous stage's network predicts 'real' for every slice, so there is nothing to learn"
    assert record.skipped == (SkippedStage("asked", why),)
    assert [stage.stage for stage in record.stages] == ["a"]
    assert read_record(str(tmp_path / "n"), {}) == record
    assert "training stage 'asked' is skipped" in caplog.text


def test_several_processes_train_on_the_same_labels(catalog, few, tmp_path):
    stages = (Stage("a", few, settings=QUICK), Stage("asked", labelled(catalog, "unknown", "eigen"), "pseudo", QUICK))
    training = ClassifierTraining("conv5", stages, size=32)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        in_group = training.run(str(tmp_path / "together"), "cpu")
    finally:
        distributed.destroy_process_group()
    alone = training.run(str(tmp_path / "alone"), "cpu")
    assert in_group.figures == alone.figures
    assert in_group.skipped == alone.skipped


def test_masks_of_a_network(few, tmp_path, monkeypatch):
    class Segmenter:
        def __init__(self, name, weights, device):
            assert (name, weights.digest, device) == ("unet:models/a", "d1", "cpu")

        def __call__(self, pixels):
            return np.stack([threshold_mask(slice_) for slice_ in pixels])

    monkeypatch.setattr("gansfp.embedding.network_masks.Segmenter", Segmenter)
    stages, weights = (Stage("a", few, settings=QUICK),), Weights("unet:models/a", {}, "d1")
    training = ClassifierTraining("conv5", stages, "lungs", "unet:models/a", size=32, mask_weights=weights)
    record = training.run(str(tmp_path / "unet"), "cpu")
    assert record.identity["mask"] == "unet:d1"
    ClassifierTraining("conv5", stages, "lungs", size=32).run(str(tmp_path / "threshold"), "cpu")
    expected = predict(str(tmp_path / "threshold"), few, "cpu")
    probabilities = predict(str(tmp_path / "unet"), few, "cpu", masker=training._masker("cpu"))
    np.testing.assert_array_equal(probabilities, expected)
    with pytest.raises(UsageError, match="which a network computes"):
        predict(str(tmp_path / "unet"), few, "cpu")
    with pytest.raises(UsageError, match="lung mask 'threshold': got weights of 'unet:models/a', expected none"):
        ClassifierTraining("conv5", stages, "lungs", size=32, mask_weights=weights)


def test_only_prepare_loads_the_weights_of_a_mask(few, monkeypatch):
    calls, weights = [], Weights("unet:models/a", {}, "d1")
    monkeypatch.setattr("gansfp.embedding.network_masks.load_mask", lambda *names: calls.append(names) or weights)
    stages = (Stage("a", few, settings=QUICK),)
    training = ClassifierTraining("conv5", stages, "lungs", "unet:models/a", size=32)
    assert not calls
    assert training.prepare().mask_weights is weights
    assert calls == [("unet:models/a", None)]
    full = ClassifierTraining("conv5", stages, "full", "unet:models/a", size=32)
    assert full.prepare() is full  # this view needs no mask
    assert len(calls) == 1


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
    record = training.run(str(tmp_path), "cpu")
    real = [few.labels[row] == 0 for row in split_by_group(few.labels, few.groups)[0]]
    assert record.examples == [5 * sum(real) + len(real) - sum(real), 12 - len(real)]
    assert read_model(str(tmp_path))[1]["classifier.weight"].shape == (1, 1280)
    probabilities = predict(str(tmp_path), few, "cpu")
    assert probabilities.shape == (12, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_predictions_of_unreadable_files_are_nan(trained, few, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    slices = few.take([0, 1, 2])
    sources = (slices.sources[0], Source(str(tmp_path / "bad.png")), slices.sources[2])
    probabilities = predict(trained[0], LabelledSlices.unlabelled(sources, slices.groups, slices.sha256), "cpu")
    assert np.isnan(probabilities).all(1).tolist() == [False, True, False]


def test_another_architecture_is_refused(trained, tmp_path):
    folder = trained[0]
    with pytest.raises(WeightsError, match=r"holds no trained 'resnet18': got backbone 'resnet10t'"):
        load_weights("resnet18", None, trained=folder)
    with pytest.raises(WeightsError, match=r"got '.*gone', expected a folder that jobs\.train has written"):
        load_weights("resnet18", None, trained=str(tmp_path / "gone"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "state.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match="whose training has not ended; run it again"):
        load_weights("resnet18", None, trained=str(tmp_path / "half"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "resnt18"}, "got 'resnt18', expected a timm model"),
        ({"backbone": "resnet18@random"}, "got 'resnet18@random', expected the name of a timm model without options"),
        ({"backbone": "highpass"}, "got 'highpass', expected the name of a timm model without options"),
        ({"view": "half"}, "view: got 'half'"),
        ({"mask": "half"}, "lung mask: got 'half'"),
        ({"augmentation": "half"}, "augmentation: got 'half'"),
        ({"head": "half"}, "head: got 'half'"),
        ({"copies": 5}, "copies: got 5, expected 1, or more with an augmentation"),
        ({"size": 8}, "input size 8"),
        ({"backbone": "inception_v3", "size": 64}, "'inception_v3': cannot classify inputs of 64 pixels"),
        ({"start": load_weights("test_resnet", None, random=True)}, "got weights of 'test_resnet@random'"),
        ({"stages": ()}, r"no training stage can be trained \(none named\)"),
        ({"stages": (Stage("a", None),)}, r"no training stage can be trained \('a': no data\)"),
    ],
)
def test_wrong_arguments_are_errors_of_one_line(few, changes, message):
    arguments = {"backbone": "conv5", "stages": (Stage("one", few),), "size": 32} | changes
    with pytest.raises((UsageError, DataError), match=message) as caught:
        ClassifierTraining(**arguments).prepare()
    assert "\n" not in str(caught.value)


def test_pseudo_labels_need_a_network(few):
    with pytest.raises(DataError, match=r"'a': no stage before it is trained"):
        ClassifierTraining("conv5", (Stage("a", few, "pseudo"),), size=32)
    with pytest.raises(UsageError, match=r"labels: got 'soft', expected one of \['supervised', 'pseudo', 'none'\]"):
        Stage("a", few, "soft")
