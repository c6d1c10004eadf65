"""Embeds what is missing: every slice, masked once, through all (backbone, view) pairs in one pass of an actor.

Reading, decoding and the lung mask are Ray Data tasks on CPUs; what runs on the device is one actor a GPU (or a share
of one), or one single-threaded actor a core where there is no GPU; shards are written by tasks again. A second run
embeds what the first one left.
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
from gansfp.networks.weights import Weights
from gansfp.runtime.cluster import ClusterConfig, start_ray, usable_gpus
from gansfp.runtime.embedding_blocks import EmbedActor, decode_block, write_block
from gansfp.runtime.embedding_stats import Tally, describe
from gansfp.runtime.progress import Progress
from gansfp.runtime.record import record_stage
from gansfp.runtime.worker_errors import from_text

CPU_BATCH, GPU_BATCH = 8, 256  # slices on a device at once; more on a CPU take memory and gain nothing
CPU_BLOCK = 128  # slices a block, which is what tasks hand on and what a shard holds
BLOCKS = 16  # at least, for each actor: so the first shard comes soon, and no actor waits long for the last one
# An actor and a task a core, on a cluster that shrinks as well: actors that start again leave tasks their room. That
# the two differ keeps Ray from fusing stages.
ACTOR_CPUS, TASK_CPUS = 0.95, 0.05
TASK_CPUS_BESIDE_GPUS = 0.75
PASS = 512  # slices that lack the same pairs are worth a pass of their own, in which only those are computed
MOST = 1 << 19  # slices a pass: its block list is held in memory, which a collection must not outgrow
ROUNDS = 3  # passes over what is missing, should another run or a lost node have taken away what was done

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """How many actors embed, and on what. Raises UsageError where least is more than most.

    gpus_per_actor: a share of a GPU. batch: slices on a device at once, None for what suits it. least, most: actors
    asked for from the start, and at any time; None: as many as there is room and work for.
    """

    gpus_per_actor: float = 1.0
    batch: int | None = None
    least: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least and self.most and self.least > self.most:
            raise UsageError(f"--min-actors: got {self.least}, more than --max-actors {self.most}")


@dataclass(frozen=True, eq=False)
class Plan:
    """What has to be embedded. images: (image id, uri, sha256) rows; wanted: (images, pairs) bool."""

    pairs: list[Pair]
    identities: list[dict[str, str]]
    images: list[tuple[str, str, str]]
    wanted: np.ndarray

    def passes(self) -> Iterator[Plan]:
        """The plan in parts: large groups of slices that lack the same pairs, then the rest together."""
        _, of_row, counts = np.unique(self.wanted, axis=0, return_inverse=True, return_counts=True)
        own = (counts >= PASS)[of_row.reshape(-1)]
        groups = [np.flatnonzero(of_row.reshape(-1) == number) for number in np.flatnonzero(counts >= PASS)]
        for group in (*groups, np.flatnonzero(~own)):
            for start in range(0, len(group), MOST):
                rows = group[start : start + MOST]
                columns = np.flatnonzero(self.wanted[rows].any(0))
                yield Plan(
                    [self.pairs[column] for column in columns],
                    [self.identities[column] for column in columns],
                    [self.images[row] for row in rows],
                    self.wanted[np.ix_(rows, columns)],
                )

    def blocks(self, size: int) -> Iterator[pa.Table]:
        """The images in blocks of at most `size`."""
        for start in range(0, len(self.images), size):
            ids, uris, hashes = zip(*self.images[start : start + size], strict=True)
            wanted = self.wanted[start : start + size]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(wanted.reshape(-1).view(np.uint8)), wanted.shape[1])
            yield pa.table({"image_id": ids, "uri": uris, "sha256": hashes, "wanted": flat})


def plan(catalog: Catalog, work: str, config: EmbedConfig, weights: Mapping[str, Weights], retry: bool = True) -> Plan:
    """Puts the shards in WORK in order and lists what is missing, with `retry` also what could not be had before."""
    images = catalog.hashes()
    identities = [identity(pair, config, weights) for pair in config.pairs]
    missing = np.ones((len(images), len(identities)), bool)
    for column, wanted in enumerate(identities):
        there = shards.repair_and_list_done(work, wanted, images, retry)
        missing[:, column] = [image_id not in there for image_id in images]
    uris = catalog.column("uri").tolist()
    rows = [(image_id, uri, sha256) for (image_id, sha256), uri in zip(images.items(), uris, strict=True)]
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
    cluster: ClusterConfig = ClusterConfig(),
    stage: str = "embed",
) -> dict[str, Any]:
    """Embeds what is missing: on the Ray this process is connected to, else, once something is missing, on start_ray's.

    Returns what WORK/log keeps of it: how many slices were done, and how many of them were resized, had no lungs,
    failed; seconds of work by step; {} where nothing was missing. Raises GansfpError where a stage fails for a reason
    that a user can mend.
    """
    todo = plan(catalog, work, config, weights)
    if not todo.images:
        log.info("embed: nothing to do, %d pairs for %s slices are there", len(config.pairs), f"{len(catalog):,}")
        return {}
    log.info("embed: %d pairs of backbone and view for %s slices", len(todo.pairs), f"{len(todo.images):,}")
    if not ray.is_initialized():
        start_ray(cluster)
    shipped = ray.put(dict(weights))  # once into the object store, so once to each node
    tally, lanes = Tally(), 0
    with Progress(stage, len(todo.images)) as progress:
        for _ in range(ROUNDS):
            for part in todo.passes():
                pipeline, actors = _pipeline(part, work, config, shipped, workers, cluster.gpus)
                lanes = max(lanes, actors)
                for row in _rows(pipeline):
                    tally.add(row)
                    progress.set(tally.counts["done"], tally.counts[shards.FAILED], tally.reasons)
            todo = plan(catalog, work, config, weights, retry=False)  # settles what another run may have written, too
            if not todo.images:
                break
    tally.summarise()
    if todo.images:
        raise DataError(
            f"{work}: got no embedding of {len(todo.images)} slices, such as {todo.images[0][0]!r}; "
            "run the command again"
        )
    facts = tally.facts(usable_gpus(cluster.gpus) > 0, lanes, progress.running)
    log.info("%s: %s", stage, describe(facts))
    record_stage(work, stage, progress.seconds, facts, asdict(config) | asdict(workers) | {"actors": lanes})
    return facts


def _pipeline(
    todo: Plan, work: str, config: EmbedConfig, weights: ray.ObjectRef, workers: Workers, planned_gpus: int | None
) -> tuple[Dataset, int]:
    """Decode, embed, write, as Ray Data runs them: one row for each block; and how many actors it may have."""
    gpus, cores = usable_gpus(planned_gpus), max(1, int(ray.cluster_resources().get("CPU", 1)))
    each = int(1 / workers.gpus_per_actor + 1e-6)  # actors on a GPU: what is left over cannot be joined with another's
    most = workers.most or (gpus * each if gpus else cores)
    batch, cpu_batch = workers.batch or GPU_BATCH, workers.batch or CPU_BATCH
    block = batch if gpus else max(cpu_batch, min(CPU_BLOCK, -(-len(todo.images) // (BLOCKS * most))))
    most = max(1, workers.least or 1, min(most, -(-len(todo.images) // block)))
    # GPUs that an autoscaler has yet to start take minutes to come: all are asked for now, and none is waited for.
    least = workers.least or max(1, min(most, gpus * each if gpus else most))
    # An actor on a GPU would take a core by default: four of them on a node of four cores leave none to decode on.
    resources = {"num_gpus": workers.gpus_per_actor, "num_cpus": 0} if gpus else {"num_cpus": ACTOR_CPUS}
    tasks: dict[str, Any] = (
        {"num_cpus": TASK_CPUS_BESIDE_GPUS}
        if gpus
        else {"num_cpus": TASK_CPUS, "compute": TaskPoolStrategy(max(1, cores - 1))}
    )
    mask = config.mask if needs_lungs(todo.pairs) else ""
    decode = {"pairs": todo.pairs, "mask_name": mask}
    write = {"work": work, "identities": todo.identities}
    embedded = (
        ray.data.from_blocks(list(todo.blocks(block)))  # from_arrow asks for a core a block, and so starts nodes
        .map_batches(
            decode_block,
            fn_kwargs=decode,
            batch_size=None,
            **tasks,
        )
        .map_batches(
            EmbedActor,
            fn_constructor_args=(todo.pairs, weights, mask, config.precision, gpus > 0, batch, cpu_batch),
            batch_size=block,
            compute=ActorPoolStrategy(min_size=least, max_size=most),
            **resources,
        )
    )
    written = embedded.map_batches(
        write_block,
        fn_kwargs=write,
        batch_size=None,
        **tasks,
    )
    return written, most


def _rows(written: Dataset) -> Iterator[dict[str, Any]]:
    """Runs a pipeline. What went wrong in a worker and is no defect is raised as it was raised there."""
    try:
        yield from written.iter_rows()
    except ray.exceptions.RayTaskError as error:
        if ours := from_text(str(error)):
            raise ours from error
        if is_out_of_memory(error):
            raise GansfpError("out of memory with a single slice on the device; use smaller backbones") from error
        raise


def available(names: Sequence[str], folder: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Of a default set, the backbones whose weights can be had, and a line for each one that cannot."""
    left_out = {name: line for name in names if (line := _lacking(name, folder))}
    return tuple(name for name in names if name not in left_out), list(left_out.values())


def _lacking(name: str, folder: str | None) -> str:
    try:
        load_all_weights([name], folder)
    except WeightsError as error:
        return str(error)
    return ""
