"""What runs on the cluster for each block of slices: read, decode and mask; embed; write.

In a file of its own, whose imports are light: every worker process imports it, and only the actors need PyTorch, which
takes seconds and half a gigabyte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gansfp import store
from gansfp.embedding import shards
from gansfp.embedding.backbones import cpu_features, is_on_cpu
from gansfp.embedding.shards import Pair
from gansfp.images.lungs import get_mask, is_network
from gansfp.images.slices import MAX_BYTES, SIDE, decode
from gansfp.images.views import get_view
from gansfp.stopwatch import Stopwatch

Batch = dict[str, Any]

COUNTS = ("done", "resized", "no_lungs", shards.FAILED)  # what is counted of a block, each by a column of one row
# "segment" is the lung mask where a network makes it, "mask" where a CPU does.
STEPS = ("read", "decode", "mask", "features", "segment", "upload", "view", "forward", "download", "write")
ON_CPU, ON_DEVICE = (*STEPS[:4], STEPS[9]), STEPS[4:9]
THREADS = 8  # that read or write one block of a remote store


def decode_block(batch: Batch, pairs: Sequence[Pair], mask_name: str) -> Batch:
    """CPU task: reads, decodes and masks the images of a block; a bad one is a row with its reason.

    mask_name: "" where no pair needs the lungs: nothing is masked then, and no slice is said to be without them. Where
    a network makes the masks, they and what is computed from them are left to the actor.
    """
    reading, uris = Stopwatch(clock=time.perf_counter), batch["uri"].tolist()
    with ThreadPoolExecutor(THREADS if any(map(store.is_remote, uris)) else 1) as readers:
        contents = list(readers.map(_read, uris))
    reading.mark("read")
    watch = Stopwatch()
    n = len(uris)
    pixels, masks = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, SIDE, SIDE), bool)
    sha256, no_lungs = batch["sha256"].astype(object), np.zeros(n, bool)
    status, error = np.full(n, "ok", object), np.full(n, "", object)
    mask = get_mask(mask_name) if mask_name and not is_network(mask_name) else None
    for row, (uri, content) in enumerate(zip(uris, contents, strict=True)):
        if isinstance(content, str):
            status[row], error[row] = shards.FAILED, content
            sha256[row] = ""  # nothing was seen of this file: it is tried again when it can be read
            continue
        slice_ = decode(content, uri)
        watch.mark("decode")
        if slice_.pixels is None:
            status[row], error[row] = shards.FAILED, slice_.error
            if "needs pydicom" in slice_.error:
                sha256[row] = ""  # nor of this one, before the package is there
            continue
        pixels[row], status[row] = slice_.pixels, slice_.status
        if mask:
            masks[row] = mask(slice_.pixels)
            no_lungs[row] = not masks[row].any()
            watch.mark("mask")
    found = {
        **{name: column for name, column in batch.items() if name != "uri"},
        "sha256": sha256,
        "status": status,
        "error": error,
        "no_lungs": no_lungs,
        "pixels": pixels,
        "mask": np.packbits(masks.reshape(n, -1), axis=1),
        **_on_cpu(pairs, [pair for pair in pairs if pair not in waiting_for_masks(pairs, mask_name)], pixels, masks),
    }
    watch.mark("features")
    return found | {"seconds": _shared_out(reading.seconds() | watch.seconds(), n)}


def _shared_out(seconds: Mapping[str, float], n: int) -> np.ndarray:
    """A block's seconds as a column, (n, STEPS) float32, a share a row: blocks are cut and joined on their way."""
    return np.tile(np.array([seconds.get(step, 0.0) for step in STEPS], np.float32) / n, (n, 1))


def _read(uri: str) -> bytes | str:
    """The bytes of a file, or why they cannot be had."""
    try:
        return store.read_bytes(uri, MAX_BYTES)
    except OSError as error:
        return store.one_line(error)


def waiting_for_masks(pairs: Sequence[Pair], mask_name: str) -> list[Pair]:
    """The pairs that cannot be computed before a network has made the masks."""
    return [pair for pair in pairs if get_view(pair[1]).region != "all"] if is_network(mask_name) else []


def _on_cpu(pairs: Sequence[Pair], wanted: Sequence[Pair], pixels: np.ndarray, masks: np.ndarray) -> Batch:
    """The columns of the wanted pairs that CPUs compute, slice by slice; pairs: all, by which columns are named."""
    if not any(is_on_cpu(backbone) for backbone, _ in wanted):
        return {}
    rows = [cpu_features(wanted, *one) for one in zip(pixels, masks, strict=True)]
    return {vector_column(pairs, pair): np.stack([row[pair] for row in rows]) for pair in rows[0]}


