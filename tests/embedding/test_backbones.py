"""Names of backbones; input preparation and networks, compared with timm's own transform and forward."""

import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from gansfp.embedding.backbones import parse_backbone
from gansfp.embedding.embedder import Embedder, load_all_weights
from gansfp.embedding.preparation import preparation
from gansfp.embedding.timm_network import TimmNetwork, check_runs
from gansfp.errors import UsageError
from gansfp.images.slices import decode
from gansfp.networks.weights import load_weights

# Model -> what its own transform does to 256 pixels: bicubic and bilinear, resize, crop, position tables.
MODELS = {
    "resnet10t": "bilinear, resized to 185, cropped to 176",
    "mobilenetv3_small_050": "bicubic, only cropped to 224",
    "test_convnext": "bicubic, resized to 168, cropped to 160",
    "test_vit": "bicubic, resized to 168, cropped to 160, fixed size",
}


@pytest.fixture(scope="module")
def pixels():
    """(6, 256, 256) uint8: smooth shapes, edges and noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:256, :256]
    waves = [127 + 100 * np.sin(rows / (3 + 5 * k)) * np.cos(columns / (7 - k)) for k in range(6)]
    slices = np.array(waves) + rng.normal(0, 15, (6, 256, 256))
    slices[:, 60:140, 90:200] *= 0.2
    return np.clip(slices, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights_folder(tmp_path_factory):
    """A folder of weights with their classifiers, as training writes them. Random, so vectors depend on the slices."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, model in enumerate(MODELS):
        torch.manual_seed(seed)
        state = timm.create_model(model, num_classes=10).state_dict()
        for name, tensor in state.items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.3)
        torch.save(state, folder / f"{model}.pth")
    return folder


def timm_embedding(model, folder, pixels):
    """Computes what a user of timm would compute: its own transform and forward, in float32."""
    network = timm.create_model(model, num_classes=0).eval()
    state = torch.load(folder / f"{model}.pth", weights_only=True)
    missing, _ = network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()}, strict=False)
    assert not missing
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    inputs = torch.stack([transform(Image.fromarray(slice_).convert("RGB")) for slice_ in pixels])
    with torch.inference_mode():
        return network(inputs).numpy()


def embed(name, folder, pixels):
    masks = np.zeros(pixels.shape, bool)
    weights = load_all_weights([name], str(folder) if folder else None)
    return Embedder([(name, "full")], weights, precision="float32")(pixels, masks)[name, "full"]


def relative(a, b):
    return np.linalg.norm(a - b, axis=1).max() / np.linalg.norm(b, axis=1).min()


@pytest.mark.parametrize("model", MODELS)
def test_float32_equals_timm(model, weights_folder, pixels):
    expected = timm_embedding(model, weights_folder, pixels)
    found = embed(model, weights_folder, pixels)
    assert relative(found, expected) < 1e-3
    assert relative(found[::-1], expected) > 1e-2  # the vectors of different slices differ


def test_float32_equals_timm_on_real_slices_and_weights(shared):
    paths = sorted((shared / "challenge/membership/glo/train/used").iterdir())[:4]
    pixels = np.stack([decode(path.read_bytes()).pixels for path in paths])
    for model in ("mobilenetv2_100", "mobilenetv1_100"):
        expected = timm_embedding(model, shared / "weights", pixels)
        assert relative(embed(model, shared / "weights", pixels), expected) < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_preparation_equals_timms_transform(model, pixels):
    config = resolve_model_data_config(timm.create_model(model, num_classes=0))
    transform = create_transform(**config, is_training=False)
    prepared = preparation(model)
    for ours, slice_ in zip(prepared.apply(torch.from_numpy(pixels).float()), pixels, strict=True):
        normalised = transform(Image.fromarray(slice_).convert("RGB"))
        grey = (
            normalised * torch.tensor(prepared.std)[:, None, None] + torch.tensor(prepared.mean)[:, None, None]
        ) * 255
        assert (ours - grey).abs().max() <= 1.01  # ties in Pillow's fixed-point arithmetic
        assert ((ours - grey).abs() > 0.01).float().mean() < 1e-3


