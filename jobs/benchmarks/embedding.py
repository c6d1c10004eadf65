"""How near embedding comes to what these cores or this GPU can do, where its time goes, what it takes of memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import ray
import torch

from gansfp.collection.catalog import update_catalog
from gansfp.embedding.embedder import EmbedConfig, load_all_weights
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.runtime.cluster import ClusterConfig, start_ray
from gansfp.runtime.embedding import CPU_BATCH, GPU_BATCH, embed
from gansfp.runtime.embedding_blocks import STEPS
from jobs.benchmarks.limits import Crew, Rate, Work
from jobs.benchmarks.measure import CLASS, LARGEST, Bench, Row, Target, cores
from jobs.benchmarks.runs import Run, run_embed

FACTORS = (1, 4, LARGEST)  # of the smallest run's slices
PASSES = 5  # the same, for one pass against many
MEGABYTE = 1e6

log = logging.getLogger(__name__)


@dataclass
class Round:
    """One turn of everything that is compared. runs: of jobs.embed, by FACTORS; the others: of a crew."""

    runs: list[Run]
    together: Rate = field(default_factory=Rate)  # bare forward, a single-threaded process a core
    alone: Rate = field(default_factory=Rate)  # bare forward, one process with as many threads
    prepare: Rate = field(default_factory=Rate)
    loop: Rate = field(default_factory=Rate)
    loader: Rate = field(default_factory=Rate)

    @property
    def cpu(self) -> float:
        """Seconds of CPU, of all processes of a run together, for one more slice."""
        first, last = self.runs[0], self.runs[-1]
        return (last.cpu - first.cpu) / (last.slices - first.slices)

    @property
    def rate(self) -> float:
        """Slices a second in the steady state: what more slices cost, so that start-up is apart, and so is what was
        decoded while the actors started. Raises GansfpError where that cannot be told."""
        first, last = self.runs[0], self.runs[-1]
        spent = last.embedding - first.embedding
        if spent <= 0:
            raise GansfpError(
                f"embedding {last.slices:,} slices took no longer than {first.slices:,}; ask for more with --slices"
            )
        return (last.slices - first.slices) / spent

    @property
    def forward(self) -> float:
        """Slices a second of the bare forward in the better arrangement."""
        return max(self.together.per_second, self.alone.per_second)

    def bound(self, device: str) -> float:
        """Slices a second that cannot be exceeded: on cores decoding, masking and forward share them; a GPU computes
        while all cores decode and mask."""
        prepare = (self.prepare.milliseconds("decode") + self.prepare.milliseconds("mask")) / 1000
        if device == "cpu":
            return cores() / (prepare + cores() / self.forward)
        return min(self.forward, cores() / prepare)


def device() -> str:
    """Where networks run on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def batch_of(device: str) -> int:
    """What jobs.embed puts on such a device at once."""
    return CPU_BATCH if device == "cpu" else GPU_BATCH


def run_all(bench: Bench, factors: Sequence[int] = FACTORS) -> list[Run]:
    """Runs jobs.embed on each number of slices."""
    sizes, found = bench.sizes, []
    for factor in factors:
        log.info("benchmark: jobs.embed of %s slices", f"{factor * sizes.slices:,}")
        data = bench.slices(factor * sizes.slices)
        found.append(run_embed(data, sizes.pairs, sizes.precision, batch_of(device())))
    return found


def rounds(bench: Bench) -> list[Round]:
    """Everything in turn, several times."""
    sizes, data = bench.sizes, bench.slices(FACTORS[-1] * bench.sizes.slices)
    uris = [entry.path for entry in os.scandir(os.path.join(data, CLASS))]
    shards = os.path.join(bench.folder, "loop")
    work = Work(sizes.pairs, sizes.precision, device(), batch_of(device()), sorted(uris), shards)
    found = []
    with Crew(work) as crew, Crew(replace(work, tuned=False)) as plain:
        for number in range(sizes.repeats):
            log.info("benchmark: parts and loops of embedding, turn %d of %d", number + 1, sizes.repeats)
            one = Round([])
            one.together = crew.rate("forward", sizes.seconds)
            one.prepare = crew.rate("prepare", sizes.seconds)
            one.loop = crew.rate("loop", sizes.seconds)
            one.loader = plain.rate("loader", sizes.seconds, threads=cores())
            if crew.size > 1:
                one.alone = crew.rate("forward", sizes.seconds, members=1, threads=cores())
            # For a rate two are enough; the third, for memory alone, is run once.
            one.runs = run_all(bench, FACTORS if number + 1 == sizes.repeats else (FACTORS[0], FACTORS[-1]))
            found.append(one)
    bench.runs += [one.runs for one in found]
    return found


