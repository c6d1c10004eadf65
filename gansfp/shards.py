"""Embeddings on disk: WORK/embeddings/<backbone>/<view>/*.parquet, each complete or absent, each with its identity."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.errors import DataError

IDENTITY = b"gansfp_identity"  # key in a shard's Parquet metadata
FAILED = "failed"  # the status of a slice that could not be read; its embedding is null

log = logging.getLogger(__name__)


def folder(work: str, pair: tuple[str, str]) -> str:
    """Where the shards of a (backbone, view) are. A slash in a backbone's name is percent-encoded."""
    return store.join(work, "embeddings", quote(pair[0], safe=":@-_."), pair[1])


def schema(width: int, identity: Mapping[str, str]) -> pa.Schema:
    """image_id, sha256 (of the file), status, error, embedding: fixed_size_list<float32>[width]."""
    columns = [(name, pa.string()) for name in ("image_id", "sha256", "status", "error")]
    vector = pa.field("embedding", pa.list_(pa.float32(), width))
    return pa.schema([*columns, vector], metadata={IDENTITY: json.dumps(dict(identity), sort_keys=True).encode()})


def write_shard(
    work: str,
    identity: Mapping[str, str],
    images: Mapping[str, str],
    statuses: Sequence[str],
    errors: Sequence[str],
    vectors: np.ndarray,
) -> str:
    """Writes one shard and returns its place.

    images: sha256 by image id; vectors: (n, d) float32, rows whose status is "failed" are written as null. The name comes
    from the images, so that a task that is run twice writes the same file once. Raises DataError.
    """
    failed = np.array([status == FAILED for status in statuses])
    width = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(failed))
    table = pa.table([list(images), list(images.values()), list(statuses), list(errors), embedding], schema=schema(width, identity))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none", use_dictionary=False, write_statistics=["image_id"])
    name = hashlib.sha256(json.dumps(list(images.items())).encode()).hexdigest()[:20] + ".parquet"
    place = store.join(folder(work, (identity["backbone"], identity["view"])), name)
    store.write_bytes_atomically(place, buffer.getvalue())
    return place


@dataclass(frozen=True)
class Embeddings:
    """The vectors of some images, in the order in which they were asked for.

    vectors: (n, d) float32, zero where failed; status: (n,) str; error: (n,) str.
    """

    vectors: np.ndarray
    status: np.ndarray
    error: np.ndarray

    @property
    def ok(self) -> np.ndarray:
        """(n,) bool: the rows that hold a vector."""
        return self.status != FAILED


def finished(work: str, identity: Mapping[str, str]) -> set[tuple[str, str]]:
    """(image id, sha256) of every image that has a row under this identity, a failed one too.

    The hash is part of it so that an image whose file was replaced counts as a new one.
    """
    found: set[tuple[str, str]] = set()
    for table in _tables(work, identity, ["image_id", "sha256"]):
        found.update(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    return found


def read_embeddings(work: str, identity: Mapping[str, str], images: Mapping[str, str]) -> Embeddings:
    """The embeddings of `images` (sha256 by image id) under one identity. An image that two shards hold is taken once.

    Raises DataError where an image has none.
    """
    rows = {image: row for row, image in enumerate(images.items())}
    vectors = np.zeros((len(rows), 0), np.float32)
    status, error = np.full(len(rows), "", object), np.full(len(rows), "", object)
    for table in _tables(work, identity, None):
        keys = zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True)
        here = np.array([rows.get(key, -1) for key in keys])
        take = here >= 0
        block = _dense(table["embedding"].combine_chunks())
        if not vectors.shape[1]:
            vectors = np.zeros((len(rows), block.shape[1]), np.float32)
        vectors[here[take]] = block[take]
        status[here[take]] = np.array(table["status"].to_pylist(), object)[take]
        error[here[take]] = np.array(table["error"].to_pylist(), object)[take]
    missing = [image_id for (image_id, _), row in rows.items() if status[row] == ""]
    if missing:
        place = folder(work, (identity["backbone"], identity["view"]))
        raise DataError(f"{place}: no embedding of {len(missing)} images, e.g. {missing[0]!r}; run jobs.embed again")
    return Embeddings(vectors, status, error)


def _dense(column: pa.FixedSizeListArray) -> np.ndarray:
    """(n, d) float32: the values of a column, with zeros where a vector is null."""
    values = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    if column.null_count == 0:
        return values
    dense = np.zeros((len(column), column.type.list_size), np.float32)
    dense[column.is_valid().to_numpy(zero_copy_only=False)] = values
    return dense


def _tables(work: str, identity: Mapping[str, str], columns: list[str] | None) -> Iterator[pa.Table]:
    """The shards of an identity, in the order of their names; those of another are passed over, and said so."""
    others = 0
    place = folder(work, (identity["backbone"], identity["view"]))
    for path in sorted(store.list_files(place, ".parquet")):
        file_system, inner = store.open_store(path)
        try:
            with file_system.open_input_file(inner) as source:
                file = pq.ParquetFile(source)
                found = json.loads((file.schema_arrow.metadata or {}).get(IDENTITY, b"{}"))
                if found == dict(identity):
                    yield file.read(columns=columns)
                else:
                    others += 1
        except (pa.ArrowInvalid, OSError) as error:
            log.warning("%s: not a whole shard (%s); its images are embedded again", path, store.one_line(error))
    if others:
        log.warning("%s: %d shards of another identity (weights, mask or precision) are left aside", place, others)
