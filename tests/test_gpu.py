"""What a GPU computes beside what a CPU computes, from arrays to trained networks. `make gpu` runs these tests."""

import numpy as np
import pytest
import torch

from gansfp.embedding.embedder import Embedder, load_all_weights
from gansfp.embedding.network_masks import Segmenter
from gansfp.images.lungs import threshold_mask
from gansfp.networks.lung_unet import LungUnet
from gansfp.networks.weights import Weights
from gansfp.published.superresolution import Upscaler, load_upscaler
from gansfp.simulation.phantom import draw_patient, draw_slice
from gansfp.training import batches
from gansfp.training.loop import Settings, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = "cuda"
BACKBONES = ("resnet10t@random", "test_convnext:flat@random", "test_resnet:map@random", "highpass", "residual")
PAIRS = [(backbone, view) for backbone in BACKBONES for view in ("full", "lungs", "lungs_uncropped", "outer")]


@pytest.fixture(scope="module")
def slices():
    """20 slices (n, 256, 256) uint8 and their lungs; the last slice has none."""
    rng = np.random.default_rng(0)
    drawn = [draw_slice(draw_patient(rng), rng.uniform(0.3, 0.7), rng) for _ in range(5)]
    pixels = np.stack([np.roll(drawn[number % 5], number, (0, 1)) for number in range(20)])
    masks = np.stack([threshold_mask(one) for one in pixels])
    masks[-1] = False
    return pixels, masks


@pytest.fixture(scope="module")
def weights():
    return load_all_weights(BACKBONES, None)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    norms = np.linalg.norm(expected, axis=1).clip(1e-9)
    return float((np.linalg.norm(found - expected, axis=1) / norms).max())


@pytest.mark.parametrize(("precision", "allowed"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_embeddings(slices, weights, precision, allowed):
    expected = Embedder(PAIRS, weights, "cpu", "float32")(*slices)
    found = Embedder(PAIRS, weights, GPU, precision, batch_limit=8)(*slices)
    assert {pair: difference(found[pair], expected[pair]) < allowed for pair in PAIRS} == dict.fromkeys(PAIRS, True)


def test_bits_of_read_only_masks_and_many_batches(slices, weights):
    pixels, masks = (array.copy() for array in slices)
    bits = np.packbits(masks.reshape(len(masks), -1), axis=1)
    bits.flags.writeable = pixels.flags.writeable = False
    expected = Embedder(PAIRS, weights, GPU)(*slices)
    embedder = Embedder(PAIRS, weights, GPU, batch_limit=3)
    for _ in range(5):  # copies of one batch beside the work on another
        found = embedder(pixels, bits)
        assert max(difference(found[pair], expected[pair]) for pair in PAIRS) < 1e-4
    assert embedder.seconds["forward"] > 0


def test_shortage_of_memory_halves_the_batch(slices, weights, caplog):
    pair = ("resnet10t@random", "full")
    pixels, masks = (np.tile(array, (205, 1, 1)) for array in slices)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        found = Embedder([pair], weights, GPU, batch_limit=4096)(pixels, masks)[pair]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in caplog.text
    assert difference(found[:20], Embedder([pair], weights, "cpu")(*slices)[pair]) < 1e-4


def test_masks_of_a_network(slices):
    torch.manual_seed(3)
    tensors = Weights("unet:x", dict(LungUnet().state_dict()), "0")
    expected, found = (Segmenter("unet:x", tensors, device)(slices[0]) for device in ("cpu", GPU))
    assert (expected == found).mean() > 0.999


def test_enlarged_slices(slices):
    upscaler = load_upscaler("esrgan@random", None, blocks=1)
    pixels = slices[0][:2, :64, :64]
    expected, found = (Upscaler(upscaler, device, tile=32)(pixels).astype(int) for device in ("cpu", GPU))
    assert np.abs(expected - found).max() <= 1


class Pictures:
    """Examples whose label is whether their left half is brighter."""

    def __init__(self, n: int) -> None:
        self.pixels = np.random.default_rng(n).integers(0, 256, (n, 32, 32)).astype(np.float32) / 255

    def __len__(self) -> int:
        return len(self.pixels)

    def item(self, index: int, epoch: int):
        pixels = self.pixels[index]
        return {"pixels": pixels[None], "label": np.float32(pixels[:, :16].mean() > pixels[:, 16:].mean())}


class Halves:
    def __init__(self) -> None:
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()
        self.model = torch.nn.Sequential(*layers, torch.nn.Linear(8 * 30 * 30, 1))
        self.train, self.valid = Pictures(64), Pictures(32)

    def losses(self, model, batch):
        logits = model(batch["pixels"])[:, 0].float()
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["label"], reduction="none")

    def measure(self, model, batch):
        losses = self.losses(model, batch)
        return {"loss": losses.sum(), "count": torch.tensor(len(losses), device=losses.device)}

    def figures(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


def test_training(tmp_path):
    settings = Settings("sgd", 0.01, batch=16, epochs=3, patience=0)
    cpu, gpu = (train(Halves(), str(tmp_path / name), settings, {"on": name}, name) for name in ("cpu", GPU))
    losses = [[row["loss"] for row in record.history] for record in (cpu, gpu)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)  # a GPU trains in bfloat16
    assert gpu.peak_memory > 0


def test_batches_are_in_pinned_memory():
    (batch,) = batches.read_batches(Pictures(4), [np.arange(4)], 0, cuda=True)
    assert all(value.is_pinned() for value in batch.values())
