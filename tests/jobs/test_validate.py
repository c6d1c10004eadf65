"""jobs.validate: packs have the truth that they claim, biases do what they are named after, figures are right."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from gansfp.embedding.measures import MEASURES, measures
from gansfp.errors import DataError, UsageError
from gansfp.runtime.lock import held
from gansfp.simulation.patients import Archive
from gansfp.simulation.phantom import phantoms
from jobs import validate
from jobs.validation.biases import BIASES, apply
from jobs.validation.packs import Outcome, Pack, audit_pack, embed_archive, run_pack
from jobs.validation.table import SHARES, Figure, Plan, averaged, counted, figures, markdown, packs

OUTCOME = Outcome("leak", 0.9, 0.5, 0.01, 0.01, (), 10, 9, 10, 20, 0.4, 0.5, 0.6)


@pytest.fixture(scope="module", autouse=True)
def fewer_generated_slices():
    """Most of a pack's seconds here are to draw and embed them. The packs that Ray's workers run have all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.validation.packs.GENERATED", 100)
        yield


@pytest.fixture(scope="module")
def archive():
    return embed_archive(Archive(*phantoms(60, 2, 0)))


def test_the_same_pack_twice_gives_the_same_outcome(archive):
    pack = Pack(3, 12, "warp", permutations=60)
    first = audit_pack(archive, pack)
    assert first == audit_pack(archive, pack)
    assert first != audit_pack(archive, replace(pack, seed=4))


def test_a_leak_is_found_and_other_patients_slices_are_none(archive):
    leak, none = (audit_pack(archive, Pack(0, 12, leak, permutations=99)) for leak in ("warp", ""))
    assert (leak.finding, none.finding) == ("leak", "no evidence")
    assert leak.auc > 0.95 > 0.75 > none.auc
    assert (leak.used, leak.unknown, none.used) == (12, 24, 12)
    assert leak.low <= 0.5 <= leak.high


def test_two_tables_are_named_and_are_no_leak(archive):
    found = audit_pack(archive, Pack(1, 12, "", "position", permutations=99))
    assert found.finding != "leak"
    assert "position or size of the body" in found.kinds


def test_a_pack_whose_unknown_patients_are_of_one_class_has_a_share(archive):
    found = audit_pack(archive, Pack(2, 12, "warp", share=1.0, permutations=60))
    assert (found.used, found.unknown, found.blind, found.auc) == (24, 24, None, None)
    assert found.high == 1.0


def test_leaks_of_the_smallest_size_and_around_it_are_planted(archive):
    outcomes = run_pack(archive, Pack(5, 12, power=True, permutations=60))
    assert list(outcomes) == ["0.5", "1", "2"]
    aucs = [outcome.auc for outcome in outcomes.values()]
    assert aucs[0] < aucs[2]
    assert outcomes["2"].finding == "leak"
    assert run_pack(archive, Pack(0, 12, permutations=60)) == {"": audit_pack(archive, Pack(0, 12, permutations=60))}


def test_an_archive_with_too_few_patients_is_refused(archive):
    with pytest.raises(UsageError, match="got 60 patients, expected at least 100"):
        audit_pack(archive, Pack(0, 20))


@pytest.mark.parametrize("name", [name for name, bias in BIASES.items() if bias.change])
def test_a_bias_moves_a_measurement_of_its_kind_with_its_strength(name):
    bias, rng = BIASES[name], np.random.default_rng(0)
    pixels = phantoms(6, 1, 1)[0]

    def measured(strength):
        return measures(torch.from_numpy(apply(bias, pixels, np.full(6, strength), rng))).numpy().mean(0)

    low, high = measured(bias.usual), measured(bias.usual + 3 * bias.spread)
    moved = [m.kind for m, a, b in zip(MEASURES, low, high, strict=True) if abs(a - b) > 0.02 * max(abs(a), 1e-6)]
    assert set(moved) & set(bias.kinds)


def test_figures_count_and_average():
    share = counted("x", [True, True, False, True], at_least=0.9)
    expected = binomtest(3, 4).proportion_ci(0.95, "exact")
    assert (share.value, share.of, share.met) == (0.75, 4, False)
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high))
    mean = averaged("y", [1.0, 2.0, 3.0], at_most=2.0)
    assert (mean.value, mean.met) == (2.0, True)
    assert mean.high - mean.value == pytest.approx(1.96 / np.sqrt(3))
    assert counted("z", [True]).met is None


def test_the_table_says_what_is_not_met():
    groups = packs(Plan().times(0.001), 12, 0)
    assert len({pack.seed for of_group in groups.values() for pack in of_group}) == sum(map(len, groups.values()))
    assert groups == packs(Plan().times(0.001), 12, 0)
    assert sum(name.startswith("share") for name in groups) == len(SHARES)
    assert groups["glo 0.5"] == []  # a generator that must be trained: not in a small run
    lines = {line.name: line for line in figures({name: [OUTCOME] for name in groups})}
    assert lines['no leak, no bias: "leak"'].met is False  # the outcome says "leak" of every pack
    assert lines["warp: share of the named patients that is wrong"].value == pytest.approx(0.1)
    assert lines["share used: the interval covers it"].met is True
    table = markdown(list(lines.values()), "a machine")
    assert '| no leak, no bias: "leak" | 100.0% | 2.5% to 100.0% | 1 | at most 0.08 | **no** |' in table


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_scale_that_is_no_number_of_packs_is_refused(scale):
    with pytest.raises(UsageError, match=f"--scale: got {scale}, expected a number of more than 0"):
        validate.main(["--scale", scale])


def test_its_work_is_a_folder_of_its_own_that_no_other_command_uses(tmp_path):
    data, work = tmp_path / "data", str(tmp_path / "work")
    data.mkdir()
    options = ["--out", str(tmp_path), "--data", str(data), "--work"]
    with pytest.raises(UsageError, match="which is --data"):
        validate.main([*options, str(data)])
    with held(work, "jobs.audit"), pytest.raises(DataError, match=r"jobs\.audit"):
        validate.main([*options, work])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_here")
def test_the_command_writes_its_table(tmp_path, monkeypatch):
    kinds = ("null", "biased noise", "leak and position", "share 0.5", "warp 0.1")  # a small version: one pack each
    some = {name: of_group for name, of_group in packs(Plan().times(0.001), 6, 0).items() if name in kinds}
    monkeypatch.setattr(validate, "packs", lambda plan, patients, seed: some)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- written by jobs.validate -->\n<!-- end of jobs.validate -->\nafter\n")
    options = ["--scale", "0.001", "--patients", "6", "--slices", "1", "--out", str(tmp_path), "--readme", str(readme)]
    validate.main(options)
    content = json.loads((tmp_path / "validation.json").read_text())
    assert {name: len(of_group) for name, of_group in content["packs"].items()} == dict.fromkeys(kinds, 1)
    assert "| share used: the interval covers it |" in readme.read_text()
    assert readme.read_text().endswith("after\n")


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_every_line_of_the_whole_table_is_met(tmp_path):
    command = [sys.executable, "-m", "jobs.validate", "--out", str(tmp_path), "--address", "local"]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=4 * 3600)
    lines = [Figure(**line) for line in json.loads((tmp_path / "validation.json").read_text())["figures"]]
    assert len(lines) > 20
    assert [f"{line.name}: {line.value}" for line in lines if line.met is False] == []
