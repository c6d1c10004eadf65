"""The autoencoder: batches equal all slices at once; lower errors for its own generator; it resumes after a stop."""

import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import nn

from gansfp.errors import DataError, UsageError, WeightsError
from gansfp.images.slices import Source
from gansfp.networks.model_files import read_model, write_model
from gansfp.simulation.generators import generate
from gansfp.simulation.phantom import phantoms
from gansfp.training import autoencoder
from gansfp.training.autoencoder import (
    Autoencoder,
    AutoencoderTraining,
    MeanErrorImages,
    error_images,
    errors,
    mean_error_images,
    similarities,
)
from gansfp.training.examples import LabelledSlices
from gansfp.training.loop import Settings

SIZE = 32
QUICK = Settings(batch=16, epochs=3, patience=0)


def slices_of(sources, groups=None):
    return LabelledSlices.unlabelled(sources, groups or [""] * len(sources), [f"hash of {uri}" for uri, *_ in sources])


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """{generator: 60 slices} of two generators with training slices of their own."""
    folder = tmp_path_factory.mktemp("generated")
    training = phantoms(24, 1, seed=1)[0]
    sources = {}
    for name, own in (("eigen", training[:12]), ("warp", training[12:])):
        places = [folder / f"{name}{number}.png" for number in range(60)]
        for place, picture in zip(places, generate(name, own, 60, seed=2), strict=True):
            Image.fromarray(picture).save(place)
        sources[name] = [Source(str(place)) for place in places]
    return sources


@pytest.fixture(scope="module")
def trained(generated, tmp_path_factory):
    """The folder of an autoencoder that was trained on 40 slices of `eigen` for three epochs."""
    folder = str(tmp_path_factory.mktemp("trained") / "model")
    AutoencoderTraining(slices_of(generated["eigen"][:40]), SIZE, QUICK).run(folder)
    return folder


@pytest.fixture
def mixed(generated, tmp_path):
    """Ten slices with their labels; the fifth is not a picture."""
    (tmp_path / "bad.png").write_bytes(b"no picture")
    sources = [*generated["eigen"][50:54], Source(str(tmp_path / "bad.png")), *generated["warp"][50:55]]
    return sources, np.array([1, 1, 0, 1, 1, 0, 0, -1, 0, 1])


def all_at_once(folder, sources):
    """(n, SIZE, SIZE) float64 error images of slices that can be read, by plain code."""
    network = Autoencoder(SIZE)
    network.load_state_dict(read_model(folder)[1])
    pixels = np.stack([np.asarray(Image.open(uri)) for uri, *_ in sources]).astype(np.float64) / 255
    parts = 256 // SIZE
    inputs = pixels.reshape(len(sources), SIZE, parts, SIZE, parts).mean((2, 4))
    with torch.no_grad():
        outputs = network.double()(torch.from_numpy(inputs)[:, None])[:, 0].numpy()
    return (inputs - outputs) ** 2


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_batches_equal_all_at_once(trained, mixed, batch, caplog):
    sources, labels = mixed
    readable = [row for row in range(10) if row != 4]
    images = all_at_once(trained, [sources[row] for row in readable])
    mean_errors = errors(trained, sources, batch=batch)
    assert np.isnan(mean_errors[4])
    np.testing.assert_allclose(mean_errors[readable], images.mean((1, 2)), rtol=1e-4)
    assert "1 of 10 slices cannot be read and get no error, such as " in caplog.text
    assert sources[4].uri in caplog.text

    means = mean_error_images(trained, sources, labels, batch=batch)
    used, not_used = (images[labels[readable] == label].mean(0) for label in (1, 0))
    assert means.used.dtype == np.float64
    np.testing.assert_allclose(means.used, used, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(means.not_used, not_used, rtol=1e-3, atol=1e-7)
    values = np.concatenate([used, not_used])
    assert means.data_range == pytest.approx(values.max() - values.min(), rel=1e-3)

    similarity = similarities(trained, sources, means, batch=batch)
    span = values.max() - values.min()
    expected = [[structural_similarity(image, mean, data_range=span) for mean in (used, not_used)] for image in images]
    assert np.isnan(similarity[4]).all()
    np.testing.assert_allclose(similarity[readable], expected, atol=1e-4)


def test_ssim_by_its_formula():
    """The defaults of scikit-image: means over 7x7 windows whose centres are inside the picture."""
    a, b = np.random.default_rng(0).random((2, 16, 16))
    span = 2.0
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for y in range(10):
        for x in range(10):
            u, v = a[y : y + 7, x : x + 7].ravel(), b[y : y + 7, x : x + 7].ravel()
            both = np.cov(u, v)
            top = (2 * u.mean() * v.mean() + c1) * (2 * both[0, 1] + c2)
            values.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (both[0, 0] + both[1, 1] + c2)))
    assert structural_similarity(a, b, data_range=span) == pytest.approx(np.mean(values), rel=1e-9)


def test_never_more_than_a_batch_in_memory(trained, generated):
    sizes = [images.shape for _, images in error_images(trained, generated["warp"][:10], batch=4)]
    assert sizes == [(4, SIZE, SIZE), (4, SIZE, SIZE), (2, SIZE, SIZE)]


def test_out_of_memory_halves_what_is_computed_at_once(trained, generated, monkeypatch):
    expected = errors(trained, generated["warp"][:9])
    real, sizes = autoencoder._error_images, []

    def short(network, pixels, size, device):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise RuntimeError("CUDA out of memory")
        return real(network, pixels, size, device)

    monkeypatch.setattr(autoencoder, "_error_images", short)
    np.testing.assert_allclose(errors(trained, generated["warp"][:9]), expected, rtol=1e-5)
    assert sizes == [9, 4, 2, 2, 2, 2, 1]


