"""Whether the default precision of networks, which gansfp chooses by a short measurement, is the faster one here."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from statistics import median

from gansfp.embedding.embedder import COMPUTED_IN
from jobs.benchmarks.embedding import batch_of, device
from jobs.benchmarks.limits import Crew, Work
from jobs.benchmarks.machine import faster_precision
from jobs.benchmarks.measure import Bench, Row, Target
from jobs.benchmarks.slices import image_files

TURNS = 3  # of each precision, one after the other
SLOWER = 1.05  # times the seconds of the faster precision that the default may take

log = logging.getLogger(__name__)


def precision(bench: Bench) -> list[Row]:
    """Compares the bare forward passes of each network in the default precision with those in the faster one."""
    default = faster_precision()
    return [_row(network, _rates(bench, network), default) for network in bench.sizes.networks]


def _rates(bench: Bench, network: str) -> dict[str, float]:
    """Returns slices a second by precision: the median of turns, with one single-threaded process a core."""
    log.info("benchmark: %s in %s", network, " and ".join(COMPUTED_IN))
    uris = image_files(bench.slices(bench.sizes.slices))
    works = {
        name: Work(((network, "full"),), name, device(), batch_of(device()), uris, os.path.join(bench.folder, "none"))
        for name in COMPUTED_IN
    }
    rates: dict[str, list[float]] = {name: [] for name in COMPUTED_IN}
    with Crew(works["bfloat16"]) as in_bfloat16, Crew(works["float32"]) as in_float32:
        for _ in range(TURNS * bench.sizes.repeats):
            for crew in (in_bfloat16, in_float32):
                rates[crew.work.precision].append(crew.rate("forward", bench.sizes.seconds).per_second)
    return {name: median(of_turns) for name, of_turns in rates.items()}


def _row(network: str, rates: Mapping[str, float], default: str) -> Row:
    name, against = f"forward, {network}, default precision: {default}", "the faster of bfloat16 and float32"
    faster = max(rates.values())
    note = ", ".join(f"{name}: {rate:.3g}/s" for name, rate in rates.items())
    target = Target(round(1 / SLOWER, 3))
    return Row("precision", name, rates[default], "slices/s", against, faster, rates[default] / faster, target, note)