def vector_column(pairs: Sequence[Pair], pair: Pair) -> str:
    """The column of a batch that holds a pair's vectors."""
    return f"vector_{list(pairs).index(pair)}"


class EmbedActor:
    """The device pass of one GPU, of a share of one, or of one core."""

    def __init__(
        self, pairs: Sequence[Pair], weights: Any, mask_name: str, precision: str, gpu: bool, batch: int, cpu_batch: int
    ) -> None:  # weights: an object reference to a Mapping[str, Weights]; mask_name: as decode_block takes it
        import ray
        import torch

        from gansfp.device import keep_memory
        from gansfp.embedding.embedder import Embedder

        self.no_cuda = gpu and not torch.cuda.is_available()
        device = "cuda" if gpu and not self.no_cuda else "cpu"
        if device == "cpu":
            torch.set_num_threads(1)
            keep_memory()
        self.pairs, self.batch = list(pairs), batch if device == "cuda" else cpu_batch
        self.waiting, self.segmenter = waiting_for_masks(pairs, mask_name), None
        loaded = ray.get(weights)
        if self.waiting:
            from gansfp.embedding.network_masks import Segmenter

            self.segmenter = Segmenter(mask_name, loaded[mask_name], device, self.batch)
        on_device = [pair for pair in pairs if not is_on_cpu(pair[0])]
        self.embedder = Embedder(on_device, loaded, device, precision, self.batch)

    def __call__(self, batch: Batch) -> Batch:
        n = len(batch["image_id"])
        kept = {name: column for name, column in batch.items() if name not in ("pixels", "mask")}
        pixels = np.array(batch["pixels"])  # a copy: what Ray hands out is read-only
        masks = np.unpackbits(batch["mask"], axis=1).reshape(n, SIDE, SIDE).view(bool)
        watches, limit = [self.embedder.seconds], self.embedder.batch_limit
        if self.segmenter:
            read = batch["status"].astype(str) != shards.FAILED
            masks[read] = self.segmenter(pixels[read])
            kept["no_lungs"] = read & ~masks.any((1, 2))
            watch = Stopwatch()
            kept |= _on_cpu(self.pairs, self.waiting, pixels, masks)
            watch.mark("features")
            watches += [self.segmenter.seconds, Counter(watch.seconds())]
            limit = self.embedder.batch_limit = min(limit, self.segmenter.batch_limit)
        if self.embedder.pairs:
            vectors = self.embedder(pixels, masks)
            kept |= {vector_column(self.pairs, pair): found for pair, found in vectors.items()}
            limit = self.embedder.batch_limit
        seconds: Counter[str] = Counter()
        for watched in watches:
            seconds.update(watched)
            watched.clear()
        kept["seconds"] = batch["seconds"] + _shared_out(seconds, n)
        # what the driver is to tell
        return kept | {"limit": np.full(n, limit if limit < self.batch else 0), "no_cuda": np.full(n, self.no_cuda)}


def write_block(batch: Batch, work: str, identities: Sequence[Mapping[str, str]]) -> Batch:
    """CPU task: writes one shard a pair with the rows that lacked it. Returns one row that says what the block held."""
    watch = Stopwatch(clock=time.perf_counter)
    ids, hashes, status = batch["image_id"], batch["sha256"], batch["status"].astype(str)

    def write(column: int) -> None:
        rows = np.flatnonzero(batch["wanted"][:, column])
        if len(rows):
            images = dict(zip(ids[rows].tolist(), hashes[rows].tolist(), strict=True))
            masked = identities[column]["mask"]  # where it is not, a slice without lungs is one like any other
            told = np.where(batch["no_lungs"], "no_lungs", status) if masked else status
            vectors = np.asarray(batch[f"vector_{column}"])[rows]
            shards.write_shard(
                work, identities[column], images, told[rows].tolist(), batch["error"][rows].tolist(), vectors
            )

    with ThreadPoolExecutor(THREADS if store.is_remote(work) else 1) as writers:
        list(writers.map(write, range(len(identities))))
    watch.mark("write")
    counts = (len(ids), (status == "resized").sum(), batch["no_lungs"].sum(), (status == shards.FAILED).sum())
    bad = [f"{image_id}: {error}" for image_id, error in zip(ids, batch["error"], strict=True) if error]
    seconds = batch["seconds"].sum(0, keepdims=True) + _shared_out(watch.seconds(), 1)
    told = {name: np.array([count]) for name, count in zip(COUNTS, counts, strict=True)}
    told |= {"bad": np.array(["\n".join(bad)], object), "seconds": seconds}
    return told | {name: batch[name].max(keepdims=True) for name in ("limit", "no_cuda")}
