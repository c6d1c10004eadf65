"""Training from the command line, with Ray Train: its results, a kill in the middle, and wrong arguments."""

import functools
import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from processes import end_all_from
from runs import Running, draw

from gansfp.embedding import shards
from gansfp.errors import DataError, UsageError, WeightsError
from jobs import embed, train

EPOCHS = 15
TINY = ["--input-size", "32", "--batch-size", "32", "--patience", "0"]


def record(work: Path, name: str) -> dict:
    return json.loads((work / "models" / name / "model.json").read_text())


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_training_resumes_and_ends_at_the_same_epoch(challenge, tmp_path, capsys):
    work, state = tmp_path / "work", tmp_path / "work/models/autoencoder-warp/state.pt"
    options = ["autoencoder", "--data", str(challenge), "--work", str(work)]
    options += ["--set", "warp", "--epochs", str(EPOCHS), *TINY]

    @functools.lru_cache  # each state is read once: reading it again and again would take the training's core
    def epoch_of(changed: int) -> int:
        return torch.load(state, weights_only=True)["state"]["epoch"]

    def epoch() -> int:
        return epoch_of(state.stat().st_mtime_ns) if state.exists() else 0

    with Running([sys.executable, "-m", "jobs.train", *options], tmp_path / "first.log") as first:
        first.wait_until(lambda: epoch() >= 2)
        end_all_from(first.process.pid)
    before = epoch()
    assert 2 <= before < EPOCHS, "it must be killed in the middle"
    assert not (state.parent / "model.json").exists()
    train.main(options)
    output = capsys.readouterr()
    assert "train autoencoder-warp:" in output.err
    trained = record(work, "autoencoder-warp")
    assert trained["epochs"] == EPOCHS
    assert len(trained["history"]) == EPOCHS
    assert f"{EPOCHS - before} epochs in" in output.err  # the earlier epochs were not repeated
    assert sorted(path.name for path in state.parent.iterdir()) == ["model.json", "model.safetensors"]
    assert [path.name for path in (work / "models").iterdir()] == ["autoencoder-warp"]
    assert "use: " in output.out


@pytest.mark.ray
@pytest.mark.slow
def test_a_trained_classifier_is_a_backbone(challenge, tmp_path, capsys):
    work, data = str(tmp_path / "work"), str(tmp_path / "data")
    shutil.copytree(challenge / "membership/warp", tmp_path / "data/membership/warp")
    options = ["--data", data, "--work", work, "--backbone", "conv5@random", "--target", "generated"]
    train.main(["classifier", *options, "--set", "warp", "--epochs", "2", *TINY])
    trained = record(tmp_path / "work", "conv5-generated-warp")
    assert trained["identity"]["classes"] == ["real", "generated"]
    folder = str(tmp_path / "work/models/conv5-generated-warp")
    assert f"--backbones conv5@{folder}" in capsys.readouterr().out
    places = ["--data", data, "--work", work]
    embed.main([*places, "--backbones", f"conv5@{folder}", "--views", "full", "--max-actors", "1"])
    place = Path(shards.folder(work, (f"conv5@{folder}", "full")))
    tables = [pq.read_table(path) for path in place.glob("*.parquet")]
    assert sum(table.num_rows for table in tables) > 100
    assert tables[0]["embedding"].type.list_size == 512
    before = (Path(folder) / "model.json").read_bytes()
    train.main(["classifier", *options, "--set", "warp", "--epochs", "2", *TINY])  # the training has ended already
    assert (Path(folder) / "model.json").read_bytes() == before


def test_one_class_is_refused(challenge, tmp_path):
    data = tmp_path / "data"
    draw(data / "membership/one/train/used", 4)
    draw(data / "membership/one/test/unknown", 4)
    work = tmp_path / "work"
    with pytest.raises(DataError, match=r"got only \['used'\] in set 'one', expected two classes or more"):
        train.main(
            ["classifier", "--data", str(data), "--work", str(work), "--backbone", "conv5@random", "--target", "used"]
        )
    assert not (work / "models").exists()


def test_a_stage_file_with_an_unknown_key(challenge, tmp_path):
    stages = tmp_path / "stages.json"
    stages.write_text('[{"name": "first", "data": "warp", "epoch": 3}]')
    options = ["--data", str(challenge), "--work", str(tmp_path / "work"), "--backbone", "conv5@random"]
    with pytest.raises(
        UsageError, match=r"stages\.json: training stage 1: got key 'epoch', expected one of name, data"
    ):
        train.main(["classifier", *options, "--stages", str(stages)])
    assert not (tmp_path / "work/models").exists()


def test_masks_that_do_not_match(tmp_path):
    draw(tmp_path / "images", 3)
    draw(tmp_path / "masks", 3)
    work = tmp_path / "work"
    with pytest.raises(DataError, match="000"):
        train.main(
            ["unet", "--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks"), "--work", str(work)]
        )
    assert not (work / "models").exists()


def test_weights_of_another_architecture(challenge, tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "resnet18.pth")
    options = ["--data", str(challenge), "--work", str(tmp_path / "work"), "--weights", str(tmp_path)]
    with pytest.raises(WeightsError, match=r"resnet18\.pth: these are not the weights of timm's resnet18"):
        train.main(["classifier", *options, "--backbone", "resnet18", "--set", "warp"])
    assert not (tmp_path / "work/models").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classifier", "--backbone", "resnet1800"], "resnet1800"),
        (
            ["classifier", "--backbone", "resnet18", "--set", "x"],
            r"--set: got 'x', expected one of \['clean', 'warp'\]",
        ),
        (["classifier", "--backbone", "conv5@random", "--stages", "s", "--target", "used"], "--target: got 'used'"),
        (["classifier", "--backbone", "resnet18:64@random"], "--backbone: got 'resnet18:64@random', expected MODEL"),
        (["classifier", "--backbone", "resnet18@nowhere", "--set", "warp"], "nowhere"),
        (["autoencoder"], r"--set: got None, expected one of"),
        (["autoencoder", "--set", "warp", "--rate", "7"], r"learning rate: got 7\.0"),
        (["autoencoder", "--set", "warp", "--name", "../x"], r"--name: got '\.\./x'"),
        (["autoencoder", "--set", "warp", "--epochs", "0"], "got '0'"),
    ],
)
def test_wrong_options_are_errors_of_one_line(challenge, tmp_path, arguments, message):
    work = tmp_path / "work"
    with pytest.raises(UsageError, match=message):
        train.main([*arguments, "--data", str(challenge), "--work", str(work)])
    assert not (work / "models").exists()
