"""Embeds what is missing: every slice of DATA, masked once, through all (backbone, view) pairs in one pass of an actor.

    python -m jobs.embed --data DATA --work WORK --backbones mobilenetv2_100,highpass --views full,lungs,outer

Reading, decoding and the lung mask are Ray Data tasks on CPUs; what runs on the device is one actor a GPU (or a share
of one), or one single-threaded actor a core where there is no GPU; shards are written by tasks again. A second run
embeds what the first one left.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy, Dataset

from gansfp import shards, store
from gansfp.backbones import WEIGHT_ENDINGS, Weights, parse_backbone
from gansfp.catalog import Catalog, update_catalog
from gansfp.embed import PRECISIONS, EmbedConfig, Embedder, cpu_features, identity, load_all_weights
from gansfp.errors import WeightsError
from gansfp.lungs import MASKS, get_mask
from gansfp.slices import SIDE, decode
from gansfp.views import VIEWS
from jobs.cli import Parser, names, positive, run
from jobs.cluster import add_cluster_options, start_ray
from jobs.progress import Progress

Pair = tuple[str, str]
Batch = dict[str, Any]

DEFAULT_BACKBONES = ("mobilenetv2_100", "densenet121", "lbp")
DEFAULT_VIEWS = ("full", "lungs", "outer")
READERS = 8  # threads that read one block of a remote DATA
CPU_BATCH, GPU_BATCH = 32, 256  # slices a forward pass
DECODE_CPUS = 0.5  # another share than the actors', so that Ray does not fuse decoding into them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What has to be embedded. images: (image id, uri, sha256) rows; wanted: (images, pairs) bool."""

    pairs: list[Pair]
    identities: list[dict[str, str]]
    images: list[tuple[str, str, str]]
    wanted: np.ndarray


def plan(catalog: Catalog, work: str, config: EmbedConfig, weights: Mapping[str, Weights]) -> Plan:
    """Lists what is missing in WORK: the pairs that lack any image, and those images."""
    keys = list(zip(catalog.ids.tolist(), catalog.column("sha256").tolist(), strict=True))
    identities = [identity(pair, config, weights) for pair in config.pairs]
    missing = np.ones((len(keys), len(identities)), bool)
    for column, wanted in enumerate(identities):
        there = shards.finished(work, wanted)
        missing[:, column] = [key not in there for key in keys]
    rows, columns = np.flatnonzero(missing.any(1)), np.flatnonzero(missing.any(0))
    uris = catalog.column("uri")
    return Plan(
        [config.pairs[column] for column in columns],
        [identities[column] for column in columns],
        [(keys[row][0], str(uris[row]), keys[row][1]) for row in rows],
        missing[np.ix_(rows, columns)],
    )