def embedding(bench: Bench) -> list[Row]:
    """The steady rate against three others, the whole of the largest run, and where the time goes."""
    found, where = rounds(bench), device()
    sizes, name = bench.sizes, _named(bench.sizes.pairs)
    rate = median(one.rate for one in found)
    decode, mask = (median(one.prepare.milliseconds(step) for one in found) for step in ("decode", "mask"))
    forward = median(one.forward for one in found)
    bound = (
        f"bound = cores / (decode + mask + cores / forward) = {cores()} / ({decode:.2f} ms + {mask:.2f} ms + "
        f"{cores()} / {forward:.3g}/s)"
        if where == "cpu"
        else f"bound = min(forward, cores / (decode + mask)) = min({forward:.3g}/s, {cores()} / {decode + mask:.2f} ms)"
    )
    arrangement = (
        f"; forward: {median(one.together.per_second for one in found):.3g}/s in {cores()} processes of one thread, "
        f"{median(one.alone.per_second for one in found):.3g}/s in one of {cores()}"
        if where == "cpu"
        else ""
    )
    steady = (
        f"steady rate = ({FACTORS[-1] * sizes.slices:,} - {sizes.slices:,} slices) / the difference of the seconds "
        "from catalog to last shard, of whole runs of jobs.embed"
    )

    def row(against: str, other: list[float], target: float, note: str) -> Row:
        ratio = median(one.rate / value for one, value in zip(found, other, strict=True))
        text = f"embedding, {name}"
        return Row("embedding", text, rate, "slices/s", against, median(other), ratio, Target(target), note)

    last = [one.runs[-1] for one in found]
    return [
        row("(a) the bound", [one.bound(where) for one in found], 0.9, f"{bound}{arrangement}; {steady}"),
        row(
            "(b) DataLoader and timm, float32",
            [one.loader.per_second for one in found],
            3.0,
            "2 workers, timm's transform, batches of "
            f"{32 if where == 'cpu' else batch_of(where)}, PyTorch's own threads; start-up apart",
        ),
        row(
            "(c) the same functions, no Ray",
            [one.loop.per_second for one in found],
            1.0,
            "decode_block, Embedder and write_shard, in one single-threaded process a core"
            if where == "cpu"
            else "decode_block in a DataLoader on all other cores, Embedder, write_shard in a thread",
        ),
        Row(
            "embedding",
            f"{last[0].slices:,} slices, {name}, start to finish",
            median(run.whole for run in last),
            "s",
            target=Target(90, at_least=False, of_value=True) if where == "cuda" and last[0].slices == 40_000 else None,
            note="from the command to its end, with imports, catalog, Ray and the end of all processes",
        ),
        *where_time_goes(last[-1], cores() / rate, found[-1]),
    ]


def where_time_goes(run: Run, core_seconds: float, alone: Round) -> list[Row]:
    """Milliseconds of one worker for one slice by step, as the run's own record has them, beside the step alone.

    core_seconds: of all cores together for one slice in the steady state; what no step accounts for is Ray's.
    """
    if "work_seconds" not in run.record:
        raise GansfpError("jobs.embed left no record of its work_seconds in WORK/log/stages.jsonl")
    spent = {step: 1000 * seconds / run.slices for step, seconds in run.record["work_seconds"].items()}
    by_itself = {step: alone.prepare.milliseconds(step) for step in ("read", "decode", "mask") if alone.prepare.slices}
    if alone.forward:
        by_itself["forward"] = 1000 * cores() / alone.forward if alone.alone.slices else 1000 / alone.forward
    rows = []
    for step in STEPS:
        ratio = spent[step] / by_itself[step] if by_itself.get(step) and spent.get(step) else None
        against = "alone, on all cores" if ratio else ""
        other = by_itself[step] if ratio else None
        rows.append(Row("time", f"of a slice: {step}", spent.get(step, 0.0), "ms", against, other, ratio))
    rest = 1000 * core_seconds - sum(spent.values())
    note = (
        f"cores / steady rate = {1000 * core_seconds:.2f} ms, less the steps above; the step that binds is "
        f"{run.record.get('bottleneck', 'not recorded')}"
    )
    rows.append(Row("time", "of a slice: Ray, copies between processes, idle cores", rest, "ms", note=note))
    needed = sum(by_itself.get(step, 0.0) for step in ("decode", "mask", "forward"))
    name, against = "of a slice: CPU time of all processes", "decode, mask and forward alone"
    spent_by_all = 1000 * alone.cpu
    return [*rows, Row("time", name, spent_by_all, "ms", against, needed, spent_by_all / needed if needed else None)]


