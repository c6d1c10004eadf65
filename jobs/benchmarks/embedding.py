"""How near embedding comes to the limit of these cores or this GPU, where its time goes, and its peak memory."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median

import ray
import torch

from gansfp.collection.catalog import update_catalog
from gansfp.cores import cores
from gansfp.embedding.embedder import EmbedConfig, load_all_weights
from gansfp.embedding.shards import Pair
from gansfp.errors import GansfpError
from gansfp.runtime.cluster import ClusterConfig, start_ray
from gansfp.runtime.embedding import CPU_BATCH, GPU_BATCH, embed
from gansfp.runtime.embedding_blocks import STEPS
from jobs.benchmarks.limits import LOADER_BATCH, LOADER_WORKERS, Crew, Rate, Work
from jobs.benchmarks.measure import LARGEST, Bench, Row, Sizes, Target
from jobs.benchmarks.runs import Run, run_embed
from jobs.benchmarks.slices import CLASS

FACTORS = (1, 4, LARGEST)  # of the smallest run's slices
PASSES = 5  # the same, for one pass against many
MEGABYTE = 1e6
FULL_SLICES, FULL_SECONDS = 40_000, 90  # a GPU must embed so many slices in so many seconds

log = logging.getLogger(__name__)


@dataclass
class Turn:
    """One turn of everything that is compared. runs: of jobs.embed, by FACTORS; the rates: of a crew of processes.

    together: bare forward in one single-threaded process a core; alone: bare forward in one process with as many
    threads; prepare: read, decode and mask; loop: the loop of jobs.embed without Ray; loader: a user's own loop.
    """

    runs: list[Run]
    together: Rate = field(default_factory=Rate)
    alone: Rate = field(default_factory=Rate)
    prepare: Rate = field(default_factory=Rate)
    loop: Rate = field(default_factory=Rate)
    loader: Rate = field(default_factory=Rate)

    @property
    def cpu(self) -> float:
        """Seconds of CPU time of all processes of a run together, for one more slice."""
        first, last = self.runs[0], self.runs[-1]
        return (last.cpu - first.cpu) / (last.slices - first.slices)

    @property
    def rate(self) -> float:
        """Slices a second in the steady state, from the seconds that more slices take.

        So the rate leaves out start-up, and what was decoded while the actors started. Raises GansfpError where more
        slices took no longer.
        """
        first, last = self.runs[0], self.runs[-1]
        spent = last.embedding - first.embedding
        if spent <= 0:
            raise GansfpError(
                f"embedding {last.slices:,} slices took no longer than {first.slices:,}; ask for more with --slices"
            )
        return (last.slices - first.slices) / spent

    @property
    def forward(self) -> float:
        """Slices a second of the bare forward in the faster arrangement."""
        return max(self.together.per_second, self.alone.per_second)

    def bound(self, device: str) -> float:
        """Returns the upper limit in slices a second.

        On a CPU decoding, masking and forward share the cores. A GPU computes while all cores decode and mask.
        """
        prepare = (self.prepare.milliseconds("decode") + self.prepare.milliseconds("mask")) / 1000
        if device == "cpu":
            return cores() / (prepare + cores() / self.forward)
        return min(self.forward, cores() / prepare)


def device() -> str:
    """Returns the device on which networks run on this machine."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def batch_of(device: str) -> int:
    """Returns the number of slices that jobs.embed puts on such a device at once."""
    return CPU_BATCH if device == "cpu" else GPU_BATCH


def run_all(bench: Bench, factors: Sequence[int] = FACTORS) -> list[Run]:
    """Runs jobs.embed on each number of slices."""
    sizes, runs = bench.sizes, []
    for factor in factors:
        log.info("benchmark: jobs.embed of %s slices", f"{factor * sizes.slices:,}")
        data = bench.slices(factor * sizes.slices)
        runs.append(run_embed(data, sizes.pairs, sizes.precision, batch_of(device())))
    return runs


def measure_turns(bench: Bench) -> list[Turn]:
    """Measures everything in turn, several times."""
    sizes, data = bench.sizes, bench.slices(FACTORS[-1] * bench.sizes.slices)
    uris = [entry.path for entry in os.scandir(os.path.join(data, CLASS))]
    shards = os.path.join(bench.folder, "loop")
    work = Work(sizes.pairs, sizes.precision, device(), batch_of(device()), sorted(uris), shards)
    turns = []
    with Crew(work) as crew, Crew(replace(work, tuned=False)) as plain:
        for number in range(sizes.repeats):
            log.info("benchmark: parts and loops of embedding, turn %d of %d", number + 1, sizes.repeats)
            turn = Turn([])
            turn.together = crew.rate("forward", sizes.seconds)
            turn.prepare = crew.rate("prepare", sizes.seconds)
            turn.loop = crew.rate("loop", sizes.seconds)
            turn.loader = plain.rate("loader", sizes.seconds, threads=cores())
            if crew.size > 1:
                turn.alone = crew.rate("forward", sizes.seconds, members=1, threads=cores())
            # Two runs are enough for a rate. The third is for memory only and is done once.
            turn.runs = run_all(bench, FACTORS if number + 1 == sizes.repeats else (FACTORS[0], FACTORS[-1]))
            turns.append(turn)
    bench.runs += [turn.runs for turn in turns]
    return turns


