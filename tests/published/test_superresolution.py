"""Super-resolution: the network equals a plain one, tiles equal one pass, and only files of a x4 ESRGAN load."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch.nn.functional import conv2d, interpolate, leaky_relu

from gansfp.errors import UsageError, WeightsError
from gansfp.images.slices import Source
from gansfp.published import superresolution
from gansfp.published.superresolution import FILES, Upscaler, load_upscaler, reach, upscale_files

pytest.importorskip("spandrel")


def published_names(blocks=1, features=8, colours=3, ups=("upconv1", "upconv2")):
    """A small untrained network under the tensor names of RRDB_ESRGAN_x4.pth."""
    shapes = {"conv_first": (features, colours)}
    for block in range(blocks):
        for part in (1, 2, 3):
            for layer in (1, 2, 3, 4, 5):
                size = (features if layer == 5 else 32, features + 32 * (layer - 1))
                shapes[f"RRDB_trunk.{block}.RDB{part}.conv{layer}"] = size
    shapes |= dict.fromkeys(("trunk_conv", *ups, "HRconv"), (features, features))
    shapes["conv_last"] = (colours, features)
    random = torch.Generator().manual_seed(3)
    state = {}
    for name, (out, into) in shapes.items():
        state[f"{name}.weight"] = torch.randn(out, into, 3, 3, generator=random) * (1.5 / (9 * into)) ** 0.5
        state[f"{name}.bias"] = torch.full((out,), 0.3 if name == "conv_last" else 0.0)
    return state


def plain(state, grey, blocks=1):
    """(h, w) uint8 -> (4 h, 4 w) uint8: ESRGAN's forward pass, written out."""

    def layer(name, x):
        return conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    def dense(name, x):
        seen = [x]
        for number in (1, 2, 3, 4):
            seen.append(leaky_relu(layer(f"{name}.conv{number}", torch.cat(seen, 1)), 0.2))
        return layer(f"{name}.conv5", torch.cat(seen, 1)) * 0.2 + x

    first = layer("conv_first", torch.from_numpy(grey).float().repeat(1, 3, 1, 1) / 255)
    trunk = first
    for block in range(blocks):
        inner = trunk
        for part in (1, 2, 3):
            inner = dense(f"RRDB_trunk.{block}.RDB{part}", inner)
        trunk = inner * 0.2 + trunk
    up = first + layer("trunk_conv", trunk)
    for name in ("upconv1", "upconv2"):
        up = leaky_relu(layer(name, interpolate(up, scale_factor=2, mode="nearest")), 0.2)
    colours = layer("conv_last", leaky_relu(layer("HRconv", up), 0.2))[0].clamp(0, 1)
    return np.rint(colours.mean(0).numpy() * 255).astype(np.uint8)


def pictures(count, height, width):
    return np.random.default_rng(0).integers(0, 256, (count, height, width), np.uint8)


@pytest.fixture
def weights(tmp_path):
    torch.save(published_names(), tmp_path / f"{FILES[0]}.pth")
    return load_upscaler("esrgan", str(tmp_path))


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_equals_a_plain_network(weights):
    slices = pictures(2, 20, 24)
    enlarged = Upscaler(weights)(slices)
    assert enlarged.shape == (2, 80, 96)
    assert enlarged.dtype == np.uint8
    assert enlarged.std() > 5
    for picture, output in zip(slices, enlarged, strict=True):
        expected = plain(published_names(), picture).astype(int)
        assert np.abs(output - expected).max() <= 1  # a half may be rounded up or down
        assert (output == expected).mean() > 0.999


def test_tiles_equal_one_pass_if_the_margin_is_the_reach(weights):
    slices = pictures(1, 97, 121)
    whole = Upscaler(weights)(slices).astype(int)
    tiled = Upscaler(weights, tile=80)
    assert tiled.margin == reach(1) == 19
    from_tiles = tiled(slices)
    assert np.abs(from_tiles - whole).max() <= 1
    assert (from_tiles == whole).mean() > 0.999
    narrow = Upscaler(weights, tile=32, margin=1)(slices)
    assert (narrow == whole).mean() < (from_tiles == whole).mean()  # a narrow margin leaves visible seams


