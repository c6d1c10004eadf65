"""The device pass: results do not depend on other pairs or on the batch; smaller batches when memory is short."""

import numpy as np
import pytest
import torch

from gansfp.device import is_out_of_memory
from gansfp.embedding import weight_free
from gansfp.embedding.embedder import PRECISIONS, EmbedConfig, Embedder, identity, load_all_weights
from gansfp.embedding.timm_network import TimmNetwork
from gansfp.errors import UsageError
from gansfp.images.lungs import threshold_mask
from gansfp.images.views import VIEWS, get_view
from gansfp.networks import weights as weights_module
from gansfp.simulation.phantom import draw_patient, draw_slice

PAIRS = [
    ("test_resnet@random", "full"),
    ("test_resnet@random", "lungs"),
    ("test_resnet:map@random", "lungs"),
    ("test_resnet:sketch1@random", "lungs"),
    ("test_resnet:flat@random", "lungs"),
    ("test_resnet@random", "outer"),
    ("test_convnext@random", "full"),
    ("test_convnext@random", "lungs_uncropped"),
    ("highpass", "full"),
    ("highpass-w15-32", "lungs"),
    ("highpass-w0-32", "outer"),
    ("residual", "full"),
    ("residual", "lungs"),
]


@pytest.fixture(scope="module")
def slices():
    """Pixels (9, 256, 256) uint8 and their lungs (9, 256, 256) bool; the last slice has none."""
    rng = np.random.default_rng(3)
    patients = [draw_patient(rng) for _ in range(8)]
    pixels = np.stack([*(draw_slice(patient, 0.5, rng) for patient in patients), np.full((256, 256), 90, np.uint8)])
    return pixels, np.stack([threshold_mask(slice_) for slice_ in pixels])


@pytest.fixture(scope="module")
def weights():
    return load_all_weights([name for name, _ in PAIRS], None)


def relative(a, b):
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1).clip(1e-12)).max())


def test_lungs_are_where_the_test_needs_them(slices):
    assert slices[1][:8].any(axis=(1, 2)).all()
    assert not slices[1][8].any()


def test_all_pairs_together_equal_each_alone(slices, weights):
    together = Embedder(PAIRS, weights, precision="float32")(*slices)
    assert set(together) == set(PAIRS)
    for pair in PAIRS:
        alone = Embedder([pair], weights, precision="float32")(*slices)[pair]
        assert together[pair].dtype == np.float32
        assert together[pair].shape == alone.shape
        assert relative(together[pair], alone) < 1e-6, pair


def test_a_slice_does_not_depend_on_its_batch(slices, weights):
    together = Embedder(PAIRS, weights, precision="float32")(*slices)
    one_by_one = Embedder(PAIRS, weights, precision="float32", batch_limit=1)(*slices)
    reversed_ = Embedder(PAIRS, weights, precision="float32", batch_limit=4)(
        slices[0][::-1].copy(), slices[1][::-1].copy()
    )
    for pair in PAIRS:
        assert relative(one_by_one[pair], together[pair]) < 1e-5, pair
        assert relative(reversed_[pair][::-1], together[pair]) < 1e-5, pair


def test_views_differ_and_a_slice_without_lungs_is_shown_whole(slices, weights):
    name = "test_resnet@random"
    found = Embedder([(name, view) for view in VIEWS], weights, precision="float32")(*slices)
    for view in ("lungs", "lungs_uncropped", "outer"):
        assert relative(found[name, view][:8], found[name, "full"][:8]) > 1e-3
    np.testing.assert_array_equal(found[name, "outer"][8], found[name, "full"][8])


def test_one_network_for_all_views_and_kinds_of_features(slices, weights):
    embedder = Embedder(PAIRS, weights, precision="float32")
    assert set(embedder._networks) == {("test_resnet@random", 0), ("test_convnext@random", 0)}
    forwards = []
    embedder._networks["test_resnet@random", 0].model.conv1.register_forward_hook(lambda *_: forwards.append(1))
    embedder(*slices)
    assert len(forwards) == 3  # full, lungs (pooled, map and flat from one), outer


def test_lungs_fill_the_input(slices, weights, monkeypatch):
    """timm's centre crop does not crop a cropped view again: its lungs reach the borders of the input."""
    recorded = {}

    def record(network, inputs, backbones):
        recorded["inputs"] = inputs
        return {b.name: inputs.flatten(1) for b in backbones}

    monkeypatch.setattr(TimmNetwork, "__call__", record)
    Embedder([("test_resnet@random", "lungs")], weights)(slices[0][:8], slices[1][:8])
    inputs = recorded["inputs"].numpy()
    assert inputs.shape == (8, 160, 160)
    lit = inputs > 0
    longer = np.array([max(np.ptp(np.flatnonzero(slice_.any(axis))) for axis in (0, 1)) + 1 for slice_ in lit])
    assert (longer > 150).all()
    masks = slices[1][:8]
    uncropped = np.array([max(np.ptp(np.flatnonzero(mask.any(axis))) for axis in (0, 1)) + 1 for mask in masks])
    assert (uncropped * 160 / 256 < 140).any()  # uncropped lungs do not fill a slice


