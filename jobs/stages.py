"""What runs on the cluster for each block of slices: read, decode and mask; embed; write.

In a file of its own, whose imports are light: every worker process imports it, and only the actors need PyTorch, which
takes seconds and half a gigabyte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from gansfp import shards, store
from gansfp.lungs import get_mask
from gansfp.slices import SIDE, decode

Pair = tuple[str, str]
Batch = dict[str, Any]

COUNTS = ("done", "resized", "no_lungs", shards.FAILED)  # what is counted of a block, each by a column of one row
THREADS = 8  # that read or write one block of a remote store


def decode_block(batch: Batch, pairs: Sequence[Pair], mask_name: str) -> Batch:
    """CPU task: reads, decodes and masks the images of a block; a bad one is a row with its reason."""
    uris = batch["uri"].tolist()
    with ThreadPoolExecutor(THREADS if any(map(store.is_remote, uris)) else 1) as readers:
        contents = list(readers.map(_read, uris))
    n = len(uris)
    pixels, masks = np.zeros((n, SIDE, SIDE), np.uint8), np.zeros((n, SIDE, SIDE), bool)
    sha256, resized = batch["sha256"].astype(object), np.zeros(n, bool)
    status, error = np.full(n, "ok", object), np.full(n, "", object)
    mask = get_mask(mask_name)
    for row, (uri, content) in enumerate(zip(uris, contents, strict=True)):
        if isinstance(content, str):
            status[row], error[row] = shards.FAILED, content
            sha256[row] = ""  # nothing was seen of this file: it is tried again when it can be read
            continue
        slice_ = decode(content, uri)
        if slice_.pixels is None:
            status[row], error[row] = shards.FAILED, slice_.error
            if "needs pydicom" in slice_.error:
                sha256[row] = ""  # nor of this one, before the package is there
            continue
        pixels[row], masks[row] = slice_.pixels, mask(slice_.pixels)
        resized[row] = slice_.status == "resized"
        status[row] = slice_.status if masks[row].any() else "no_lungs"
    found = {
        **{name: column for name, column in batch.items() if name != "uri"},
        "sha256": sha256,
        "status": status,
        "error": error,
        "resized": resized,
        "pixels": pixels,
        "mask": np.packbits(masks.reshape(n, -1), axis=1),
    }
    return found | _on_cpu(pairs, pixels, masks)


def _read(uri: str) -> bytes | str:
    """The bytes of a file, or why they cannot be had."""
    try:
        return store.read_bytes(uri)
    except OSError as error:
        return store.one_line(error)


def _on_cpu(pairs: Sequence[Pair], pixels: np.ndarray, masks: np.ndarray) -> Batch:
    """The columns of the pairs that are computed here, by slice."""
    if not any(backbone.startswith("lbp") for backbone, _ in pairs):
        return {}
    from gansfp.embed import cpu_features

    rows = [cpu_features(pairs, *one) for one in zip(pixels, masks, strict=True)]
    return {vector_column(pairs, pair): np.stack([row[pair] for row in rows]) for pair in rows[0]}


def vector_column(pairs: Sequence[Pair], pair: Pair) -> str:
    """The column of a batch that holds a pair's vectors."""
    return f"vector_{list(pairs).index(pair)}"


class EmbedActor:
    """The device pass of one GPU, of a share of one, or of one core."""

    def __init__(
        self, pairs: Sequence[Pair], weights: Any, precision: str, gpu: bool, batch: int
    ) -> None:  # weights: an object reference to a Mapping[str, Weights]
        import ray
        import torch

        from gansfp.backbones import parse_backbone
        from gansfp.embed import Embedder

        if not gpu:
            torch.set_num_threads(1)
        self.pairs, self.batch = list(pairs), batch
        on_device = [pair for pair in pairs if parse_backbone(pair[0]).kind != "lbp"]
        device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
        self.embedder = Embedder(on_device, ray.get(weights), device, precision, batch)

    def __call__(self, batch: Batch) -> Batch:
        n = len(batch["image_id"])
        kept = {name: column for name, column in batch.items() if name not in ("pixels", "mask")}
        if self.embedder.pairs:
            masks = np.unpackbits(batch["mask"], axis=1).reshape(n, SIDE, SIDE).view(bool)
            vectors = self.embedder(np.array(batch["pixels"]), masks)  # a copy: what Ray hands out is read-only
            kept |= {vector_column(self.pairs, pair): found for pair, found in vectors.items()}
        limit = self.embedder.batch_limit
        return kept | {"limit": np.full(n, limit if limit < self.batch else 0)}  # what the driver is to tell


def write_block(batch: Batch, work: str, identities: Sequence[Mapping[str, str]]) -> Batch:
    """CPU task: writes one shard a pair with the rows that lacked it. Returns one row that says what the block held."""
    ids, hashes = batch["image_id"], batch["sha256"]

    def write(column: int) -> None:
        rows = np.flatnonzero(batch["wanted"][:, column])
        if len(rows):
            images = dict(zip(ids[rows].tolist(), hashes[rows].tolist(), strict=True))
            vectors = np.asarray(batch[f"vector_{column}"])[rows]
            shards.write_shard(work, identities[column], images, batch["status"][rows], batch["error"][rows], vectors)

    with ThreadPoolExecutor(THREADS if store.is_remote(work) else 1) as writers:
        list(writers.map(write, range(len(identities))))
    status = batch["status"].astype(str)
    counts = (len(ids), batch["resized"].sum(), (status == "no_lungs").sum(), (status == shards.FAILED).sum())
    bad = [f"{image_id}: {error}" for image_id, error in zip(ids, batch["error"], strict=True) if error]
    told = {name: np.array([count]) for name, count in zip(COUNTS, counts, strict=True)}
    return told | {"limit": batch["limit"].max(keepdims=True), "bad": np.array(["\n".join(bad)], object)}
