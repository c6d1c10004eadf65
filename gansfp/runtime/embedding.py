"""Embeds the slices that have no embedding yet: one actor computes all (backbone, view) pairs of a slice in one pass.

Ray Data runs three steps. Tasks on CPUs read, decode and mask the slices. Actors compute what runs on the device: one
actor a GPU (or a share of one), or one single-threaded actor a core if there is no GPU. Tasks write the shards. A
second run embeds what the first run did not finish.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from gansfp.collection.catalog import Catalog
from gansfp.device import is_out_of_memory
from gansfp.embedding import shards
from gansfp.embedding.embedder import EmbedConfig, identity, load_all_weights, needs_lungs
from gansfp.embedding.shards import Pair
from gansfp.errors import DataError, GansfpError, UsageError, WeightsError
from gansfp.images.slices import Source
from gansfp.networks.weights import Weights
from gansfp.runtime.cluster import ClusterConfig, start_ray, usable_gpus
from gansfp.runtime.embedding_blocks import BlockReport, EmbedActor, decode_block, write_block
from gansfp.runtime.embedding_stats import EmbeddingFacts, Tally
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage
from gansfp.runtime.worker_errors import from_text

CPU_BATCH, GPU_BATCH = 8, 256  # slices on a device at once; larger batches on a CPU take memory and are not faster
CPU_BLOCK = 128  # slices a block: tasks pass blocks on, and a shard holds one block
BLOCKS = 16  # the least number of blocks an actor: the first shard comes soon, and no actor waits long for the last one
# One actor and one task a core. This also holds on a Ray cluster that shrinks: actors that restart leave room for
# tasks. The two numbers differ, because Ray fuses steps with equal resources.
ACTOR_CPUS, TASK_CPUS = 0.95, 0.05
TASK_CPUS_BESIDE_GPUS = 0.75
PASS = 512  # slices that lack the same pairs get a pass of their own, which computes only these pairs
# Slices a pass: the driver holds its list of blocks in memory, 1 KB a slice, also for a very large collection. Each
# pass starts its actors anew, so with GPUs, which need a minute for half a million slices, a pass is larger.
MAX_PASS, MAX_GPU_PASS = 1 << 19, 1 << 22
GPU_BATCHES = 4  # of a block: while a GPU computes one, its actor prepares the next
ROUNDS = 3  # passes over what is missing, in case another run or a lost node removed shards

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """How many actors embed, and their resources. Raises UsageError if least is larger than most.

    gpus_per_actor: the share of a GPU that an actor gets. batch: slices on a device at once, None for the device's
    default. least, most: the numbers of actors at the start, and at most; None: as many as there is room and work for.
    """

    gpus_per_actor: float = 1.0
    batch: int | None = None
    least: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least and self.most and self.least > self.most:
            raise UsageError(f"--min-actors: got {self.least}, expected at most --max-actors {self.most}")


@dataclass(frozen=True, eq=False)
class Plan:
    """The embeddings to compute. images: (image id, source, content hash) rows; missing: (images, pairs) bool."""

    pairs: list[Pair]
    identities: list[dict[str, str]]
    images: list[tuple[str, Source, str]]
    missing: np.ndarray

    def passes(self, most: int) -> Iterator[Plan]:
        """Returns the plan in parts of at most `most` slices: first large groups of slices that lack the same pairs,
        then the other slices."""
        _, group_of_row, counts = np.unique(self.missing, axis=0, return_inverse=True, return_counts=True)
        group_of_row = group_of_row.reshape(-1)
        groups = [np.flatnonzero(group_of_row == number) for number in np.flatnonzero(counts >= PASS)]
        for group in (*groups, np.flatnonzero((counts < PASS)[group_of_row])):
            for start in range(0, len(group), most):
                rows = group[start : start + most]
                columns = np.flatnonzero(self.missing[rows].any(0))
                yield Plan(
                    [self.pairs[column] for column in columns],
                    [self.identities[column] for column in columns],
                    [self.images[row] for row in rows],
                    self.missing[np.ix_(rows, columns)],
                )

    def blocks(self, size: int) -> Iterator[pa.Table]:
        """Returns the images in blocks of at most `size`."""
        for start in range(0, len(self.images), size):
            ids, sources, hashes = zip(*self.images[start : start + size], strict=True)
            where = dict(zip(Source._fields, zip(*sources, strict=True), strict=True))
            missing = self.missing[start : start + size]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(missing.reshape(-1).view(np.uint8)), missing.shape[1])
            yield pa.table({"image_id": ids, **where, "sha256": hashes, "missing": flat})


def plan(catalog: Catalog, work: str, config: EmbedConfig, weights: Mapping[str, Weights], retry: bool = True) -> Plan:
    """Repairs the shards in WORK and lists the missing embeddings; with `retry` also those of unreadable images."""
    images = catalog.hashes()
    identities = [identity(pair, config, weights) for pair in config.pairs]
    missing = np.ones((len(images), len(identities)), bool)
    for column, of_pair in enumerate(identities):
        done = shards.repair_and_list_done(work, of_pair, images, retry)
        missing[:, column] = [image_id not in done for image_id in images]
    hashes_and_sources = zip(images.items(), catalog.sources(), strict=True)
    rows = [(image_id, source, content) for (image_id, content), source in hashes_and_sources]
    return Plan(
        [config.pairs[column] for column in np.flatnonzero(missing.any(0))],
        [identities[column] for column in np.flatnonzero(missing.any(0))],
        [rows[row] for row in np.flatnonzero(missing.any(1))],
        missing[np.ix_(missing.any(1), missing.any(0))],
    )


def embed(
    catalog: Catalog,
    work: str,
    config: EmbedConfig,
    weights: Mapping[str, Weights],
    workers: Workers = Workers(),
    cluster: ClusterConfig | None = None,
    stage: str = "embed",
) -> EmbeddingFacts | None:
    """Embeds what is missing. Uses the Ray that this process is connected to, or starts Ray if something is missing.

    Returns what WORK/log keeps of the run; None if nothing was missing. Raises GansfpError if a step fails for a reason
    that the user can correct.
    """
    cluster = cluster or ClusterConfig()
    todo = plan(catalog, work, config, weights)
    if not todo.images:
        log.info("embed: nothing to do, %d pairs for %s slices are there", len(config.pairs), f"{len(catalog):,}")
        return None
    log.info("embed: %d pairs of backbone and view for %s slices", len(todo.pairs), f"{len(todo.images):,}")
    if not ray.is_initialized():
        start_ray(cluster)
    on_gpus = usable_gpus(cluster.gpus) > 0
    shipped = ray.put(dict(weights))  # into the object store once, so to each node once
    tally, lanes = Tally(), 0
    with Progress(stage, len(todo.images)) as progress:
        for _ in range(ROUNDS):
            for part in todo.passes(MAX_GPU_PASS if on_gpus else MAX_PASS):
                pipeline, actors = _pipeline(part, work, config, shipped, workers, cluster.gpus)
                lanes = max(lanes, actors)
                for row in _rows(pipeline):
                    tally.add(BlockReport.from_row(row))
                    progress.set(tally.counts["done"], tally.counts[shards.FAILED], tally.reasons)
            todo = plan(catalog, work, config, weights, retry=False)  # also repairs what another run may have written
            if not todo.images:
                break
    tally.summarise()
    if todo.images:
        raise DataError(
            f"{work}: got no embedding of {len(todo.images)} slices, such as {todo.images[0][0]!r}; "
            "run the command again"
        )
    facts = tally.facts(on_gpus, lanes, progress.running)
    log.info("%s: %s", stage, facts.describe())
    configuration = asdict(config) | asdict(workers) | {"actors": lanes}
    record_stage(work, stage, progress.seconds, facts.as_dict(), configuration)
    return facts


@dataclass(frozen=True)
class _Allocation:
    """The actors of a pass, their resources, and the slices that they take.

    least, most: numbers of actors. block: slices a block. gpu_batch, cpu_batch: slices on a device at once. actor_gpus,
    actor_cpus, task_cpus: what Ray reserves for one actor and for one task. tasks: the largest number of tasks of a
    step that run at once; None for no limit.
    """

    least: int
    most: int
    block: int
    gpu_batch: int
    cpu_batch: int
    actor_gpus: float | None
    actor_cpus: float
    task_cpus: float
    tasks: int | None

    @property
    def on_gpus(self) -> bool:
        """True if the actors run on GPUs."""
        return self.actor_gpus is not None


def _allocate(slices: int, workers: Workers, planned_gpus: int | None) -> _Allocation:
    """Divides the Ray cluster for a pass over so many slices."""
    gpus, cores = usable_gpus(planned_gpus), max(1, int(ray.cluster_resources().get("CPU", 1)))
    actors_per_gpu = int(1 / workers.gpus_per_actor + 1e-6)  # an actor cannot use the remainders of two GPUs
    most = workers.most or (gpus * actors_per_gpu if gpus else cores)
    gpu_batch, cpu_batch = workers.batch or GPU_BATCH, workers.batch or CPU_BATCH
    least_block, most_block = (gpu_batch, GPU_BATCHES * gpu_batch) if gpus else (cpu_batch, CPU_BLOCK)
    block = max(least_block, min(most_block, -(-slices // (BLOCKS * most))))
    most = max(1, workers.least or 1, min(most, -(-slices // block)))
    # An autoscaler needs minutes to start GPUs: the pass requests all of them now, and does not wait for any.
    least = workers.least or max(1, min(most, gpus * actors_per_gpu if gpus else most))
    return _Allocation(
        least,
        most,
        block,
        gpu_batch,
        cpu_batch,
        actor_gpus=workers.gpus_per_actor if gpus else None,
        # By default an actor on a GPU reserves a core: four of them on a node of four cores leave none for decoding.
        actor_cpus=0 if gpus else ACTOR_CPUS,
        task_cpus=TASK_CPUS_BESIDE_GPUS if gpus else TASK_CPUS,
        tasks=None if gpus else max(1, cores - 1),
    )


def _pipeline(
    todo: Plan, work: str, config: EmbedConfig, weights: ray.ObjectRef, workers: Workers, planned_gpus: int | None
) -> tuple[Dataset, int]:
    """Returns decode, embed and write as Ray Data runs them, with one row for each block; and the most actors."""
    allocation = _allocate(len(todo.images), workers, planned_gpus)
    mask = config.mask if needs_lungs(todo.pairs) else ""
    task_pool = None if allocation.tasks is None else TaskPoolStrategy(allocation.tasks)
    blocks = list(todo.blocks(allocation.block))
    decoded = ray.data.from_blocks(blocks).map_batches(  # from_arrow reserves a core a block, and so starts nodes
        decode_block,
        fn_kwargs={"pairs": todo.pairs, "mask_name": mask},
        batch_size=None,
        num_cpus=allocation.task_cpus,
        compute=task_pool,
    )
    batches = (allocation.gpu_batch, allocation.cpu_batch)
    embedded = decoded.map_batches(
        EmbedActor,
        fn_constructor_args=(todo.pairs, weights, mask, config.precision, allocation.on_gpus, *batches),
        batch_size=allocation.block,
        compute=ActorPoolStrategy(min_size=allocation.least, max_size=allocation.most),
        num_cpus=allocation.actor_cpus,
        num_gpus=allocation.actor_gpus,
    )
    written = embedded.map_batches(
        write_block,
        fn_kwargs={"work": work, "identities": todo.identities},
        batch_size=None,
        num_cpus=allocation.task_cpus,
        compute=task_pool,
    )
    return written, allocation.most


def _rows(written: Dataset) -> Iterator[Mapping[str, Any]]:
    """Runs a pipeline. Raises the errors of workers that a user can correct as they were raised there."""
    try:
        yield from written.iter_rows()
    except ray.exceptions.RayTaskError as error:
        if from_worker := from_text(str(error)):
            raise from_worker from error
        if is_out_of_memory(error):
            raise GansfpError("out of memory with a single slice on the device; use smaller backbones") from error
        raise


def available(names: Sequence[str], folder: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Returns the backbones of a default set whose weights can be loaded, and one line for each other one."""
    reasons = {name: reason for name in names if (reason := _why_missing(name, folder))}
    return tuple(name for name in names if name not in reasons), list(reasons.values())


def _why_missing(name: str, folder: str | None) -> str:
    try:
        load_all_weights([name], folder)
    except WeightsError as error:
        return str(error)
    return ""