def test_weight_free_pairs_equal_the_functions(slices, weights):
    found = Embedder(PAIRS, weights)(*slices)
    pixels, masks = torch.from_numpy(slices[0]), torch.from_numpy(slices[1])
    view = get_view("lungs")
    expected = weight_free.highpass([(15, 32, view)], pixels, masks)[0].numpy()
    np.testing.assert_allclose(found["highpass-w15-32", "lungs"], expected, atol=1e-6)
    expected = weight_free.residual([view], pixels, masks)[0].numpy()
    np.testing.assert_allclose(found["residual", "lungs"], expected, atol=1e-5)


def test_lbp_is_not_for_the_device():
    with pytest.raises(UsageError, match="'lbp' is computed on CPUs"):
        Embedder([("lbp", "full")], {})


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling")],
)
def test_out_of_memory_halves_the_batch_and_continues(slices, weights, monkeypatch, caplog, error):
    pair = ("test_resnet@random", "full")
    expected = Embedder([pair], weights, precision="float32")(*slices)[pair]
    embedder, tried = Embedder([pair], weights, precision="float32"), []
    network = TimmNetwork.__call__

    def short_of_memory(self, inputs, backbones):
        tried.append(len(inputs))
        if len(inputs) > 3:
            raise error
        return network(self, inputs, backbones)

    monkeypatch.setattr(TimmNetwork, "__call__", short_of_memory)
    found = embedder(*slices)[pair]
    assert tried == [9, 4, 2, 2, 2, 2, 1]
    assert relative(found, expected) < 1e-5
    assert "continues with batches of 2 slices" in caplog.text
    tried.clear()
    embedder(*slices)
    assert tried == [2, 2, 2, 2, 1]  # the embedder keeps the smaller limit


def test_a_single_slice_too_much_is_an_error_and_so_is_anything_else(slices, weights, monkeypatch):
    def fail(error):
        def raised(*_):
            raise error

        monkeypatch.setattr(TimmNetwork, "__call__", raised)

    embedder = Embedder([("test_resnet@random", "full")], weights)
    fail(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        embedder(*slices)
    embedder = Embedder([("test_resnet@random", "full")], weights)
    fail(RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        embedder(*slices)
    assert embedder.batch_limit == 256
    assert not is_out_of_memory(ValueError("shape"))


def test_masks_may_be_their_bits(slices):
    pixels, masks = slices
    pairs = [("highpass-w15-32", view) for view in VIEWS]
    bits = np.packbits(masks.reshape(len(masks), -1), axis=1)
    bits.flags.writeable = pixels.flags.writeable = False  # as Ray hands them over
    expected, found = Embedder(pairs, {}, batch_limit=4)(pixels, masks), Embedder(pairs, {})(pixels, bits)
    pixels.flags.writeable = True
    for pair in pairs:
        np.testing.assert_allclose(found[pair], expected[pair], atol=1e-6)


def test_nothing_to_embed(weights):
    assert Embedder(PAIRS, weights)(np.zeros((0, 256, 256), np.uint8), np.zeros((0, 256, 256), bool)) == {}


def test_identity_tells_apart_what_must_not_be_mixed(weights):
    pair = ("test_resnet@random", "lungs")
    config = EmbedConfig((pair,))
    base = identity(pair, config, weights)
    other_weights = {"test_resnet@random": weights["test_convnext@random"]}
    assert identity(pair, EmbedConfig((pair,), precision="bfloat16"), weights) != base
    assert identity(pair, config, other_weights) != base
    assert identity(("test_resnet@random", "outer"), config, weights) != base
    assert identity(("test_resnet:map@random", "lungs"), config, weights) != base
    assert all(isinstance(value, str) for value in base.values())
    # the precision does not change a weight-free vector, so it does not change its identity
    free = ("highpass", "full")
    expected = identity(free, EmbedConfig((free,), precision="float32"), {})
    for precision in PRECISIONS:
        assert identity(free, EmbedConfig((free,), precision=precision), {}) == expected


def test_a_network_has_no_identity_before_its_precision_is_settled(weights):
    pair = ("test_resnet@random", "full")
    with pytest.raises(ValueError, match="got 'auto'"):
        identity(pair, EmbedConfig((pair,), precision="auto"), weights)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": (("no_such_net", "full"),)}, "no_such_net"),
        ({"pairs": (("highpass", "inner"),)}, "'inner', expected one of"),
        ({"mask": "unet"}, "'unet', expected one of"),
        ({"precision": "float16"}, "'float16', expected one of"),
    ],
)
def test_unknown_names(fields, message):
    with pytest.raises(UsageError, match=message):
        EmbedConfig(**{"pairs": (("highpass", "full"),), **fields})


def test_weights_are_loaded_once_a_network(monkeypatch):
    loaded = []
    real = weights_module.load_weights
    monkeypatch.setattr(
        weights_module, "load_weights", lambda *arguments: loaded.append(arguments[0]) or real(*arguments)
    )
    by_network = load_all_weights(["test_resnet@random", "test_resnet:map@random", "highpass", "lbp"], None)
    assert loaded == ["test_resnet"]
    assert list(by_network) == ["test_resnet@random"]
