"""The default precision in jobs.benchmark: each precision is measured in turn, and the default beside the faster."""

from __future__ import annotations

import pytest

from jobs.benchmark import measure
from jobs.benchmarks import precision
from jobs.benchmarks.limits import Rate, Work
from jobs.benchmarks.measure import Bench, Sizes

NETWORK = "test_resnet@random"
TINY = Sizes(networks=(NETWORK,), slices=2, seconds=0.01)


class TimedCrew:
    """A crew that returns fixed rates and measures nothing."""

    asked: list[str]

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rates = iter({"bfloat16": (90.0, 100.0, 400.0), "float32": (80.0, 10.0, 81.0)}[work.precision])

    def __enter__(self) -> TimedCrew:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def rate(self, task: str, seconds: float) -> Rate:
        assert (task, self.work.pairs) == ("forward", ((NETWORK, "full"),))
        self.asked.append(self.work.precision)
        return Rate(next(self.rates))


@pytest.mark.parametrize(("default", "rate", "met"), [("bfloat16", 100.0, True), ("float32", 80.0, False)])
def test_the_default_stands_beside_the_faster(default, rate, met, tmp_path, monkeypatch):
    monkeypatch.setattr(TimedCrew, "asked", [], raising=False)
    monkeypatch.setattr(precision, "Crew", TimedCrew)
    monkeypatch.setattr(precision, "faster_precision", lambda: default)
    (row,) = precision.precision(Bench(TINY, str(tmp_path)))
    assert TimedCrew.asked == ["bfloat16", "float32"] * 3  # in turn
    assert (row.value, row.other, row.ratio, row.met) == (rate, 100.0, rate / 100, met)
    assert (row.name, row.error) == (f"forward, {NETWORK}, default precision: {default}", "")
    assert row.target.limit == pytest.approx(1 / 1.05, abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_crew_measures_both(tmp_path):
    (row,) = measure(Bench(TINY, str(tmp_path)), ["precision"])
    assert row.error == ""
    assert row.value > 0
    assert row.ratio == pytest.approx(row.value / row.other)
    assert row.ratio <= 1
