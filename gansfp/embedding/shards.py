"""Embeddings on disk: WORK/embeddings/<backbone>/<view>/*.parquet, each complete or absent, each with its identity."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.errors import DataError

IDENTITY = b"gansfp_identity"  # key in a shard's Parquet metadata
FAILED = "failed"  # the status of a slice that could not be read; its embedding is null
READERS = 8  # threads that read shards: stores answer slowly, but many at once
LONGEST = 150  # characters of a folder's name; file systems end at 255 bytes, the percent signs of URIs counted
AHEAD = 64  # shards in memory beside the matrix that they fill

Pair = tuple[str, str]  # of a backbone and a view, by name

log = logging.getLogger(__name__)


def folder(work: str, pair: Pair) -> str:
    """Where the shards of a (backbone, view) are; a long name of a backbone, as a trained one's, is cut short."""
    name = quote(pair[0], safe=":@-_.")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 21]}-{hashlib.sha256(pair[0].encode()).hexdigest()[:20]}"
    return store.join(work, "embeddings", name, pair[1])


def schema(width: int, identity: Mapping[str, str]) -> pa.Schema:
    """image_id, sha256 (of the file, "" where it could not be had), status, error, embedding: float32[width]."""
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

    images: sha256 by image id; vectors: (n, d) float32, rows whose status is "failed" are written as null. The name
    comes from the images, so that a task that is run twice writes the same file once. Raises DataError.
    """
    failed = np.array([status == FAILED for status in statuses], dtype=bool)
    width = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(failed))
    columns = [list(images), list(images.values()), list(statuses), list(errors), embedding]
    return _write(work, identity, pa.table(columns, schema=schema(width, identity)))


def _write(work: str, identity: Mapping[str, str], table: pa.Table) -> str:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="none", use_dictionary=False, write_statistics=["image_id"])
    rows = list(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    name = hashlib.sha256(json.dumps([dict(identity), rows], sort_keys=True).encode()).hexdigest()[:20] + ".parquet"
    place = store.join(folder(work, (identity["backbone"], identity["view"])), name)
    store.write_bytes_atomically(place, buffer.getvalue())
    return place


@dataclass(frozen=True, eq=False)
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


def repair_and_list_done(
    work: str, identity: Mapping[str, str], images: Mapping[str, str], retry: bool = True
) -> set[str]:
    """Which of `images` (sha256 by image id) have their row under an identity; afterwards each has one at most.

    A failed image has its row too. What must go is rewritten or removed: shards that are not whole; rows of an image
    whose file has changed or, to `retry`, could not be had when it was embedded; rows that another shard holds as well,
    as left by a run that was killed while its last tasks were still writing.
    """
    kept: set[str] = set()
    for path, table in _tables(work, identity, ["image_id", "sha256"], broken=store.remove):
        ids, hashes = table["image_id"].to_pylist(), table["sha256"].to_pylist()
        good = []
        for image_id, sha256 in zip(ids, hashes, strict=True):
            current = images.get(image_id, sha256) == sha256 or not (sha256 or retry)
            good.append(current and image_id not in kept)
            if good[-1]:
                kept.add(image_id)
        if not all(good):
            rest = store.read_parquet(path).filter(pa.array(good))
            if rest.num_rows:  # first the new shard, then away with the old one: a kill in between loses nothing
                _write(work, identity, rest)
            store.remove(path)
    return kept & images.keys()


def read_embeddings(work: str, identity: Mapping[str, str], images: Mapping[str, str]) -> Embeddings:
    """The embeddings of `images` (sha256 by image id) under one identity. An image that two shards hold is taken once.

    Raises DataError where an image has none.
    """
    rows = {image_id: row for row, image_id in enumerate(images)}
    vectors = np.zeros((len(rows), 0), np.float32)
    status, error = np.full(len(rows), "", object), np.full(len(rows), "", object)
    for _, table in _tables(work, identity, None):
        ids, hashes = table["image_id"].to_pylist(), table["sha256"].to_pylist()
        # A row without a hash tells why the file could not be had; one that has it is better.
        here = np.array(
            [
                rows[i] if images.get(i) == h or (not h and i in rows and not status[rows[i]]) else -1
                for i, h in zip(ids, hashes, strict=True)
            ],
            dtype=np.int64,
        )
        take = here >= 0
        block = _dense(table["embedding"].combine_chunks())
        if not vectors.shape[1]:
            vectors = np.zeros((len(rows), block.shape[1]), np.float32)
        vectors[here[take]] = block[take]
        status[here[take]] = np.array(table["status"].to_pylist(), object)[take]
        error[here[take]] = np.array(table["error"].to_pylist(), object)[take]
    missing = [image_id for image_id, row in rows.items() if not status[row]]
    if missing:
        place = folder(work, (identity["backbone"], identity["view"]))
        raise DataError(f"{place}: no embedding of {len(missing)} images, such as {missing[0]!r}; run jobs.embed again")
    return Embeddings(vectors, status, error)


def _dense(column: pa.FixedSizeListArray) -> np.ndarray:
    """(n, d) float32: the values of a column, with zeros where a vector is null."""
    values = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    if column.null_count == 0:
        return values
    dense = np.zeros((len(column), column.type.list_size), np.float32)
    dense[column.is_valid().to_numpy(zero_copy_only=False)] = values
    return dense


def _tables(
    work: str, identity: Mapping[str, str], columns: list[str] | None, broken: Callable[[str], None] | None = None
) -> Iterator[tuple[str, pa.Table]]:
    """The shards of an identity, in the order of their names; those of another are passed over, and said so.

    broken: what to do with a truncated file, beside the warning.
    """
    place = folder(work, (identity["backbone"], identity["view"]))
    paths = sorted(store.list_files(place, ".parquet"))
    others = 0
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), AHEAD):
            part = paths[start : start + AHEAD]
            for path, found in zip(part, pool.map(lambda path: _read(path, identity, columns), part), strict=True):
                if isinstance(found, pa.Table):
                    yield path, found
                elif found is None:
                    others += 1
                else:
                    log.warning(
                        "%s: not a whole shard (%s); its images are embedded again", path, store.one_line(found)
                    )
                    if broken and isinstance(found, pa.ArrowInvalid):  # not an OSError: the store may answer next time
                        broken(path)
    if others:
        log.warning("%s: %d shards of another identity (weights, mask or precision) are left aside", place, others)


def _read(path: str, identity: Mapping[str, str], columns: list[str] | None) -> pa.Table | Exception | None:
    """The columns of a shard; None for one of another identity, the error for one that cannot be read."""
    file_system, inner = store.open_store(path)
    try:
        with file_system.open_input_file(inner) as source:
            file = store.open_parquet(source)
            found = json.loads((file.schema_arrow.metadata or {}).get(IDENTITY, b"{}"))
            return file.read(columns=columns) if found == dict(identity) else None
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid and UnicodeDecodeError are ValueErrors
        return error
