"""The U-Net: its examples, its figures against plain ones, and the lungs it finds in slices of other patients."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gansfp.embedding.network_masks import Segmenter, load_mask
from gansfp.errors import DataError, UsageError
from gansfp.images import lungs
from gansfp.networks.lung_unet import LungUnet
from gansfp.simulation.phantom import phantoms
from gansfp.training.loop import Settings
from gansfp.training.masked_slices import pair_folders, read_pair
from gansfp.training.unet import Averaging, LungAugmentation, UnetTraining, _Examples, _Learner


def write(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(folder / name)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Images and masks of 5 patients with 4 slices each: phantoms and their threshold masks."""
    pixels, groups = phantoms(5, 4, seed=1)
    names = [f"{group}_z{number % 4}.png" for number, group in enumerate(groups)]
    folder = tmp_path_factory.mktemp("pairs")
    write(folder / "images", dict(zip(names, pixels, strict=True)))
    drawn = [lungs.threshold_mask(slice_).astype(np.uint8) * 255 for slice_ in pixels]
    write(folder / "masks", dict(zip(names, drawn, strict=True)))
    return str(folder / "images"), str(folder / "masks")


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    """A training of a few seconds: the training, its folder, its record and the reports of its epochs."""
    training = UnetTraining(pair_folders(*folders), Settings("adam", 2e-3, batch=4, epochs=10, patience=0))
    folder, reports = str(tmp_path_factory.mktemp("models") / "unet"), []
    return training, folder, training.run(folder, "cpu", reports.append), reports


def test_pairs_have_their_volumes_and_a_digest(folders):
    pairs = pair_folders(*folders)
    assert len(pairs) == 20
    assert pairs.volumes == tuple(f"patient_{number // 4:04d}" for number in range(20))
    assert pair_folders(*folders) == pairs
    pixels, mask = read_pair(pairs.images[5], pairs.masks[5])
    np.testing.assert_array_equal(mask, lungs.threshold_mask(pixels))


def test_a_table_names_volumes_and_masks_may_be_of_ones(tmp_path):
    image, mask = np.full((256, 256), 90, np.uint8), np.eye(256, dtype=np.uint8)
    write(tmp_path / "i", {"a.png": image, "b_z1.png": image})
    write(tmp_path / "m", {"a.png": mask, "b_z1.png": mask * 0})
    pairs = pair_folders(str(tmp_path / "i"), str(tmp_path / "m"))
    assert pairs.volumes == ("a", "b")
    np.testing.assert_array_equal(read_pair(pairs.images[0], pairs.masks[0])[1], np.eye(256, dtype=bool))
    (tmp_path / "i" / "groups.csv").write_text("image_id,group\na,x\nb_z1,y\n")
    again = pair_folders(str(tmp_path / "i"), str(tmp_path / "m"))
    assert again.volumes == ("x", "y")
    assert again.digest != pairs.digest
    (tmp_path / "i" / "groups.csv").write_text("image_id,group\na,x\n")
    with pytest.raises(DataError, match="no group for 'b_z1'"):
        pair_folders(str(tmp_path / "i"), str(tmp_path / "m"))


def test_a_slice_that_cannot_be_read_is_left_out(tmp_path, caplog):
    image = np.eye(256, dtype=np.uint8) * 255
    for folder in ("i", "m"):
        write(tmp_path / folder, {"a.png": image, "b.png": image})
    (tmp_path / "i" / "a.png").write_bytes(b"")
    assert pair_folders(str(tmp_path / "i"), str(tmp_path / "m")).volumes == ("b",)
    assert "left out 1 of 2 slices that cannot be read, such as a.png: empty file" in caplog.text
    (tmp_path / "i" / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="no slice can be read"):
        pair_folders(str(tmp_path / "i"), str(tmp_path / "m"))