def embedding(bench: Bench) -> list[Row]:
    """Compares the steady rate with three others, times the largest run, and says where the time goes."""
    turns, where = measure_turns(bench), device()
    rate = median(turn.rate for turn in turns)
    last = turns[-1]
    return [
        *_compared_rates(turns, bench.sizes, where),
        _largest_run([turn.runs[-1] for turn in turns], bench.sizes, where),
        *where_time_goes(last.runs[-1], cores() / rate, last),
    ]


def _compared_rates(turns: Sequence[Turn], sizes: Sizes, where: str) -> list[Row]:
    """Returns the steady rate beside the bound, a user's own loop, and the same functions without Ray."""
    on_cpu = where == "cpu"
    steady = (
        f"steady rate = ({FACTORS[-1] * sizes.slices:,} - {sizes.slices:,} slices) / the difference of the seconds "
        "from catalog to last shard, of whole runs of jobs.embed"
    )
    loader = (
        f"{LOADER_WORKERS} workers, timm's transform, batches of {LOADER_BATCH if on_cpu else batch_of(where)}, "
        "PyTorch's own threads; start-up apart"
    )
    loop = (
        "decode_block, Embedder and write_shard, in one single-threaded process a core"
        if on_cpu
        else "decode_block in a DataLoader on all other cores, Embedder, write_shard in a thread"
    )
    comparisons = (
        ("(a) the bound", [turn.bound(where) for turn in turns], 0.9, f"{_bound_note(turns, where)}; {steady}"),
        ("(b) DataLoader and timm, float32", [turn.loader.per_second for turn in turns], 3.0, loader),
        ("(c) the same functions, no Ray", [turn.loop.per_second for turn in turns], 1.0, loop),
    )
    rates, name = [turn.rate for turn in turns], f"embedding, {_named(sizes.pairs)}"
    rows = []
    for against, others, target, note in comparisons:
        ratio = median(rate / other for rate, other in zip(rates, others, strict=True))
        row = Row("embedding", name, median(rates), "slices/s", against, median(others), ratio, Target(target), note)
        rows.append(row)
    return rows


def _bound_note(turns: Sequence[Turn], where: str) -> str:
    """Returns how the bound comes about, with its numbers."""
    decode, mask = (median(turn.prepare.milliseconds(step) for turn in turns) for step in ("decode", "mask"))
    forward = median(turn.forward for turn in turns)
    if where != "cpu":
        return (
            f"bound = min(forward, cores / (decode + mask)) = min({forward:.3g}/s, {cores()} / {decode + mask:.2f} ms)"
        )
    return (
        f"bound = cores / (decode + mask + cores / forward) = {cores()} / ({decode:.2f} ms + {mask:.2f} ms + "
        f"{cores()} / {forward:.3g}/s); "
        f"forward: {median(turn.together.per_second for turn in turns):.3g}/s in {cores()} processes of one thread, "
        f"{median(turn.alone.per_second for turn in turns):.3g}/s in one of {cores()}"
    )


def _largest_run(runs: Sequence[Run], sizes: Sizes, where: str) -> Row:
    """Returns the seconds of a whole command."""
    slices = runs[0].slices
    target = Target(FULL_SECONDS, at_least=False, of_value=True) if (where, slices) == ("cuda", FULL_SLICES) else None
    name = f"{slices:,} slices, {_named(sizes.pairs)}, start to finish"
    note = "from the command to its end, with imports, catalog, Ray and the end of all processes"
    return Row("embedding", name, median(run.whole for run in runs), "s", target=target, note=note)


def where_time_goes(run: Run, core_seconds: float, turn: Turn) -> list[Row]:
    """Returns milliseconds of one worker for one slice by step, from the run's own record, beside the step alone.

    core_seconds: of all cores together for one slice in the steady state; no step contains the time of Ray itself.
    """
    if run.record is None:
        raise GansfpError("jobs.embed left no record of its work_seconds in WORK/log/stages.jsonl")
    spent = {step: 1000 * seconds / run.slices for step, seconds in run.record.work_seconds.items()}
    alone = _steps_alone(turn)
    rows = []
    for step in STEPS:
        ratio = spent[step] / alone[step] if alone.get(step) and spent.get(step) else None
        against = "alone, on all cores" if ratio else ""
        other = alone[step] if ratio else None
        rows.append(Row("time", f"of a slice: {step}", spent.get(step, 0.0), "ms", against, other, ratio))
    unaccounted = 1000 * core_seconds - sum(spent.values())
    note = (
        f"cores / steady rate = {1000 * core_seconds:.2f} ms, less the steps above; the step that binds is "
        f"{run.record.bottleneck}"
    )
    rows.append(Row("time", "of a slice: Ray, copies between processes, idle cores", unaccounted, "ms", note=note))
    needed = sum(alone.get(step, 0.0) for step in ("decode", "mask", "forward"))
    name, against = "of a slice: CPU time of all processes", "decode, mask and forward alone"
    cpu = 1000 * turn.cpu
    return [*rows, Row("time", name, cpu, "ms", against, needed, cpu / needed if needed else None)]


