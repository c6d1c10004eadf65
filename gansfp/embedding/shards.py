"""Embeddings on disk: shards WORK/embeddings/<backbone>/<view>/*.parquet. Each is complete, and holds its identity."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gansfp import store
from gansfp.errors import DataError
from gansfp.rows import RowsOnDisk

IDENTITY = b"gansfp_identity"  # key in a shard's Parquet metadata
WIDTH = b"width"  # key in the metadata of a table as it was read: numbers in a vector
FAILED = "failed"  # the status of a slice that could not be read; its embedding is null
READERS = 8  # threads that read shards: a remote store answers slowly, but answers many requests at once
LONGEST = 150  # characters of a folder's name; file systems allow 255 bytes, and URIs add percent signs
AHEAD = 16  # shards in memory at once, beside the matrix that they fill

Pair = tuple[str, str]  # the names of a backbone and a view
Matrix = TypeVar("Matrix", np.ndarray, RowsOnDisk)

log = logging.getLogger(__name__)


def folder(work: str, pair: Pair) -> str:
    """Returns the folder of the shards of a (backbone, view). A long name, as of a trained backbone, is shortened."""
    name = quote(pair[0], safe=":@-_.")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 21]}-{hashlib.sha256(pair[0].encode()).hexdigest()[:20]}"
    return store.join(work, "embeddings", name, pair[1])


def schema(width: int, identity: Mapping[str, str]) -> pa.Schema:
    """Returns the columns: image_id, sha256 (of the file; "" if it could not be read), status, error, embedding.

    The embedding is a list of `width` float32. The metadata hold the identity.
    """
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

    images: sha256 by image id; vectors: (n, d) float32, written as null where the status is "failed". The file's name
    is a hash of the images, so a task that runs twice writes one file. Raises DataError.
    """
    failed = np.array([status == FAILED for status in statuses], dtype=bool)
    width = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(failed))
    columns = [list(images), list(images.values()), list(statuses), list(errors), embedding]
    return _write(work, identity, pa.table(columns, schema=schema(width, identity)))


