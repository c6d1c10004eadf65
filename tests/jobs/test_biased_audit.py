"""The whole audit where nothing leaks, but the not-used slices lie on another table: it accuses nobody."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from gansfp.collection.catalog import update_catalog
from gansfp.decision.decide import FinalConfig
from jobs import final
from tune import planted, search

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_another_table_is_named_and_is_no_leak(challenge, searched, serial_trials, tmp_path, monkeypatch):
    monkeypatch.setattr(planted, "FEWEST_PATIENTS", 8)  # as many as the small challenge has
    data, work = tmp_path / "data", tmp_path / "work"
    shutil.copytree(challenge / "membership/clean", data / "membership/clean")
    shutil.copy(challenge / "groups.csv", data)
    truth = dict(csv.reader((data / "membership/clean/test/truth.csv").read_text().splitlines()[1:]))
    not_used = [path for path in (data / "membership/clean/test/unknown").iterdir() if truth[path.stem] == "0"]
    for path in [*not_used, *(data / "membership/clean/train/not_used").iterdir()]:
        Image.fromarray(np.roll(np.asarray(Image.open(path)), -20, axis=0)).save(path)
    search.main(["--data", str(data), "--work", str(work), "--task", "membership", "--backbones", "highpass-w15-32"])
    final.decide(str(data), str(work), FinalConfig(permutations=200), update_catalog(str(data), str(work)))
    text = (work / "results/metrics.json").read_text()
    metrics = json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
    report = metrics["membership"]["sets"]["clean"]
    assert report["auc"]["value"] > 0.8  # the scores see the table
    assert report["p_value_selected"] < 0.05
    assert report["verdict"]["finding"] == "cannot tell"
    assert "position or size of the body" in report["verdict"]["sentence"]
    assert report["controls"]["blind"]["auc"]["value"] > 0.7
    assert report["controls"]["p_value_conditional"] > 0.05
    assert 0 <= report["power"]["power_of_leak_that_matters"] <= 1
    assert [shortcut["notable"] for shortcut in report["shortcuts"]] == [False] * 4