def _steps_alone(turn: Turn) -> dict[str, float]:
    """Returns milliseconds of one core for one slice in the steps that were measured alone."""
    steps = {}
    if turn.prepare.slices:
        steps = {step: turn.prepare.milliseconds(step) for step in ("read", "decode", "mask")}
    if turn.forward:
        steps["forward"] = 1000 * cores() / turn.forward if turn.alone.slices else 1000 / turn.forward
    return steps


def passes(bench: Bench) -> list[Row]:
    """Compares one pass for all pairs with one pass for each pair, on a Ray that runs already."""
    sizes, pairs = bench.sizes, bench.sizes.small_pairs
    weights = load_all_weights([backbone for backbone, _ in pairs], None)
    numbers = count()
    few, many = sizes.slices, PASSES * sizes.slices
    catalogs = {n: update_catalog(bench.slices(n), os.path.join(bench.folder, f"catalog-{n}")) for n in (few, many)}

    def seconds(chosen: Sequence[Pair], slices: int) -> float:
        work = os.path.join(bench.folder, f"pass-{next(numbers)}")
        started = time.monotonic()
        embed(catalogs[slices], work, EmbedConfig(tuple(chosen), precision=sizes.precision), weights)
        return time.monotonic() - started

    start_ray(ClusterConfig("local"))
    try:
        log.info("benchmark: %d pairs in one pass, then in a pass each", len(pairs))
        seconds(pairs[:1], few)  # the very first run starts processes that later runs use again
        start_ups = {backbone: seconds([(backbone, view)], few) for backbone, view in dict(pairs).items()}
        one_pass = seconds(pairs, many) - seconds(pairs, few)
        pass_each = sum(seconds([pair], many) - start_ups[pair[0]] for pair in pairs)
    finally:
        ray.shutdown()
    if min(one_pass, pass_each) <= 0:
        raise GansfpError(f"embedding {many:,} slices took no longer than {few:,}; ask for more with --slices")
    note = (
        f"seconds for {many:,} slices less those for {few:,}, so that start-up is apart (of one view for "
        "all views of a backbone)"
    )
    name, against = f"{len(pairs)} pairs in one pass, {_named(pairs)}", f"{len(pairs)} passes"
    target = Target(0.75, at_least=False)
    return [Row("passes", name, one_pass, "s", against, pass_each, one_pass / pass_each, target, note)]


def _runs(bench: Bench) -> list[list[Run]]:
    """Returns runs of each number of slices: those of `embedding`, or new ones where it was not measured."""
    if not bench.runs:
        bench.runs.append(run_all(bench))
    return bench.runs


def memory(bench: Bench) -> list[Row]:
    """Measures the peak memory of driver, workers and object store as the collection grows."""
    complete_turns = [runs for runs in _runs(bench) if len(runs) == len(FACTORS)]
    peaks = [[runs[index].memory for runs in complete_turns] for index in range(len(FACTORS))]
    if not peaks[0][0].driver:
        raise GansfpError("memory is read from /proc, which this system does not have")
    growth = Target(1.2, at_least=False)
    parts = (
        ("driver", "driver", growth),
        ("all workers", "workers", growth),
        ("largest worker", "worker", None),
        ("object store", "store", None),
        ("driver, workers and object store", "together", growth),
    )
    counts = [factor * bench.sizes.slices for factor in FACTORS]
    megabytes = {
        part: [median(getattr(peak, part) for peak in of_turns) / MEGABYTE for of_turns in peaks]
        for _, part, _ in parts
    }
    middle = ", ".join(f"{name} {megabytes[part][1]:,.0f} MB" for name, part, _ in parts)
    note = (
        f"at {counts[1]:,} slices: {middle}. Resident memory without the pages of the object store, which has as many "
        "as were ever written to; small collections do not fill it"
    )
    rows = []
    for name, part, target in parts:
        least, largest = megabytes[part][0], megabytes[part][-1]
        name, against = f"peak memory at {counts[-1]:,} slices: {name}", f"at {counts[0]:,} slices"
        ratio = largest / least if least else None
        rows.append(Row("memory", name, largest, "MB", against, least, ratio, target, note))
    return rows


def start(bench: Bench) -> list[Row]:
    """Measures the seconds from a command to its first shard."""
    seconds = median(runs[0].first_shard for runs in _runs(bench))
    name = f"first shard of {bench.sizes.slices:,} slices, {_named(bench.sizes.pairs)}"
    target = Target(15, at_least=False, of_value=True)
    return [Row("start", name, seconds, "s", target=target, note="from the command, a process of its own")]


def _named(pairs: Sequence[Pair]) -> str:
    backbones, views = (dict.fromkeys(names) for names in zip(*pairs, strict=True))
    return f"{' + '.join(backbones)} ({', '.join(views)})"