def _write(work: str, identity: Mapping[str, str], table: pa.Table) -> str:
    buffer = pa.BufferOutputStream()
    options = {"compression": "none", "use_dictionary": False, "write_statistics": ["image_id"]}
    pq.write_table(table, buffer, write_page_checksum=True, **options)
    rows = list(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    name = hashlib.sha256(json.dumps([dict(identity), rows], sort_keys=True).encode()).hexdigest()[:20] + ".parquet"
    place = store.join(folder(work, (identity["backbone"], identity["view"])), name)
    store.write_bytes_atomically(place, buffer.getvalue())
    return place


@dataclass(frozen=True, eq=False)
class Statuses:
    """How the embedding of some images went, in the order of the request.

    status: (n,) str; error: (n,) str. width: numbers in a vector; 0 where there is no image.
    """

    status: np.ndarray
    error: np.ndarray
    width: int

    @property
    def ok(self) -> np.ndarray:
        """(n,) bool: True for the rows that hold a vector."""
        return self.status != FAILED


@dataclass(frozen=True, eq=False)
class Embeddings(Statuses):
    """The same with the vectors: (n, d) float32, zeros for a failed image."""

    vectors: np.ndarray


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """The vectors of some images under one identity, which are read when they are asked for.

    images: content hash by image id.
    """

    work: str
    identity: Mapping[str, str]
    images: Mapping[str, str]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the vectors (m, d) float32 of these rows (m,) of the images. Raises DataError as read_embeddings."""
        return self._read(rows, _zeros)

    def on_disk(self, rows: np.ndarray) -> RowsOnDisk:
        """Returns the same vectors in a temporary file, so that they are not in memory at once."""
        return self._read(rows, RowsOnDisk)

    def _read(self, rows: np.ndarray, make: Callable[[tuple[int, int]], Matrix]) -> Matrix:
        ids = np.array(list(self.images), object)[rows].tolist()
        images = {image_id: self.images[image_id] for image_id in ids}
        vectors = _read(self.work, self.identity, images, make)[1]
        pa.default_memory_pool().release_unused()  # what the shards took; trials need it for other things
        return vectors


def repair_and_list_done(
    work: str, identity: Mapping[str, str], images: Mapping[str, str], retry: bool = True
) -> set[str]:
    """Returns the ids among `images` (sha256 by image id) that already have a row, and leaves at most one row for each.

    An image that could not be read has a row too. Removes or rewrites damaged shards; shards with rows of an image
    whose file has changed; with `retry`, shards with rows of an image that could not be read before; and shards with
    rows that another shard also holds, as a killed run leaves them whose last tasks were still writing.
    """
    done: set[str] = set()
    rewritten: set[str] = set()  # a rewritten shard can have the name of a shard that comes later

    def remove_damaged(path: str) -> None:
        if path not in rewritten:
            store.remove(path)

    for path, table in _tables(work, identity, ["image_id", "sha256"], remove_damaged):
        if path in rewritten:  # its rows count as done already
            continue
        ids, hashes = table["image_id"].to_pylist(), table["sha256"].to_pylist()
        valid, of_shard = [], set[str]()
        for image_id, sha256 in zip(ids, hashes, strict=True):
            current = images.get(image_id, sha256) == sha256 or not (sha256 or retry)
            valid.append(current and image_id not in done and image_id not in of_shard)
            if valid[-1]:
                of_shard.add(image_id)
        if not all(valid):
            valid_rows = _valid_rows(path, valid)
            of_shard &= set(valid_rows["image_id"].to_pylist())
            if valid_rows.num_rows:  # the new shard is written before the old one is removed: a kill loses nothing
                rewritten.add(_write(work, identity, valid_rows))
            store.remove(path)
        done |= of_shard
    return done & images.keys()


def _valid_rows(path: str, valid: Sequence[bool]) -> pa.Table:
    """Returns some rows of a shard; none where its vectors are damaged."""
    try:
        return store.read_parquet(path).filter(pa.array(valid))
    except (OSError, ValueError) as error:
        if not _is_damaged(path, error):
            raise DataError(f"{path}: cannot be read ({store.one_line(error)}); try again") from error
        log.warning("%s: a damaged shard (%s); its images are embedded again", path, store.one_line(error))
        return pa.table({"image_id": pa.array([], pa.string())})


def count_done(work: str, identity: Mapping[str, str], images: Mapping[str, str]) -> int:
    """Returns how many of `images` (sha256 by image id) have a row under an identity. Changes and logs nothing."""
    paths = store.list_files(folder(work, (identity["backbone"], identity["view"])), ".parquet")
    done: set[str] = set()
    with ThreadPoolExecutor(READERS) as pool:
        for table in pool.map(lambda path: _read_shard(path, identity, ["image_id", "sha256"]), paths):
            if isinstance(table, pa.Table):
                rows = zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True)
                done |= {image_id for image_id, sha256 in rows if not sha256 or images.get(image_id) == sha256}
    return len(done & images.keys())


def read_embeddings(work: str, identity: Mapping[str, str], images: Mapping[str, str]) -> Embeddings:
    """Returns the embeddings of `images` (sha256 by image id) under one identity.

    Reads the vectors of the shards alone that hold one of the images. If two shards hold an image, one of its rows is
    used. A damaged shard is removed, so that the next run embeds its images again. Raises DataError if an image has no
    row.
    """
    rows, vectors = _read(work, identity, images, _zeros)
    return Embeddings(rows.status, rows.error, vectors.shape[1], vectors)


def _zeros(shape: tuple[int, int]) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _read(
    work: str, identity: Mapping[str, str], images: Mapping[str, str], make: Callable[[tuple[int, int]], Matrix]
) -> tuple[_Rows, Matrix]:
    """Reads vectors into what `make` makes of (n, d), zero at first. See read_embeddings."""
    rows, vectors = _Rows(images), make((len(images), 0))
    for _, table in _tables(work, identity, None, store.remove, images):
        targets, used = rows.place(table)
        of_shard = _dense(table["embedding"].combine_chunks())
        if not vectors.shape[1]:
            vectors = make((len(images), of_shard.shape[1]))
        vectors[targets] = of_shard[used]
    rows.check_complete(work, identity)
    return rows, vectors


def read_statuses(work: str, identity: Mapping[str, str], images: Mapping[str, str]) -> Statuses:
    """Returns what read_embeddings returns, without reading the vectors. Raises DataError if an image has no row."""
    rows, width = _Rows(images), 0
    for _, table in _tables(work, identity, ["image_id", "sha256", "status", "error"]):
        rows.place(table)
        width = int(table.schema.metadata[WIDTH])
    rows.check_complete(work, identity)
    return Statuses(rows.status, rows.error, width)


class _Rows:
    """The rows of some images (sha256 by image id), which shards fill one after the other."""

    def __init__(self, images: Mapping[str, str]) -> None:
        self.images = images
        self.row_of = {image_id: row for row, image_id in enumerate(images)}
        self.status, self.error = (np.full(len(images), "", object) for _ in range(2))

    def place(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Takes status and error of the rows of a shard that belong here. Returns the rows (m,) that they fill, and
        which rows of the shard these are, (rows of the shard,) bool."""
        ids, hashes = table["image_id"].to_pylist(), table["sha256"].to_pylist()
        # A row without a hash says why the file could not be read; a row with the current hash replaces it.
        targets = np.array(
            [
                self.row_of[i]
                if self.images.get(i) == h or (not h and i in self.row_of and not self.status[self.row_of[i]])
                else -1
                for i, h in zip(ids, hashes, strict=True)
            ],
            dtype=np.int64,
        )
        used = targets >= 0
        self.status[targets[used]] = np.array(table["status"].to_pylist(), object)[used]
        self.error[targets[used]] = np.array(table["error"].to_pylist(), object)[used]
        return targets[used], used

    def check_complete(self, work: str, identity: Mapping[str, str]) -> None:
        """Raises DataError if an image has no row."""
        missing = [image_id for image_id, row in self.row_of.items() if not self.status[row]]
        if missing:
            place = folder(work, (identity["backbone"], identity["view"]))
            raise DataError(
                f"{place}: no embedding of {len(missing)} images, such as {missing[0]!r}; run jobs.embed again"
            )


def _dense(column: pa.FixedSizeListArray) -> np.ndarray:
    """Returns the values of a column, (n, d) float32, with zeros where a vector is null."""
    values = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    if column.null_count == 0:
        return values
    dense = np.zeros((len(column), column.type.list_size), np.float32)
    dense[column.is_valid().to_numpy(zero_copy_only=False)] = values
    return dense


def _tables(
    work: str,
    identity: Mapping[str, str],
    columns: list[str] | None,
    on_damaged: Callable[[str], None] | None = None,
    images: Collection[str] | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """Returns the shards of an identity, in the order of their names. Logs how many shards of others it leaves out.

    columns: those to read, None for all. on_damaged: called with the path of a damaged file, after the warning.
    images: ids; shards that hold none of them come without rows.
    """
    place = folder(work, (identity["backbone"], identity["view"]))
    paths = sorted(store.list_files(place, ".parquet"))
    others = 0
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(paths), AHEAD):
            part = paths[start : start + AHEAD]
            for path, result in zip(
                part, pool.map(lambda path: _read_shard(path, identity, columns, images), part), strict=True
            ):
                if isinstance(result, pa.Table):
                    yield path, result
                elif result is None:
                    others += 1
                else:
                    log.warning(
                        "%s: not a whole shard (%s); its images are embedded again", path, store.one_line(result)
                    )
                    if on_damaged and _is_damaged(path, result):
                        on_damaged(path)
    if others:
        log.warning("%s: left out %d shards of another identity (weights, mask or precision)", place, others)


def _read_shard(
    path: str, identity: Mapping[str, str], columns: list[str] | None, images: Collection[str] | None = None
) -> pa.Table | Exception | None:
    """Returns the columns of a shard, as _tables; None for a shard of another identity, the error for one that cannot
    be read."""
    file_system, inner = store.open_store(path)
    try:
        with file_system.open_input_file(inner) as source:
            file = store.open_parquet(source)
            schema = file.schema_arrow
            if json.loads((schema.metadata or {}).get(IDENTITY, b"{}")) != dict(identity):
                return None
            if images is not None and not any(
                i in images for i in file.read(columns=["image_id"])["image_id"].to_pylist()
            ):
                return schema.empty_table()
            width = str(schema.field("embedding").type.list_size)
            return file.read(columns=columns).replace_schema_metadata({WIDTH: width})
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid and UnicodeDecodeError are ValueErrors
        return error


def _is_damaged(path: str, error: Exception) -> bool:
    """Whether the content of a file is why it could not be read, and not a store that may answer next time."""
    if isinstance(error, pa.ArrowInvalid):
        return True
    with suppress(DataError, OSError):
        content = pa.BufferReader(store.read_bytes(path))
        try:
            store.open_parquet(content).read()
        except (OSError, ValueError):
            return True
    return False