def test_a_pixel_changes_nothing_beyond_the_reach(weights):
    """A change of one pixel changes pixels within the reach, and none beyond it."""
    slices = pictures(1, 60, 60)
    changed = slices.copy()
    changed[0, 30, 30] ^= 0xFF
    upscaler = Upscaler(weights)
    rows, columns = np.nonzero((upscaler(slices) != upscaler(changed))[0])
    assert len(rows)
    distance = max(30 - rows.min() // 4, rows.max() // 4 - 30, 30 - columns.min() // 4, columns.max() // 4 - 30)
    assert distance <= reach(1)


@pytest.mark.parametrize(("height", "width"), [(5, 7), (16, 200), (33, 90)])
@pytest.mark.parametrize(("tile", "margin"), [(16, 4), (32, 0), (64, 8)])
def test_every_pixel_is_computed_in_passes_of_one_tile(weights, monkeypatch, height, width, tile, margin):
    def nearest(_, part):
        assert max(part.shape) <= tile
        return part.repeat(4, 0).repeat(4, 1)

    monkeypatch.setattr(Upscaler, "_enlarge", nearest)
    slices = pictures(2, height, width)
    enlarged = Upscaler(weights, tile=tile, margin=margin)(slices)
    assert np.array_equal(enlarged, slices.repeat(4, 1).repeat(4, 2))


def test_out_of_memory_halves_the_tile(weights, monkeypatch):
    real, sizes = Upscaler._enlarge, []

    def short(self, part):
        sizes.append(max(part.shape))
        if sizes[-1] > 40:
            raise RuntimeError("CUDA out of memory")
        return real(self, part)

    monkeypatch.setattr(Upscaler, "_enlarge", short)
    upscaler = Upscaler(weights)
    enlarged = upscaler(pictures(1, 50, 50))
    assert upscaler.tile == 25
    assert enlarged.shape == (1, 200, 200)
    monkeypatch.setattr(Upscaler, "_enlarge", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError):
        upscaler(pictures(1, 50, 50))


def test_bicubic_is_pillows_and_needs_no_spandrel(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.setitem(sys.modules, "spandrel.architectures", None)
    slices = pictures(2, 16, 20)
    weights = load_upscaler("bicubic", None)
    enlarged = Upscaler(weights)(slices)
    for picture, output in zip(slices, enlarged, strict=True):
        assert np.array_equal(output, np.asarray(Image.fromarray(picture).resize((80, 64), Image.BICUBIC)))
    assert weights.identity == "bicubic"
    with pytest.raises(UsageError, match=r"needs the package spandrel: pip install \"gansfp\[superresolution\]\""):
        load_upscaler("esrgan@random", None)


def test_random_is_the_published_architecture_and_always_the_same():
    before = torch.random.get_rng_state()
    first, second = load_upscaler("esrgan@random", None, blocks=1), load_upscaler("esrgan@random", None, blocks=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.identity == second.identity != load_upscaler("esrgan@random", None, blocks=2).identity
    assert first.tensors["model.0.weight"].shape == (64, 3, 3, 3)
    slices = pictures(1, 16, 16)
    assert np.array_equal(Upscaler(first)(slices), Upscaler(second)(slices))
    assert superresolution.BLOCKS == 23


def test_both_kinds_of_files_and_older_names_give_the_same(tmp_path, weights):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    safetensors.torch.save_file(published_names(), tmp_path / "a" / f"{FILES[0]}.safetensors")
    torch.save({"params_ema": published_names()}, tmp_path / "b" / f"{FILES[1]}.pth")
    torch.save(dict(weights.tensors), tmp_path / "c" / f"{FILES[0]}.pth")
    for name in ("a", "b", "c"):
        assert load_upscaler("esrgan", str(tmp_path / name)).identity == weights.identity
    changed = published_names()
    changed["conv_last.bias"] += 0.1
    torch.save(changed, tmp_path / "c" / f"{FILES[0]}.pth")
    assert load_upscaler("esrgan", str(tmp_path / "c")).identity != weights.identity


def test_the_error_names_the_missing_file_and_its_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"put RRDB_ESRGAN_x4\.pth") as caught:
        load_upscaler("esrgan", str(tmp_path))
    assert str(tmp_path) in one_line(caught)
    with pytest.raises(WeightsError, match="name it with --weights"):
        load_upscaler("esrgan", None)
    with pytest.raises(UsageError, match="got '/nowhere/at/all', expected a folder"):
        load_upscaler("esrgan", "/nowhere/at/all")


def broken(kind):
    whole = published_names()
    if kind == "by 2":
        return published_names(ups=("upconv1",))
    if kind == "without a layer":
        return {name: tensor for name, tensor in whole.items() if name != "HRconv.weight"}
    if kind == "two colours":
        return published_names(colours=2)
    if kind == "another network":
        return {"conv1.weight": torch.zeros(3, 3), "fc.bias": torch.zeros(2)}
    return {"nothing": "a word"} if kind == "no tensors" else [1, 2]


@pytest.mark.parametrize("kind", ["by 2", "without a layer", "two colours", "another network", "no tensors", "a list"])
def test_another_networks_file(tmp_path, kind):
    torch.save(broken(kind), tmp_path / f"{FILES[0]}.pth")
    with pytest.raises(WeightsError, match="cannot be read as an ESRGAN network for one image by 4") as caught:
        load_upscaler("esrgan", str(tmp_path))
    assert str(tmp_path / f"{FILES[0]}.pth") in one_line(caught)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_broken_file(tmp_path, ending):
    path = tmp_path / (FILES[0] + ending)
    path.write_bytes(b"no weights here")
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        load_upscaler("esrgan", str(tmp_path))
    assert str(path) in one_line(caught)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_never_run(tmp_path, save):
    marker = tmp_path / "executed"
    save({"conv_first.weight": Malicious(str(marker))}, tmp_path / f"{FILES[0]}.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_upscaler("esrgan", str(tmp_path))
    assert not marker.exists()


def test_bad_arguments():
    with pytest.raises(UsageError, match=r"got 'lanczos', expected one of \['bicubic', 'esrgan', 'esrgan@random'\]"):
        load_upscaler("lanczos", None)
    with pytest.raises(UsageError, match="got 0 blocks"):
        load_upscaler("esrgan@random", None, blocks=0)
    bicubic = load_upscaler("bicubic", None)
    with pytest.raises(UsageError, match="got 8 pixels"):
        Upscaler(bicubic, tile=8)
    with pytest.raises(UsageError, match="got 1 hashes for 2 slices"):
        upscale_files([Source("a"), Source("b")], ["1"], "nowhere", Upscaler(bicubic))
    with pytest.raises(UsageError, match="got side 300"):
        upscale_files([], [], "nowhere", Upscaler(bicubic), side=300)


@pytest.fixture
def files(tmp_path):
    """Two slices and a file that is not an image."""
    for number, picture in enumerate(pictures(2, 256, 256)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    return [Source(str(tmp_path / name)) for name in ("0.png", "bad.png", "1.png")]


class Counting(Upscaler):
    """An upscaler that counts the pictures that it has enlarged."""

    count = 0

    def __call__(self, pictures):
        self.count += len(pictures)
        return super().__call__(pictures)


def test_files_are_enlarged_once(tmp_path, files, weights, caplog):
    upscaler = Counting(weights)
    out = str(tmp_path / "out")
    made = upscale_files(files, ["aa", "bb", "cc"], out, upscaler, side=16)
    assert made == [f"{out}/{weights.identity}-16/aa.png", "", f"{out}/{weights.identity}-16/cc.png"]
    assert upscaler.count == 2
    assert "bad.png: left out of super-resolution (not a DICOM, PNG" in caplog.text
    small = np.asarray(Image.open(files[2].uri).resize((16, 16), Image.BICUBIC)).astype(int)
    expected = Upscaler(weights)(small.astype(np.uint8)[None])[0].astype(int)
    enlarged = np.asarray(Image.open(made[2]))
    assert enlarged.shape == (64, 64)
    assert np.abs(enlarged - expected).mean() < 0.5  # Pillow rounds between rows and columns
    os.remove(made[0])
    again = upscale_files(files, ["aa", "bb", "cc"], out, upscaler, side=16)
    assert again == made
    assert upscaler.count == 3
    assert Path(made[0]).exists()


def test_another_upscalers_pictures_are_not_taken(tmp_path, files, weights):
    upscalers = [Upscaler(load_upscaler("bicubic", None)), Upscaler(weights)]
    places = {
        upscale_files(files[:1], ["aa"], str(tmp_path / "out"), upscaler, side=side)[0]
        for upscaler in upscalers
        for side in (8, 16)
    }
    assert len(places) == 4
    assert len({Path(place).read_bytes() for place in places}) == 4