def test_no_slice_at_all(trained):
    assert errors(trained, []).shape == (0,)
    means = MeanErrorImages(np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE)))
    assert similarities(trained, [], means).shape == (0, 2)
    assert means.data_range == 1.0


def test_a_class_without_slices(trained, mixed):
    with pytest.raises(DataError, match="got 1 used and 0 not used slices, expected both"):
        mean_error_images(trained, mixed[0][3:7], [1, 0, -1, -1])  # the not used slice is not a picture


def test_its_own_generators_slices_have_lower_errors(generated, tmp_path):
    settings = Settings(batch=16, epochs=12, patience=0)
    for own, other in (("eigen", "warp"), ("warp", "eigen")):
        folder = str(tmp_path / own)
        record = AutoencoderTraining(slices_of(generated[own][:48]), SIZE, settings).run(folder)
        assert record.examples == [41, 7]
        assert record.figures["loss"] < 0.5 * record.history[0]["loss"]
        held_out, foreign = errors(folder, generated[own][48:]), errors(folder, generated[other])
        assert held_out.mean() < 0.9 * foreign.mean()


def test_same_seed_same_network(generated, tmp_path):
    networks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = Settings(batch=16, epochs=2, patience=0, seed=seed)
        AutoencoderTraining(slices_of(generated["warp"][:20]), SIZE, settings).run(str(tmp_path / name))
        networks.append(read_model(str(tmp_path / name))[1])
        torch.rand(3)  # changes the global generator, which must not matter
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert not torch.equal(networks[0]["encoder.5.weight"], networks[2]["encoder.5.weight"])


def test_resumes_after_an_interruption(generated, trained, tmp_path):
    training = AutoencoderTraining(slices_of(generated["eigen"][:40]), SIZE, QUICK)
    folder = str(tmp_path / "model")

    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.run(folder, report=interrupted)
    with pytest.raises(WeightsError, match="whose training has not ended; run it again"):
        errors(folder, generated["eigen"])
    reports = []
    record = training.run(folder, report=reports.append)
    assert [report["epoch"] for report in reports] == [2, 3]
    content, tensors = read_model(trained)
    assert record.history == content["history"]
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_model(folder)[1].items())


def test_a_slice_that_cannot_be_read_is_left_out(generated, tmp_path, caplog):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    sources = [*generated["eigen"][:9], Source(str(tmp_path / "bad.png"))]
    training = AutoencoderTraining(slices_of(sources), SIZE, Settings(batch=16, epochs=1, patience=0))
    assert sum(training.run(str(tmp_path / "model")).examples) == 9
    assert str(tmp_path / "bad.png") in caplog.text


def test_groups_and_equal_files_stay_on_one_side(generated, monkeypatch):
    sides = []  # slices to train on and to validate with, for each learner
    monkeypatch.setattr(autoencoder, "SliceExamples", lambda slices: sides.append(slices))
    autoencoder._Learner(AutoencoderTraining(slices_of(generated["eigen"][:40], groups=("a", "b", "c", "d") * 10)))
    assert not set(sides[0].groups) & set(sides[1].groups)
    assert len(sides[1]) == 10
    equal = slices_of([uri for uri in generated["eigen"][:20] for _ in range(2)])
    autoencoder._Learner(AutoencoderTraining(equal))
    assert not set(sides[2].sha256) & set(sides[3].sha256)
    assert len(sides[3]) == 6


def test_the_documented_architecture():
    network = Autoencoder(256)
    assert [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)] == [32, 64, 128, 256]
    inputs = torch.rand(2, 1, 256, 256)
    latent = network.encoder[5]
    expected = network.encoder[:5](inputs).mul(1 / 16) @ latent.weight.T  # 16x16 positions are sixteen times 4x4
    torch.testing.assert_close(network.encoder(inputs), expected)
    assert 0.5 < latent.weight.std() * (1.04 * 65536 / 2) ** 0.5 / 16 < 2
    assert network.encoder(inputs).shape == (2, 128)
    outputs = network(inputs)
    assert outputs.shape == inputs.shape
    assert 0 <= outputs.min() <= outputs.max() <= 1


def test_bad_arguments(generated):
    with pytest.raises(UsageError, match=r"got size 48, expected one of \[16, 32, 64, 128, 256\]"):
        AutoencoderTraining(slices_of(generated["eigen"]), 48)
    with pytest.raises(DataError, match="got 1 generated slices, expected two or more"):
        AutoencoderTraining(slices_of(generated["eigen"][:1]))
    large = LabelledSlices.unlabelled((Source("a"), Source("b")), ("", ""), ("1", "2"), 896)
    with pytest.raises(UsageError, match="got slices of 896 pixels a side"):
        AutoencoderTraining(large)


def test_a_folder_without_an_autoencoder(trained, generated, tmp_path):
    with pytest.raises(WeightsError, match=r"expected a folder that jobs\.train has written"):
        errors(str(tmp_path / "nothing"), generated["eigen"])
    content, tensors = read_model(trained)
    other = content | {"identity": {"kind": "classifier", "architecture": "resnet18"}}
    write_model(str(tmp_path / "other"), other, tensors)
    with pytest.raises(WeightsError, match="got a trained classifier, expected an autoencoder"):
        errors(str(tmp_path / "other"), generated["eigen"])
    shutil.copytree(trained, tmp_path / "foreign")
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "foreign" / "model.safetensors")
    with pytest.raises(WeightsError, match="its tensors do not fit this autoencoder"):
        errors(str(tmp_path / "foreign"), generated["eigen"])