def decode_block(batch: Batch, pairs: Sequence[Pair], mask_name: str) -> Batch:
    """CPU task: reads, decodes and masks the images of a block; a bad one is a row with its reason."""
    uris = batch["uri"].tolist()
    with ThreadPoolExecutor(READERS if any(map(store.is_remote, uris)) else 1) as readers:
        contents = list(readers.map(_read, uris))
    pixels = np.zeros((len(uris), SIDE, SIDE), np.uint8)
    masks = np.zeros((len(uris), SIDE * SIDE // 8), np.uint8)
    status, error = np.full(len(uris), "ok", object), np.full(len(uris), "", object)
    extra: dict[Pair, list[np.ndarray]] = {}
    mask = get_mask(mask_name)
    for row, (uri, content) in enumerate(zip(uris, contents, strict=True)):
        slice_ = decode(content, uri) if isinstance(content, bytes) else None
        if slice_ is not None and slice_.pixels is not None:
            pixels[row] = slice_.pixels
            found = mask(slice_.pixels)
            masks[row] = np.packbits(found)
            status[row] = slice_.status if found.any() else "no_lungs"
        else:
            status[row], error[row] = shards.FAILED, slice_.error if slice_ else content
            found = np.zeros((SIDE, SIDE), bool)
        for pair, vector in cpu_features(pairs, pixels[row], found).items():
            extra.setdefault(pair, []).append(vector)
    columns = {f"vector_{pairs.index(pair)}": np.stack(vectors) for pair, vectors in extra.items()}
    return {**batch, "pixels": pixels, "mask": masks, "status": status, "error": error, **columns}


def _read(uri: str) -> bytes | str:
    try:
        return store.read_bytes(uri)
    except OSError as error:
        return store.one_line(error)


class EmbedActor:
    """The device pass of one GPU, of a share of one, or of one core."""

    def __init__(self, pairs: Sequence[Pair], weights: Mapping[str, Weights], precision: str, gpu: bool) -> None:
        if not gpu:
            torch.set_num_threads(1)
        self.pairs = list(pairs)
        on_device = [pair for pair in pairs if parse_backbone(pair[0]).kind != "lbp"]
        device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
        self.embedder = Embedder(on_device, weights, device, precision)

    def __call__(self, batch: Batch) -> Batch:
        masks = np.unpackbits(batch["mask"], axis=1).reshape(-1, SIDE, SIDE).astype(bool)
        found = self.embedder(np.array(batch["pixels"]), masks) if self.embedder.pairs else {}
        kept = {name: column for name, column in batch.items() if name not in ("pixels", "mask", "uri")}
        return kept | {f"vector_{self.pairs.index(pair)}": vectors for pair, vectors in found.items()}


def write_block(batch: Batch, work: str, identities: Sequence[dict[str, str]]) -> Batch:
    """CPU task: writes one shard a pair with the rows that lacked it. Returns one row of counts for the block."""
    for column, wanted in enumerate(identities):
        rows = np.flatnonzero(batch["wanted"][:, column])
        if len(rows):
            images = dict(zip(batch["image_id"][rows].tolist(), batch["sha256"][rows].tolist(), strict=True))
            vectors = np.asarray(batch[f"vector_{column}"])[rows]
            shards.write_shard(work, wanted, images, batch["status"][rows], batch["error"][rows], vectors)
    status = batch["status"].astype(str)
    counts = {name: np.array([np.sum(status == name)]) for name in ("ok", "resized", "no_lungs", shards.FAILED)}
    bad = [f"{i}: {e}" for i, e in zip(batch["image_id"], batch["error"], strict=True) if e]
    return {"done": np.array([len(status)]), "bad": np.array(["\n".join(bad)], object), **counts}


def embed(
    catalog: Catalog,
    work: str,
    config: EmbedConfig,
    weights: Mapping[str, Weights],
    gpus_per_actor: float = 1.0,
    batch: int | None = None,
) -> dict[str, int]:
    """Embeds what is missing on the Ray this process is connected to. Returns the counts of slices by status."""
    todo = plan(catalog, work, config, weights)
    have = len(catalog) * len(config.pairs) - int(todo.wanted.sum())
    if not todo.images:
        log.info("embed: nothing to do, all %s embeddings of %s slices are there", f"{have:,}", f"{len(catalog):,}")
        return {}
    log.info("embed: %d pairs of backbone and view for %s slices", len(todo.pairs), f"{len(todo.images):,}")
    counts: dict[str, int] = {}
    with Progress("embed", len(todo.images)) as progress:
        for row in _pipeline(todo, work, config, weights, gpus_per_actor, batch).iter_rows():
            progress.add(int(row["done"]), int(row[shards.FAILED]))
            for name in ("ok", "resized", "no_lungs", shards.FAILED):
                counts[name] = counts.get(name, 0) + int(row[name])
            for line in filter(None, row["bad"].split("\n")):
                log.warning("left out: %s", line)
    if counts.get("resized"):
        log.info("%d slices were not 256x256 and were resized", counts["resized"])
    if counts.get("no_lungs"):
        log.info("no lungs found in %d slices: their lungs and outer views are the full slice", counts["no_lungs"])
    return counts


def _pipeline(
    todo: Plan,
    work: str,
    config: EmbedConfig,
    weights: Mapping[str, Weights],
    gpus_per_actor: float,
    batch: int | None,
) -> Dataset:
    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 1)
    gpu = gpus > 0 and gpus_per_actor > 0
    batch = batch or (GPU_BATCH if gpu else CPU_BATCH)
    actors = int(gpus / gpus_per_actor) if gpu else max(1, int(cpus))
    actors = max(1, min(actors, -(-len(todo.images) // batch)))
    # Half a core an actor: the other half of the cores decodes, masks and writes; the system shares them out as needed.
    share: dict[str, Any] = {"num_gpus": gpus_per_actor} if gpu else {"num_cpus": 0.25}
    shipped = ray.put(dict(weights))  # once to the object store, so once to each node
    return (
        ray.data.from_arrow(list(_blocks(todo, batch)))
        .map_batches(
            decode_block,
            fn_kwargs={"pairs": todo.pairs, "mask_name": config.mask},
            batch_size=None,
            num_cpus=DECODE_CPUS,
        )
        .map_batches(
            _ActorFromStore,
            fn_constructor_args=(todo.pairs, shipped, config.precision, gpu),
            batch_size=batch,
            compute=ActorPoolStrategy(size=actors),
            **share,
        )
        .map_batches(
            write_block, fn_kwargs={"work": work, "identities": todo.identities}, batch_size=None, num_cpus=DECODE_CPUS
        )
    )


class _ActorFromStore(EmbedActor):
    """EmbedActor whose weights come out of Ray's object store."""

    def __init__(self, pairs: Sequence[Pair], weights: ray.ObjectRef, precision: str, gpu: bool) -> None:
        super().__init__(pairs, ray.get(weights), precision, gpu)


def _blocks(todo: Plan, size: int) -> Iterator[pa.Table]:
    """The images in blocks of one forward pass each: small enough that decoding, forward and writing overlap."""
    for start in range(0, len(todo.images), size):
        rows = todo.images[start : start + size]
        wanted = todo.wanted[start : start + size]
        columns = {name: pa.array(values) for name, values in zip(("image_id", "uri", "sha256"), zip(*rows, strict=True), strict=True)}
        flat = pa.array(wanted.reshape(-1).view(np.uint8))
        yield pa.table({**columns, "wanted": pa.FixedSizeListArray.from_arrays(flat, wanted.shape[1])})


def available(names: Sequence[str], folder: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Of a default set, the backbones whose weights can be had, and a line for each one that cannot."""
    found, left_out = [], []
    for name in names:
        try:
            load_all_weights([name], folder)
            found.append(name)
        except WeightsError as error:
            left_out.append(str(error))
    return tuple(found), left_out


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the module's docstring."""
    parser = Parser(prog="jobs.embed", description=(__doc__ or "").splitlines()[0])
    add_embedding_options(parser)
    add_cluster_options(parser)
    options = parser.parse_args(arguments)
    backbones, left_out = options.backbones, []
    if not backbones:
        backbones, left_out = available(DEFAULT_BACKBONES, options.weights)
    for line in left_out:
        log.warning("left out: %s", line)
    pairs = tuple((backbone, view) for backbone in backbones for view in options.views or DEFAULT_VIEWS)
    config = embed_config(options, pairs)
    weights = load_all_weights(config.backbones, options.weights)
    store.check_writable(options.work)
    catalog = update_catalog(options.data, options.work)
    for note in catalog.notes:
        log.warning("%s", note)
    start_ray(options.address, options.verbose)
    embed(catalog, store.absolute(options.work), config, weights, options.gpus_per_actor, options.batch)


def add_embedding_options(parser: argparse.ArgumentParser) -> None:
    """The options of every command that embeds: what, where, how."""
    parser.add_argument("--data", required=True, help="the collection: a folder or a URI")
    parser.add_argument("--work", required=True, help="where results go: a folder or a URI")
    parser.add_argument("--backbones", type=names, help="names with commas between; see gansfp/backbones.py")
    parser.add_argument("--views", type=names, help=f"among {','.join(VIEWS)}")
    parser.add_argument("--lungs", default="threshold", help=f"the lung mask, among {','.join(MASKS)}")
    parser.add_argument("--weights", help=f"a folder of <timm name>{'|'.join(WEIGHT_ENDINGS)}; default: timm's download")
    parser.add_argument("--precision", default=PRECISIONS[0], help=f"one of {','.join(PRECISIONS)}")
    parser.add_argument("--gpus-per-actor", type=_share, default=1.0, help="a share such as 0.5 puts two actors on a GPU")
    parser.add_argument("--batch", type=positive, help="slices a forward pass")


def embed_config(options: argparse.Namespace, pairs: Sequence[Pair]) -> EmbedConfig:
    """The configuration that those options ask for. Raises UsageError for unknown names."""
    return EmbedConfig(tuple(pairs), options.lungs, options.precision)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected more than 0, such as 0.5 or 1")
    return value


if __name__ == "__main__":
    run(main)
