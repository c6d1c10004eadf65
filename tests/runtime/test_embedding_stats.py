"""The statistics and log lines of an embedding run, from the reports of its blocks."""

import numpy as np
import pytest

from gansfp.runtime.embedding_blocks import COUNTS, STEPS, BlockReport
from gansfp.runtime.embedding_stats import NAMED, Tally


def block(seconds=None, bad=(), limit=0, no_cuda=False, slow_bfloat16=False, **counts):
    seconds = np.zeros(len(STEPS)) if seconds is None else seconds
    return BlockReport({**dict.fromkeys(COUNTS, 0), **counts}, seconds, bad, limit, no_cuda, slow_bfloat16)


def seconds(**values):
    return np.array([values.get(step, 0.0) for step in STEPS])


def test_all_failed_images_are_counted_and_some_are_named(caplog):
    tally = Tally()
    bad = [f"i{n}: empty file" for n in range(60)]
    for _ in range(5):
        tally.add(block(done=70, failed=60, bad=bad))
    assert tally.counts["failed"] == 300
    assert tally.counts["done"] == 350
    assert caplog.text.count("left out: i") == NAMED
    assert tally.reasons == "300 empty file"


def test_reasons_are_grouped_and_the_others_counted():
    tally = Tally()
    errors = ["60000x60000 pixels", "9000x9000 pixels", "empty file", "a: b", "c", "d"]
    tally.add(block(done=9, failed=6, bad=[f"i{n}: {error}" for n, error in enumerate(errors)]))
    assert tally.reasons == "2 NxN pixels, 1 empty file, 1 a: b, 2 other"
    assert Tally().reasons == ""


def test_short_memory_is_logged_when_the_limit_changes(caplog):
    tally = Tally()
    for limit in (0, 0, 4, 4, 2):
        tally.add(block(limit=limit))
    assert caplog.text.count("out of memory on a device") == 2


def test_missing_gpus_are_logged_once(caplog):
    tally = Tally()
    for no_cuda in (False, True, True):
        tally.add(block(no_cuda=no_cuda))
    assert caplog.text.count("CUDA finds none") == 1
    assert "gpus_busy" not in tally.facts(True, 2, 10.0).as_dict()


def test_a_slow_precision_is_logged_once(caplog):
    tally = Tally()
    for slow in (False, True, True):
        tally.add(block(slow_bfloat16=slow))
    assert caplog.text.count("bfloat16 no faster than float32") == 1


@pytest.mark.parametrize(
    ("on_gpus", "spent", "bottleneck"),
    [
        (False, {"forward": 6, "mask": 3}, "forward"),
        (False, {"forward": 1, "mask": 3}, "mask"),
        (True, {"forward": 18, "view": 1, "decode": 90}, "forward"),  # two GPUs for ten seconds: busy
        (True, {"forward": 8, "view": 1, "decode": 5, "mask": 7}, "mask"),  # idle: they wait for the CPUs
        (True, {"forward": 8, "host": 7, "decode": 90}, "host"),  # idle: most of the time their actors copy
        (True, {"forward": 8, "host": 5, "decode": 90}, "decode"),
    ],
)
def test_the_bottleneck_is_the_step_to_make_faster(on_gpus, spent, bottleneck):
    tally = Tally()
    for _ in range(2):
        tally.add(block(done=5, seconds=seconds(**spent) / 2))
    facts = tally.facts(on_gpus, 2, 10.0)
    assert facts.bottleneck == bottleneck
    assert facts.work_seconds["forward"] == pytest.approx(spent["forward"])
    assert facts.describe().endswith(f"the bottleneck is {bottleneck}")
    assert ("GPUs busy" in facts.describe()) == on_gpus
    assert ("gpus_busy" in facts.as_dict()) == on_gpus
