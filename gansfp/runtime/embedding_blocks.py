"""The steps that workers run for each block of slices: read, decode and mask; embed; write.

The imports of this file are light, because every worker process imports it. Only the actors need PyTorch, which takes
seconds and half a gigabyte.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from gansfp import store
from gansfp.embedding import shards
from gansfp.embedding.backbones import cpu_features, is_on_cpu, parse_backbone
from gansfp.embedding.shards import Pair
from gansfp.images.lungs import get_mask, is_network
from gansfp.images.slices import MAX_BYTES, SIDE, Source, decode_frames
from gansfp.images.views import get_view
from gansfp.stopwatch import Stopwatch

if TYPE_CHECKING:
    import ray

Batch = dict[str, np.ndarray]  # the columns of a block of slices

COUNTS = ("done", "resized", "no_lungs", shards.FAILED)  # what is counted in each block
# The steps whose seconds are measured. "mask" is a lung mask by a CPU, "segment" one by a network. "host" is what an
# actor does beside the work of its device.
DECODING_STEPS = ("read", "decode", "mask", "features")
DEVICE_STEPS = ("segment", "upload", "view", "forward", "download")
HOST_STEPS = ("host",)
WRITING_STEPS = ("write",)
STEPS = (*DECODING_STEPS, *DEVICE_STEPS, *HOST_STEPS, *WRITING_STEPS)
CPU_STEPS = (*DECODING_STEPS, *WRITING_STEPS)
THREADS = 8  # threads that read or write one block of a remote store


def decode_block(batch: Batch, pairs: Sequence[Pair], mask_name: str) -> Batch:
    """CPU task: reads, decodes and masks the images of a block. An image that fails becomes a row with its reason.

    mask_name: "" if no pair needs the lungs; then nothing is masked, and no slice counts as one without lungs. If a
    network computes the masks, the actor computes them and the pairs that depend on them.
    """
    reading, sources = Stopwatch(clock=time.perf_counter), sources_of(batch)
    files = [(uri, list(rows)) for uri, rows in groupby(range(len(sources)), lambda row: sources[row].uri)]
    with ThreadPoolExecutor(THREADS if any(store.is_remote(uri) for uri, _ in files) else 1) as readers:
        contents = list(readers.map(_read, [uri for uri, _ in files]))
    reading.mark("read")
    watch = Stopwatch()
    n = len(sources)
    pixels, masks = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, SIDE, SIDE), bool)
    sha256, no_lungs = batch["sha256"].astype(object), np.zeros(n, bool)
    status, error = np.full(n, "ok", object), np.full(n, "", object)
    mask = get_mask(mask_name) if mask_name and not is_network(mask_name) else None
    for (uri, rows), content in zip(files, contents, strict=True):
        if isinstance(content, str):
            status[rows], error[rows] = shards.FAILED, content
            sha256[rows] = ""  # the file was not read; "" makes a later run try it again
            continue
        frames = [(sources[row].frame, sources[row].rule) for row in rows]
        for row, slice_ in zip(rows, decode_frames(content, uri, frames), strict=True):
            watch.mark("decode")
            if slice_.pixels is None:
                status[row], error[row] = shards.FAILED, slice_.error
                if slice_.needs_package:
                    sha256[row] = ""  # a later run may have the package
                continue
            pixels[row], status[row] = slice_.pixels, slice_.status
            if mask:
                masks[row] = mask(slice_.pixels)
                no_lungs[row] = not masks[row].any()
                watch.mark("mask")
    later = pairs_after_masks(pairs, mask_name)
    decoded = {
        **{name: column for name, column in batch.items() if name not in Source._fields},
        "sha256": sha256,
        "status": status,
        "error": error,
        "no_lungs": no_lungs,
        "pixels": pixels,
        "mask": np.packbits(masks.reshape(n, -1), axis=1),
        **_cpu_columns(pairs, [pair for pair in pairs if pair not in later], pixels, masks),
    }
    watch.mark("features")
    return decoded | {"seconds": _per_row(reading.seconds() | watch.seconds(), n)}


def sources_of(batch: Batch) -> list[Source]:
    """Returns where the slices of a block are and how they are read."""
    return [Source(*values) for values in zip(*(batch[name].tolist() for name in Source._fields), strict=True)]


def _per_row(seconds: Mapping[str, float], n: int) -> np.ndarray:
    """Returns the seconds of a block as a column, (n, STEPS) float32, in equal parts: Ray cuts and joins blocks."""
    return np.tile(np.array([seconds.get(step, 0.0) for step in STEPS], np.float32) / n, (n, 1))


def _read(uri: str) -> bytes | str:
    """Returns the bytes of a file, or the reason why it cannot be read."""
    try:
        return store.read_bytes(uri, MAX_BYTES)
    except OSError as error:
        return store.one_line(error)


def pairs_after_masks(pairs: Sequence[Pair], mask_name: str) -> list[Pair]:
    """Returns the pairs that can only be computed after a network has computed the masks."""
    return [pair for pair in pairs if get_view(pair[1]).region != "all"] if is_network(mask_name) else []


def _cpu_columns(pairs: Sequence[Pair], chosen: Sequence[Pair], pixels: np.ndarray, masks: np.ndarray) -> Batch:
    """Computes the columns of the chosen pairs that run on CPUs, slice by slice. The columns are named by `pairs`."""
    if not any(is_on_cpu(backbone) for backbone, _ in chosen):
        return {}
    rows = [cpu_features(chosen, *slice_and_mask) for slice_and_mask in zip(pixels, masks, strict=True)]
    return {vector_column(pairs, pair): np.stack([row[pair] for row in rows]) for pair in rows[0]}


def vector_column(pairs: Sequence[Pair], pair: Pair) -> str:
    """Returns the name of the column of a batch that holds a pair's vectors."""
    return f"vector_{list(pairs).index(pair)}"