def test_folders_that_are_no_pairs(tmp_path):
    image = np.eye(256, dtype=np.uint8) * 255
    write(tmp_path / "i", {"a.png": image, "b.png": image})
    write(tmp_path / "m", {"a.png": image, "c.png": image, "d.png": image})
    i, m, empty = str(tmp_path / "i"), str(tmp_path / "m"), str(tmp_path / "empty")
    with pytest.raises(DataError, match=r"3 names that only one of .* b.png, c.png, d.png; expected a mask"):
        pair_folders(i, m)
    with pytest.raises(UsageError, match="which is --images"):
        pair_folders(i, i)
    for arguments, option in (((empty, m), "--images"), ((i, empty), "--masks")):
        with pytest.raises(DataError, match=f"{option}: got .* no files"):
            pair_folders(*arguments)
    write(tmp_path / "grey", {"a.png": image, "b.png": np.arange(65536, dtype=np.uint16).reshape(256, 256) // 256})
    with pytest.raises(DataError, match=r"b.png: got a mask of 256 grey levels, such as 128, expected 0, and 255"):
        pair_folders(i, str(tmp_path / "grey"))
    write(tmp_path / "black", {"a.png": image * 0, "b.png": image * 0})
    with pytest.raises(DataError, match="all masks are empty"):
        pair_folders(i, str(tmp_path / "black"))


def test_whole_volumes_are_held_out(folders):
    pairs = pair_folders(*folders)
    volumes = np.array(pairs.volumes)
    for seed in range(4):
        training = UnetTraining(pairs, Settings(seed=seed))
        train_rows, valid_rows = training.split()
        assert not set(volumes[train_rows]) & set(volumes[valid_rows])
        assert sorted([*train_rows, *valid_rows]) == list(range(20))
        assert len(valid_rows) == 4
        assert training.identity()["held_out"] == sorted(set(volumes[valid_rows]))
    assert set(volumes[UnetTraining(pairs, held_out=("patient_0003",)).split()[1]]) == {"patient_0003"}
    for wrong in ({"held_out": ("patient_9",)}, {"held_out": tuple(volumes)}, {"examples": pairs.take(np.arange(4))}):
        with pytest.raises(DataError, match="expected some to train on and others to validate with"):
            UnetTraining(**{"examples": pairs, **wrong})


def test_augmentation_depends_only_on_its_numbers_and_moves_mask_and_slice_together():
    pixels = phantoms(1, 1, seed=3)[0][0]
    mask = pixels > 128
    many = [LungAugmentation().apply(pixels, mask, 7, epoch, 3) for epoch in range(12)]
    again = LungAugmentation().apply(pixels, mask, 7, 5, 3)
    np.testing.assert_array_equal(many[5][0], again[0])
    np.testing.assert_array_equal(many[5][1], again[1])
    assert len({slice_.tobytes() for slice_, _ in many}) == 12
    for changed, moved in (
        LungAugmentation(gamma=0, contrast=0, brightness=0).apply(pixels, mask, k) for k in range(6)
    ):
        assert changed.dtype == np.uint8
        assert moved.dtype == bool
        assert ((changed > 128) == moved).mean() > 0.98
    still = LungAugmentation(moved=0.0)
    masks = [still.apply(pixels, mask, k)[1] for k in range(12)]
    assert {(changed == mask).all() or (changed == mask[:, ::-1]).all() for changed in masks} == {True}


def test_the_average_follows_the_weights():
    network = torch.nn.Linear(1, 1)
    averaging, means = Averaging(network), []
    for value in range(5):
        network.weight.data.fill_(value)
        averaging(torch.zeros(1, 1))
        means.append(float(averaging.average.weight))
    expected, mean = [], 0.0
    for step, value in enumerate(range(5)):
        kept = min(0.98, (1 + step) / (10 + step))
        mean = kept * mean + (1 - kept) * value if step else means[0]
        expected.append(mean)
    assert means == pytest.approx(expected)
    averaging.eval()
    assert torch.equal(averaging(torch.ones(1, 1)), averaging.average(torch.ones(1, 1)))


def test_the_average_of_buffers_equals_a_plain_loop():
    """Floating point buffers are averaged like weights; whole numbers are copied."""
    network = torch.nn.BatchNorm1d(1)
    averaging, mean = Averaging(network), 0.0
    for step, value in enumerate((0.0, 3.0, 1.0)):
        network.running_mean.fill_(value)
        network.num_batches_tracked.fill_(step)
        network.eval()  # a forward pass must not change the buffers of this test
        averaging(torch.zeros(2, 1))
        decay = min(0.98, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * value
        assert float(averaging.average.running_mean) == pytest.approx(mean)
        assert int(averaging.average.num_batches_tracked) == step


def test_the_names_in_a_model_file_stay():
    """Models of earlier versions have these names, and gansfp.networks.lung_unet.read_unet takes the average."""
    assert list(Averaging(torch.nn.Linear(1, 1, bias=False)).state_dict()) == [
        *("steps", "network.weight", "average.weight")
    ]
    # On several GPUs the training loop synchronises batch norm, which must keep the names, too.
    names, network = list(Averaging(LungUnet()).state_dict()), Averaging(LungUnet())
    assert list(torch.nn.SyncBatchNorm.convert_sync_batchnorm(network).state_dict()) == names


def test_figures_equal_plain_ones():
    rng = np.random.default_rng(0)
    truth, predicted, threshold = rng.random((3, 7, 16, 16)) < np.array([0.3, 0.4, 0.5])[:, None, None, None]
    truth[0], predicted[0] = False, False  # both are empty, so they agree
    truth[1] = False
    learner = _Learner.__new__(_Learner)
    sums = {}
    for rows in (slice(0, 4), slice(4, 7)):
        part = {"pixels": predicted[rows], "mask": truth[rows], "threshold": threshold[rows]}
        batch = {name: torch.from_numpy(array) for name, array in part.items()}
        of_batch = learner.measure(lambda pixels: torch.where(pixels, 1.5, -1.5), batch)
        sums = {name: float(value) + sums.get(name, 0.0) for name, value in of_batch.items()}
    figures = learner.figures(sums)
    for name, masks in (("", predicted), ("threshold_", threshold)):
        dices = [lungs.dice(a, b) for a, b in zip(masks, truth, strict=True)]
        ious = [(a & b).sum() / (a | b).sum() if (a | b).any() else 1.0 for a, b in zip(masks, truth, strict=True)]
        assert figures[f"{name}dice"] == pytest.approx(np.mean(dices))
        assert figures[f"{name}iou"] == pytest.approx(np.mean(ious))
        assert figures[f"{name}dice_of_pixels"] == pytest.approx(lungs.dice(masks.ravel(), truth.ravel()))
        assert figures[f"{name}iou_of_pixels"] == pytest.approx((masks & truth).sum() / (masks | truth).sum())
    losses = []
    for a, b in zip(predicted, truth, strict=True):
        p = 1 / (1 + np.exp(-np.where(a, 1.5, -1.5)))
        entropy = -np.mean(np.where(b, np.log(p), np.log(1 - p)))
        losses.append(entropy + 1 - (2 * p[b].sum() + 1) / (p.sum() + b.sum() + 1))
    assert figures["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_short_training_finds_the_lungs_of_other_patients(trained):
    training, folder, record, reports = trained
    assert [report["epoch"] for report in reports] == list(range(1, 11))
    assert record.as_dict() == json.loads(Path(folder, "model.json").read_text())
    figures = record.figures
    assert figures["dice"] > 0.8
    assert figures["threshold_dice"] == 1.0  # the threshold mask drew these masks
    held_out = training.examples.take(training.split()[1])
    pairs = [read_pair(image, mask) for image, mask in zip(held_out.images, held_out.masks, strict=True)]
    masks = Segmenter("unet", load_mask(f"unet:{folder}", None))(np.stack([pixels for pixels, _ in pairs]))
    dices = [lungs.dice(mask, drawn) for mask, (_, drawn) in zip(masks, pairs, strict=True)]
    assert np.mean(dices) == pytest.approx(figures["dice"], abs=1e-3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_default_training_finds_what_radiologists_drew(shared, tmp_path):
    """On two of six volumes, which it was not trained on, it is better than the threshold mask."""
    pairs = pair_folders(str(shared / "lung_masks" / "images"), str(shared / "lung_masks" / "masks"))
    figures = UnetTraining(pairs).run(str(tmp_path / "unet"), "cpu").figures
    assert figures["dice"] >= 0.96
    assert figures["dice"] >= figures["threshold_dice"]


def test_a_finished_training_is_not_repeated_and_other_examples_are_refused(trained):
    training, folder, record, _ = trained
    assert training.run(folder, "cpu") == record
    with pytest.raises(UsageError, match="trained with held_out"):
        replace(training, held_out=("patient_0001", "patient_0002")).run(folder, "cpu")


def test_an_item_depends_on_its_epoch(folders):
    pairs = pair_folders(*folders)
    examples = _Examples(pairs, LungAugmentation(), seed=0)
    first, again, later = examples.item(2, 1), examples.item(2, 1), examples.item(2, 2)
    assert set(first) == {"pixels", "mask"}
    np.testing.assert_array_equal(first["pixels"], again["pixels"])
    assert (first["pixels"] != later["pixels"]).any()
    item = _Examples(pairs, None, seed=0).item(2, 0)
    np.testing.assert_array_equal(item["pixels"], read_pair(pairs.images[2], pairs.masks[2])[0])
    np.testing.assert_array_equal(item["threshold"], lungs.threshold_mask(item["pixels"]))
