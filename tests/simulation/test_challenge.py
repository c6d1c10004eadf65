"""The challenge writer: layout, sizes, truth and groups agree; equal seeds give equal bytes; leaks are measurable."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from gansfp.collection.catalog import read_catalog
from gansfp.errors import DataError, UsageError
from gansfp.runtime.command import run
from gansfp.simulation import challenge as module
from gansfp.simulation import processes
from gansfp.simulation.challenge import SimulatedSet, phantom_archive, simulate, simulated_set
from gansfp.simulation.configuration import SETS, SetSize, SimulationConfig
from gansfp.simulation.generators import generate
from jobs.simulate import main

SMALL = {
    "labelled": 6,
    "unknown": 10,
    "generated": 8,
    "generated_test": 4,
    "attributed": 4,
    "attributed_test": 4,
    "vae_steps": 2,
    "glo_steps": 2,
}
EVERY = SimulationConfig(seed=4, **SMALL)
ROLES = ("used", "not_used")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "DATA"
    simulate(EVERY, str(out), progress=lambda line: None)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_and_sizes(data):
    counts = Counter(str(path.parent.relative_to(data)) for path in data.rglob("*.png"))
    expected = {f"attribution/train/{generator}": 4 for generator in ("vae", "glo", "warp")} | {"attribution/test": 16}
    for name in ("glo", "warp", "clean"):
        home = f"membership/{name}"
        expected |= {f"{home}/train/used": 6, f"{home}/train/not_used": 6, f"{home}/train/generated": 8}
        expected |= {f"{home}/test/unknown": 10, f"{home}/test/generated": 4}
    assert counts == expected
    for path in data.rglob("*.png"):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L", (256, 256))


def test_the_catalog_reads_it_and_finds_no_duplicates(data):
    catalog = read_catalog(str(data))
    assert catalog.sets() == ["clean", "glo", "warp"]
    assert catalog.duplicates() == []
    groups = catalog.select(task="membership", role="unknown").column("group")
    assert (groups != "").all()


def test_truth_names_each_unknown_once_and_no_patient_is_on_both_sides(data):
    groups = {row["image_id"]: row["group"] for row in rows(data / "groups.csv")}
    assert len(groups) == 3 * 22
    owners: list[set[str]] = []
    for name in ("glo", "warp", "clean"):
        home = f"membership/{name}"
        truth = {row["image_id"]: row["used"] for row in rows(data / home / "test" / "truth.csv")}
        assert set(truth) == {path.stem for path in (data / home / "test" / "unknown").iterdir()}
        assert Counter(truth.values()) == {"0": 5, "1": 5}
        classes = [
            {group for id_, group in groups.items() if id_.startswith(f"{home}/train/{role}/")}
            for role in ("used", "not_used")
        ]
        classes += [{groups[f"{home}/test/unknown/{id_}"] for id_ in truth if truth[id_] == used} for used in "01"]
        owners += classes
        assert all(len(owner) == 3 for owner in classes)
    assert sum(map(len, owners)) == len(set.union(*owners))


def test_attribution_truth_has_the_unseen_generator_and_no_order(data):
    truth = rows(data / "attribution/test/truth.csv")
    assert [row["image_id"] for row in truth] == sorted(path.stem for path in (data / "attribution/test").glob("*.png"))
    generators = [row["generator"] for row in truth]
    assert Counter(generators) == {"vae": 4, "glo": 4, "warp": 4, "eigen": 4}
    assert generators != sorted(generators)
    assert len({digest for name, digest in digests(data).items() if name.endswith(".png")}) == 66 + 36 + 12 + 16


def test_equal_seeds_give_equal_bytes_and_others_do_not(data, tmp_path):
    simulate(EVERY, str(tmp_path / "again"), progress=lambda line: None)
    assert digests(tmp_path / "again") == digests(data)
    tiny = {"sets": ("warp",), "known": (), "unseen": ()} | SMALL
    for seed in (4, 5):
        simulate(SimulationConfig(seed=seed, **tiny), str(tmp_path / str(seed)), progress=lambda line: None)
    four, five = digests(tmp_path / "4"), digests(tmp_path / "5")
    assert four.keys() == five.keys()
    assert not any(four[name] == five[name] for name in four if name.endswith((".png", "truth.csv")))


def test_processes_give_the_same_bytes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_PICTURES_EACH", 50)
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {0, 1})
    simulate(EVERY, str(tmp_path / "DATA"), progress=lambda line: None)
    assert digests(tmp_path / "DATA") == digests(data)


def test_sets_may_differ_in_size_and_few_slices_train_a_generator_of_the_attribution_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_TO_TRAIN", 3)
    sizes = {"warp": SetSize(3, 6, 5, 2), "warp_2": SetSize(6, 4, 3, 4)}
    lines: list[str] = []
    config = SimulationConfig.tiny(
        sets=tuple(sizes), set_sizes=sizes, attributed=2, attributed_test=3, slices_per_patient=3
    )
    simulate(config, str(tmp_path / "DATA"), progress=lines.append)
    counts = Counter(str(path.parent.relative_to(tmp_path / "DATA")) for path in tmp_path.rglob("*.png"))
    assert counts == {
        **{f"membership/{name}/train/{role}": size.labelled for name, size in sizes.items() for role in ROLES},
        **{f"membership/{name}/train/generated": size.generated for name, size in sizes.items()},
        **{f"membership/{name}/test/generated": size.generated_test for name, size in sizes.items()},
        **{f"membership/{name}/test/unknown": size.unknown for name, size in sizes.items()},
        **{f"attribution/train/{generator}": 2 for generator in ("warp", "eigen")},
        "attribution/test": 6,
    }
    patients = Counter(row["group"] for row in rows(tmp_path / "DATA" / "groups.csv"))
    assert set(patients.values()) <= {1, 2, 3}
    trained = sorted(line.partition("by ")[2] for line in lines if "trained on" in line)
    assert trained == [
        "eigen, trained on 3 slices of set warp",
        "warp, trained on 6 slices of set warp",
        "warp, trained on 8 slices of set warp_2",
    ]


def test_the_size_of_imageclef_2024_and_multiples_of_the_default():
    config = SimulationConfig.imageclef_2024()
    sizes = [config.size(name) for name in config.sets]
    assert [size.generated + size.generated_test for size in sizes] == [17_200, 15_000]
    assert [2 * size.labelled + size.unknown for size in sizes] == [4_200, 10_000]
    assert all(config.leaks(name) for name in config.sets)
    assert len(config.known) * config.attributed == 600
    assert (len(config.known) + len(config.unseen)) * config.attributed_test == 3_000
    assert module._pictures(config) == 50_000
    assert module._pictures(SimulationConfig().times(16)) == 16 * module._pictures(SimulationConfig())
    smaller = config.with_counts(labelled=7)
    assert [smaller.size(name) for name in config.sets] == [SetSize(7, *sizes[i][1:]) for i in range(2)]


def highpass(pixels: np.ndarray) -> np.ndarray:
    smooth = ndimage.uniform_filter(pixels.astype(np.float32), (0, 31, 31), mode="reflect")
    small = (pixels - smooth).reshape(len(pixels), 64, 4, 64, 4).mean((2, 4)).reshape(len(pixels), -1)
    small -= small.mean(axis=1, keepdims=True)
    return small / np.linalg.norm(small, axis=1, keepdims=True)


def auc(simulated: SimulatedSet, config: SimulationConfig) -> float:
    """The AUC of the distance to the nearest generated slice, calibrated by the nearest labelled not-used slice."""
    generated = generate(SETS[simulated.name].generator, simulated.training, 80, config.seed, config.settings())
    unknown = highpass(simulated.unknown.pixels)
    to_generated, to_not_used = (
        np.linalg.norm(unknown[:, None] - highpass(pixels)[None], axis=2).min(axis=1)
        for pixels in (generated, simulated.not_used.pixels)
    )
    return float(roc_auc_score(simulated.unknown_used, np.log(to_not_used) - np.log(to_generated)))


def test_what_should_leak_leaks_and_what_should_not_does_not():
    archive = phantom_archive(SimulationConfig.tiny(seed=1), 60)
    leaking = SimulationConfig.tiny(seed=1)
    assert auc(simulated_set(leaking, "warp", archive), leaking) > 0.9
    without_leak = []
    for seed in range(6):
        config = SimulationConfig.tiny(seed=seed, leak=0.0)
        without_leak += [auc(simulated_set(config, name, archive), config) for name in ("warp", "clean")]
    # One AUC of 32 slices of 16 patients has a standard error of about 0.13. Twelve with shared patients: 0.05.
    assert 0.35 < np.mean(without_leak) < 0.65
    assert np.std(without_leak) > 0


def test_training_slices_are_the_used_ones_or_outsiders():
    config = SimulationConfig.tiny()
    for name, leaks in (("warp", True), ("clean", False)):
        simulated = simulated_set(config, name)
        unknown, truth = simulated.unknown.pixels, simulated.unknown_used
        used = {picture.tobytes() for picture in (*simulated.used.pixels, *unknown[truth])}
        not_used = {picture.tobytes() for picture in (*simulated.not_used.pixels, *unknown[~truth])}
        trained = {picture.tobytes() for picture in simulated.training}
        assert len(trained) == config.labelled + config.unknown // 2
        assert (trained == used) is leaks
        assert trained.isdisjoint(used) is not leaks
        assert trained.isdisjoint(not_used)


@pytest.mark.parametrize("patients", [10, 200])
def test_real_slices_come_from_their_folder_with_their_groups(tmp_path, patients):
    config = SimulationConfig.tiny(
        labelled=4, unknown=8, generated=6, generated_test=2, attributed=2, attributed_test=2, leak=0.5
    )
    rng = np.random.default_rng(0)
    real = tmp_path / "real"
    real.mkdir()
    lines = ["image_id,group"]
    patient_of: dict[str, str] = {}
    for number in range(200):
        picture = rng.integers(0, 255, (256, 256), dtype=np.uint8)
        Image.fromarray(picture).save(real / f"x{number:03d}.png", compress_level=0)
        lines.append(f"x{number:03d},v{number % patients}")
        patient_of[picture.tobytes()] = f"v{number % patients}"
    (real / "groups.csv").write_text("\n".join(lines) + "\n")
    progress: list[str] = []
    simulate(config, str(tmp_path / "DATA"), str(real), progress.append)
    groups = {row["image_id"]: row["group"] for row in rows(tmp_path / "DATA" / "groups.csv")}
    written = [
        (str(path.relative_to(tmp_path / "DATA"))[:-4], np.array(Image.open(path)).tobytes())
        for path in (tmp_path / "DATA").rglob("real_*.png")
    ]
    assert len(written) == 32
    assert all(groups[name] == patient_of[picture] for name, picture in written)
    shared = any("too few to give each set its own" in line for line in progress)
    assert shared is (patients == 10)
    if not shared:
        assert len({picture for _, picture in written}) == 32


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(module, "generate_in_turn", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        simulate(SimulationConfig.tiny(), str(tmp_path / "DATA"), progress=lambda line: None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused_and_not_changed(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"dear")
    with pytest.raises(DataError, match="not an empty folder"):
        simulate(SimulationConfig.tiny(), str(tmp_path), progress=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    with pytest.raises(DataError, match="not an empty folder"):
        simulate(SimulationConfig.tiny(), str(tmp_path / "mine.png"), progress=lambda line: None)
    with pytest.raises(UsageError, match="expected a local folder"):
        simulate(SimulationConfig.tiny(), "s3://bucket/x", progress=lambda line: None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "got seed -1"),
        ({"leak": 1.5}, "got leak 1.5"),
        ({"leak": float("nan")}, "got leak nan"),
        ({"labelled": 1}, "got labelled 1"),
        ({"set_sizes": {"warp": SetSize(1, 2, 2, 2)}}, "got labelled 1"),
        ({"attributed_test": 1}, "got attributed_test 1"),
        ({"unknown": 0}, "got unknown 0"),
        ({"slices_per_patient": 0}, "got slices_per_patient 0"),
        ({"glo_steps": 0}, "got glo_steps 0"),
        ({"sets": ()}, "got no sets"),
        ({"sets": ("gan",)}, "got 'gan', expected one of"),
        ({"sets": ("warp", "warp")}, "got 'warp' 2 times"),
        ({"known": ("clean",)}, "got 'clean', expected one of"),
        ({"unseen": ("glo",)}, "got 'glo' 2 times"),
        ({"known": ()}, "got unseen generators"),
    ],
)
def test_wrong_values_are_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        SimulationConfig(**wrong)


def test_the_command_writes_a_small_challenge_and_refuses_what_is_wrong(tmp_path, capsys):
    out = str(tmp_path / "DATA")
    main(
        ["--out", out, "--small", "--labelled", "4", "--unknown", "6", "--generated", "5", "--seed", "7", "--leak", "0"]
    )
    assert f"images in {out}" in capsys.readouterr().out
    assert len(list((tmp_path / "DATA/membership/warp/train/used").iterdir())) == 4
    for wrong, message in (
        (["--out", out, "--small"], "exists and is not an empty folder"),
        (["--out", out + "2", "--leak", "2"], "got leak 2.0"),
        (["--out", out + "2", "--real", str(tmp_path / "none")], "no images found"),
        (["--out", out + "2", "--unknown", "x"], "got 'x'"),
        (["--out", out + "2", "--size", "huge"], "'huge'"),
        ([], "--out"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(main, wrong)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "DATA2").exists()