class EmbedActor:
    """The device pass of one GPU, of a share of one, or of one core.

    Args:
        pairs: all pairs of backbone and view.
        weights: a reference to a Mapping[str, Weights].
        mask_name: as in decode_block.
        precision: see gansfp.embedding.embedder.Embedder.
        gpu: True if Ray gave this actor a GPU.
        gpu_batch, cpu_batch: slices on the device at once, on a GPU and on a CPU.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        weights: ray.ObjectRef,
        mask_name: str,
        precision: str,
        gpu: bool,
        gpu_batch: int,
        cpu_batch: int,
    ) -> None:
        import ray
        import torch

        from gansfp.device import is_bfloat16_fast, keep_memory
        from gansfp.embedding.embedder import Embedder

        self.no_cuda = gpu and not torch.cuda.is_available()
        device = "cuda" if gpu and not self.no_cuda else "cpu"
        if device == "cpu":
            torch.set_num_threads(1)
            keep_memory()
        self.pairs, self.batch = list(pairs), gpu_batch if device == "cuda" else cpu_batch
        # A core of an actor computes also while others wait for it; a GPU's actor waits for the GPU.
        self.clock = time.perf_counter if device == "cuda" else time.thread_time
        self.sends_bits = device == "cuda"
        self.after_masks, self.segmenter = pairs_after_masks(pairs, mask_name), None
        loaded = ray.get(weights)
        if self.after_masks:
            from gansfp.embedding.network_masks import Segmenter

            self.segmenter = Segmenter(mask_name, loaded[mask_name], device, self.batch)
        on_device = [pair for pair in pairs if not is_on_cpu(pair[0])]
        self.embedder = Embedder(on_device, loaded, device, precision, self.batch)
        in_bfloat16 = precision == "bfloat16" and any(parse_backbone(name).needs_weights for name, _ in pairs)
        self.slow_bfloat16 = in_bfloat16 and not is_bfloat16_fast(device)

    def __call__(self, batch: Batch) -> Batch:
        """Adds the columns of the pairs that run on the device, and removes the pixels and masks."""
        started, n = self.clock(), len(batch["image_id"])
        columns = {name: column for name, column in batch.items() if name not in ("pixels", "mask")}
        pixels, masks = batch["pixels"], batch["mask"]
        if self.segmenter or not self.sends_bits:  # a GPU unpacks the bits of the masks itself
            masks = np.unpackbits(masks, axis=1).reshape(n, SIDE, SIDE).view(bool)
        watches, limit = [self.embedder.seconds], self.embedder.batch_limit
        if self.segmenter:
            readable = batch["status"].astype(str) != shards.FAILED
            masks[readable] = self.segmenter(pixels[readable])
            columns["no_lungs"] = readable & ~masks.any((1, 2))
            watch = Stopwatch()
            columns |= _cpu_columns(self.pairs, self.after_masks, pixels, masks)
            watch.mark("features")
            watches += [self.segmenter.seconds, Counter(watch.seconds())]
            limit = self.embedder.batch_limit = min(limit, self.segmenter.batch_limit)
        if self.embedder.pairs:
            vectors = self.embedder(pixels, masks)
            columns |= {vector_column(self.pairs, pair): of_pair for pair, of_pair in vectors.items()}
            limit = self.embedder.batch_limit
        totals: Counter[str] = Counter()
        for watched in watches:
            totals.update(watched)
            watched.clear()
        seconds = {**totals, "host": max(0.0, self.clock() - started - sum(totals.values()))}
        columns["seconds"] = batch["seconds"] + _per_row(seconds, n)
        # The driver warns of a smaller limit, of a missing GPU and of an unsuitable precision.
        columns["limit"] = np.full(n, limit if limit < self.batch else 0)
        columns["no_cuda"] = np.full(n, self.no_cuda)
        columns["slow_bfloat16"] = np.full(n, self.slow_bfloat16)
        return columns


@dataclass(frozen=True, eq=False)
class BlockReport:
    """What the driver learns about one block.

    counts: slices, by COUNTS. seconds: of work, by STEPS. bad: a line "image id: reason" for each slice that failed.
    limit: the number of slices that fit on the device at once if it is less than planned, else 0. no_cuda: True if Ray
    gave the actor a GPU that CUDA does not have. slow_bfloat16: True if the actor computed in bfloat16, which is not
    faster on its device.
    """

    counts: Mapping[str, int]
    seconds: np.ndarray
    bad: Sequence[str] = ()
    limit: int = 0
    no_cuda: bool = False
    slow_bfloat16: bool = False

    def as_batch(self) -> Batch:
        """Returns a batch of one row."""
        return {
            **{name: np.array([self.counts[name]]) for name in COUNTS},
            "bad": np.array(["\n".join(self.bad)], object),
            "seconds": self.seconds[None],
            "limit": np.array([self.limit]),
            "no_cuda": np.array([self.no_cuda]),
            "slow_bfloat16": np.array([self.slow_bfloat16]),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> BlockReport:
        """Reads the row of as_batch, as Ray Data returns it."""
        return cls(
            {name: int(row[name]) for name in COUNTS},
            np.asarray(row["seconds"]),
            tuple(filter(None, row["bad"].split("\n"))),
            int(row["limit"]),
            bool(row["no_cuda"]),
            bool(row["slow_bfloat16"]),
        )


def write_block(batch: Batch, work: str, identities: Sequence[Mapping[str, str]]) -> Batch:
    """CPU task: writes one shard for each pair, with the rows that lacked it. Returns the report as one row."""
    watch = Stopwatch(clock=time.perf_counter)
    ids, hashes, status = batch["image_id"], batch["sha256"], batch["status"].astype(str)

    def write(column: int) -> None:
        rows = np.flatnonzero(batch["missing"][:, column])
        if len(rows):
            images = dict(zip(ids[rows].tolist(), hashes[rows].tolist(), strict=True))
            # For a pair without a mask, a slice without lungs is like any other.
            masked = identities[column]["mask"]
            statuses = (np.where(batch["no_lungs"], "no_lungs", status) if masked else status)[rows].tolist()
            vectors = np.asarray(batch[f"vector_{column}"])[rows]
            shards.write_shard(work, identities[column], images, statuses, batch["error"][rows].tolist(), vectors)

    with ThreadPoolExecutor(THREADS if store.is_remote(work) else 1) as writers:
        list(writers.map(write, range(len(identities))))
    watch.mark("write")
    counts = (len(ids), (status == "resized").sum(), batch["no_lungs"].sum(), (status == shards.FAILED).sum())
    report = BlockReport(
        dict(zip(COUNTS, map(int, counts), strict=True)),
        (batch["seconds"].sum(0, keepdims=True) + _per_row(watch.seconds(), 1))[0],
        [f"{image_id}: {error}" for image_id, error in zip(ids, batch["error"], strict=True) if error],
        int(batch["limit"].max()),
        bool(batch["no_cuda"].max()),
        bool(batch["slow_bfloat16"].max()),
    )
    return report.as_batch()