def test_own_size_takes_the_whole_slice(pixels):
    prepared = preparation("mobilenetv3_small_050", 96)
    found = prepared.apply(torch.from_numpy(pixels).float())
    expected = np.stack([np.array(Image.fromarray(p).resize((96, 96), Image.Resampling.BICUBIC)) for p in pixels])
    assert np.abs(found.numpy() - expected).max() <= 1


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet50", {"kind": "timm", "model": "resnet50", "features": "pooled", "size": 0, "network": "resnet50"}),
        ("resnet50.a1_in1k:128", {"model": "resnet50.a1_in1k", "size": 128}),
        ("vgg16:flat@random", {"features": "flat", "random": True, "network": "vgg16@random"}),
        ("conv5:flat:64@WORK/models/a", {"features": "flat", "size": 64, "trained": "WORK/models/a", "random": False}),
        ("resnet18@my, own/a", {"trained": "my, own/a", "size": 0}),
        ("resnet18@s3://bucket/a?b=c", {"trained": "s3://bucket/a?b=c", "network": "resnet18@s3://bucket/a?b=c"}),
        ("resnet18:map", {"features": "map", "level": 2}),
        ("resnet18:sketch", {"features": "sketch", "level": 2}),
        ("resnet18:sketch1:96", {"features": "sketch", "level": 1, "size": 96}),
        ("resnet18:map0:64", {"features": "map", "level": 0, "size": 64}),
        ("highpass", {"kind": "highpass", "window": 31, "size": 64}),
        ("highpass-w15-128", {"window": 15, "size": 128}),
        ("highpass-w0-32", {"window": 0, "size": 32}),
        ("residual", {"kind": "residual"}),
        ("lbp", {"kind": "lbp", "features": "histogram"}),
        ("lbp-mean", {"kind": "lbp", "features": "mean"}),
    ],
)
def test_names(name, fields):
    backbone = parse_backbone(name)
    values = {field: getattr(backbone, field) for field in fields} | {"kind": backbone.kind.name}
    assert values == {"kind": backbone.kind.name} | fields


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt50", "got 'resnt50', expected a timm model"),
        ("mobilenetv2", "similar timm models: mobilenetv2_035"),
        ("resnet50.nobody", "got 'resnet50.nobody'"),
        ("resnet50@two\nlines", "got 'resnet50@two\\nlines', expected a timm model"),
        ("resnet50@", "got 'resnet50@'"),
        ("../resnet50", "got '../resnet50'"),
        ("", "got ''"),
        ("conv5:8@models/a", "input size 8"),
        ("vgg16:flat:8", "input size 8"),
        ("highpass-w4", "window 4, expected 0 or an odd number, 3 to 255"),
        ("highpass-w15-1", "side 1, expected 2 to 256"),
    ],
)
def test_bad_names_are_one_line(name, message):
    with pytest.raises(UsageError) as caught:
        parse_backbone(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flat_vgg16_has_25088_numbers(pixels):
    backbone = parse_backbone("vgg16:flat@random")
    network = TimmNetwork(backbone, load_weights("vgg16", None, random=True), "cpu", "float32")
    inputs = network.preparation.apply(torch.from_numpy(pixels[:1]).float())
    assert inputs.shape == (1, 224, 224)
    assert network(inputs, [backbone])[backbone.name].shape == (1, 25_088)


def test_map_is_a_feature_map_mean_free_by_channel_of_unit_norm(pixels):
    found = embed("test_resnet:map3@random", None, pixels)
    network = timm.create_model("test_resnet", num_classes=0, features_only=True, out_indices=(3,)).eval()
    weights = load_weights("test_resnet", None, random=True)
    network.load_state_dict(weights.tensors, strict=False)
    prepared = preparation("test_resnet")
    inputs = prepared.apply(torch.from_numpy(pixels).float()) / 255
    inputs = (inputs[:, None] - torch.tensor(prepared.mean)[:, None, None]) / torch.tensor(prepared.std)[:, None, None]
    with torch.inference_mode():
        expected = network(inputs)[0].double().numpy()
    expected -= expected.mean((2, 3), keepdims=True)
    expected = expected.reshape(len(pixels), -1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert embed("test_resnet:map0@random", None, pixels[:1]).shape[1] > found.shape[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_resnet:map5@random", "got feature map 5, expected 0 to 4"),
        ("test_resnet:sketch5@random", "got feature map 5, expected 0 to 4"),
        ("test_vit:100@random", "100"),
        ("test_byobnet:map9@random", "got feature map 9, expected 0 to 4"),
        ("vit_base_patch16_sapiens2@random", "1024x768"),
    ],
)
def test_what_a_model_does_not_have_is_an_error_before_any_actor(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_all_weights([name], None)
    assert "\n" not in str(caught.value)


def test_a_model_without_feature_maps():
    class Bare(torch.nn.Module):
        pass

    network = TimmNetwork(
        parse_backbone("test_resnet@random"), load_weights("test_resnet", None, True), "cpu", "float32"
    )
    network.model = Bare()
    with pytest.raises(UsageError, match="a feature map, which timm does not offer for Bare"):
        network(torch.zeros(1, 160, 160), [parse_backbone("test_resnet:map@random")])


def test_vision_transformer_at_another_size(pixels):
    small, own = embed("test_vit:96@random", None, pixels), embed("test_vit@random", None, pixels)
    assert small.shape == own.shape == (6, 64)
    assert not np.allclose(small, own)


def test_one_forward_gives_all_kinds_of_features(pixels, monkeypatch):
    names = ["test_resnet@random", "test_resnet:flat@random", "test_resnet:map1@random", "test_resnet:sketch@random"]
    backbones = [parse_backbone(name) for name in names]
    network = TimmNetwork(backbones[0], load_weights("test_resnet", None, True), "cpu", "float32")
    stems = []
    network.model.conv1.register_forward_hook(lambda *_: stems.append(1))
    inputs = network.preparation.apply(torch.from_numpy(pixels).float())
    together = network(inputs, backbones)
    assert len(stems) == 1
    for name, backbone in zip(names, backbones, strict=True):
        torch.testing.assert_close(together[name], network(inputs, [backbone])[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_is_near_and_float32_in_type(pixels):
    weights = load_all_weights(["resnet10t@random"], None)
    masks = np.zeros(pixels.shape, bool)
    pair = ("resnet10t@random", "full")
    half = Embedder([pair], weights, precision="bfloat16")(pixels, masks)[pair]
    assert half.dtype == np.float32
    assert 1e-6 < relative(half, Embedder([pair], weights, precision="float32")(pixels, masks)[pair]) < 0.05


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("bfloat16", True)])
def test_float32_on_a_gpu_is_not_tensorfloat_32(precision, tf32):
    backbone = parse_backbone("test_resnet@random")
    network = TimmNetwork(backbone, load_weights("test_resnet", None, random=True), "cpu", precision)
    network.device_type = "cuda"  # as close as a machine without a GPU can come
    flags = []

    def record_flags(*_):
        flags.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))

    network.model.conv1.register_forward_hook(record_flags)
    network(torch.zeros(1, 160, 160), [backbone])
    assert flags == [(True, tf32)]


def test_check_runs_costs_nothing_where_nothing_can_go_wrong(monkeypatch):
    monkeypatch.setattr("gansfp.embedding.timm_network.TimmNetwork", None)
    backbone = parse_backbone("test_resnet@random")
    start = time.monotonic()
    check_runs(backbone, load_weights("test_resnet", None, True))
    assert time.monotonic() - start < 5