def passes(bench: Bench) -> list[Row]:
    """All pairs in one pass against a pass for each, on a Ray that is up."""
    sizes, pairs = bench.sizes, bench.sizes.small_pairs
    weights = load_all_weights([backbone for backbone, _ in pairs], None)
    works = iter(range(10**6))
    counts = (sizes.slices, PASSES * sizes.slices)
    catalogs = {}
    for count in counts:
        catalogs[count] = update_catalog(bench.slices(count), os.path.join(bench.folder, f"catalog-{count}"))

    def seconds(chosen: Sequence[Pair], count: int) -> float:
        work = os.path.join(bench.folder, f"pass-{next(works)}")
        started = time.monotonic()
        embed(catalogs[count], work, EmbedConfig(tuple(chosen), precision=sizes.precision), weights)
        return time.monotonic() - started

    start_ray(ClusterConfig("local"))
    try:
        log.info("benchmark: %d pairs in one pass, then in a pass each", len(pairs))
        seconds(pairs[:1], counts[0])  # the first run of all starts processes that later ones find
        starts = {backbone: seconds([(backbone, view)], counts[0]) for backbone, view in dict(pairs).items()}
        one = seconds(pairs, counts[1]) - seconds(pairs, counts[0])
        each = sum(seconds([pair], counts[1]) - starts[pair[0]] for pair in pairs)
    finally:
        ray.shutdown()
    if min(one, each) <= 0:
        raise GansfpError(
            f"embedding {counts[1]:,} slices took no longer than {counts[0]:,}; ask for more with --slices"
        )
    note = (
        f"seconds for {counts[1]:,} slices less those for {counts[0]:,}, so that start-up is apart (of one view for "
        "all views of a backbone)"
    )
    name = f"{len(pairs)} pairs in one pass, {_named(pairs)}"
    against = f"{len(pairs)} passes"
    return [Row("passes", name, one, "s", against, each, one / each, Target(0.75, at_least=False), note)]


def _runs(bench: Bench) -> list[list[Run]]:
    """Runs of each number of slices, those of `embedding` where it was measured."""
    if not bench.runs:
        bench.runs.append(run_all(bench))
    return bench.runs


def memory(bench: Bench) -> list[Row]:
    """Peak memory of driver, workers and object store as the collection grows."""
    whole = [runs for runs in _runs(bench) if len(runs) == len(FACTORS)]
    peaks = [[runs[index].memory for runs in whole] for index in range(len(FACTORS))]
    if not peaks[0][0].driver:
        raise GansfpError("memory is read from /proc, which this system does not have")
    grown = Target(1.2, at_least=False)
    parts = (
        ("driver", "driver", grown),
        ("all workers", "workers", grown),
        ("largest worker", "worker", None),
        ("object store", "store", None),
        ("driver, workers and object store", "together", grown),
    )
    counts = [factor * bench.sizes.slices for factor in FACTORS]
    found = {part: [median(getattr(one, part) for one in each) / MEGABYTE for each in peaks] for _, part, _ in parts}
    middle = ", ".join(f"{name} {found[part][1]:,.0f} MB" for name, part, _ in parts)
    note = (
        f"at {counts[1]:,} slices: {middle}. Resident memory without the pages of the object store, which has as many "
        "as were ever written to; small collections do not fill it"
    )
    return [
        Row(
            "memory",
            f"peak memory at {counts[-1]:,} slices: {name}",
            found[part][-1],
            "MB",
            f"at {counts[0]:,} slices",
            found[part][0],
            found[part][-1] / found[part][0] if found[part][0] else None,
            target,
            note,
        )
        for name, part, target in parts
    ]


def start(bench: Bench) -> list[Row]:
    """Seconds from a command to what it has to show first."""
    first = [one[0].first_shard for one in _runs(bench)]
    name = f"first shard of {bench.sizes.slices:,} slices, {_named(bench.sizes.pairs)}"
    target = Target(15, at_least=False, of_value=True)
    return [Row("start", name, median(first), "s", target=target, note="from the command, a process of its own")]


def _named(pairs: Sequence[Pair]) -> str:
    backbones, views = (dict.fromkeys(names) for names in zip(*pairs, strict=True))
    return f"{' + '.join(backbones)} ({', '.join(views)})"
