"""Where files are: the one place in which a path or a URI becomes a file system (local, S3, GCS, ...).

Everything else hands strings around: an absolute local path, or a URI that pyarrow's file systems open, options
included (`s3://bucket/data?region=eu-west-1`). Key names inside a URI are percent-encoded, as pyarrow expects them.
"""

import csv
import errno
import io
import os
import re
import stat
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from gansfp.errors import DataError, UsageError

TEMPORARY = "_tmp-"  # how the names of unfinished files begin; no listing shows them
UNFINISHED_FOR = 3600.0  # seconds in which any file is written; an older unfinished one is a killed writer's

_UNFINISHED = re.compile(TEMPORARY + r"(probe-)?[0-9a-f]{12}")
_LOCAL = fs.LocalFileSystem()
_UNPICKLES = "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"  # of Ray's: opening a Parquet file may run code in it


def absolute(uri: str) -> str:
    """The form in which a place is remembered: an absolute path for local ones (also `file://`), else the URI without a
    closing slash.

    Raises UsageError for an empty string, a `file://` URI that names another machine, a URI with a password in it.
    """
    if not uri:
        raise UsageError("got an empty path, expected a folder or a URI such as s3://bucket/folder")
    if uri.startswith("file:"):
        path = uri.removeprefix("file:").removeprefix("//localhost")
        if path.startswith("//") and not path.startswith("///"):
            raise UsageError(f"got {uri!r}, expected file:///, with three slashes, before an absolute path")
        return os.path.abspath(unquote(path.removeprefix("//")))
    if is_remote(uri):
        base, mark, options = uri.partition("?")
        user, at, _ = base.partition("://")[2].partition("/")[0].rpartition("@")
        if at and ":" in user:  # uris are written into catalogs, logs and results
            raise UsageError(
                "got a URI with a secret in it, expected keys in the environment or in the cloud's own files"
            )
        return base.rstrip("/") + mark + options
    return os.path.abspath(uri)


def is_remote(uri: str) -> bool:
    """True for a URI of another scheme than `file`."""
    return "://" in uri and not uri.startswith("file:")


def open_store(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system that holds `uri`, and the path of `uri` in it.

    Raises UsageError for a scheme that pyarrow does not understand, DataError where the store cannot be reached.
    """
    uri = absolute(uri)
    if not is_remote(uri):
        return _LOCAL, uri
    base, mark, options = uri.partition("?")
    scheme, _, place = base.partition("://")
    root, _, key = place.partition("/")
    store, path = _open_root(f"{scheme}://{root}{mark}{options}")
    return store, f"{path.rstrip('/')}/{unquote(key)}" if key else path


@lru_cache(
    maxsize=64
)  # a client, and for S3 the look-up of the bucket's region, is made once a bucket, not once a file
def _open_root(uri: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(uri)
    except (ValueError, NotImplementedError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise UsageError(
            f"got {uri!r}, expected a path or a URI of file://, s3:// or gs:// ({one_line(error)})"
        ) from error
    except OSError as error:
        raise DataError(f"{uri}: cannot be opened ({one_line(error)})") from error


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it: a path stays a path, in a URI the parts are percent-encoded and its options kept."""
    uri = absolute(uri)
    if not is_remote(uri):
        return os.path.abspath(os.path.join(uri, *parts))
    base, mark, options = uri.partition("?")
    return "/".join([base, *(quote(part.strip("/")) for part in parts)]) + mark + options


def read_bytes(uri: str, most: int | None = None) -> bytes:
    """The bytes of a file. Raises OSError (FileNotFoundError, PermissionError, ...) where it cannot be read.

    most: nothing is read of a larger file, nor of a pipe or device, which might not end; OSError too.
    """
    store, path = open_store(uri)
    if store is _LOCAL:  # twice as fast as pyarrow's stream for small files
        if most is not None:
            about = os.stat(path)
            if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
                raise OSError(errno.EINVAL, "neither a file nor a folder")
            _check_size(about.st_size, most)
        with open(path, "rb") as file:
            return file.read()
    with store.open_input_file(path) as source:
        if most is not None:
            _check_size(source.size(), most)
        return source.read()


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise OSError(errno.EFBIG, f"{size} bytes, at most {most} are read")


def write_bytes_atomically(uri: str, data: bytes | pa.Buffer) -> None:
    """Writes a file that is there whole or not at all: under a temporary name beside it, then moved. Makes its folder.

    Raises DataError where that fails; nothing is left behind then.
    """
    store, path = open_store(uri)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex[:12]}-{name}.part"  # an ending that no glob of readers takes
    try:
        store.create_dir(folder, recursive=True)
        try:
            with store.open_output_stream(temporary) as stream:
                stream.write(data)
            store.move(temporary, path)
        except OSError:
            if store.get_file_info(temporary).type == fs.FileType.File:
                store.delete_file(temporary)
            raise
    except OSError as error:
        raise DataError(f"{uri}: cannot be written ({one_line(error)})") from error


def remove(uri: str) -> None:
    """Removes a file, or a folder and all below it; what is not there is gone already. Raises DataError where that
    fails."""
    store, path = open_store(uri)
    try:
        (store.delete_dir if store.get_file_info(path).type == fs.FileType.Directory else store.delete_file)(path)
    except FileNotFoundError:
        pass  # another run has tidied up at the same time
    except OSError as error:
        raise DataError(f"{uri}: cannot be removed ({one_line(error)})") from error


def clear_unfinished(uri: str, recursive: bool = False, older: float = UNFINISHED_FOR) -> int:
    """Removes what killed writers left unfinished in a folder, or also below; returns how many files that were.

    Those changed in the last `older` seconds stay: somebody may be writing them. Raises DataError where the folder
    cannot be listed.
    """
    store, path = open_store(uri)
    removed = 0
    try:
        for info in store.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True)):
            if _UNFINISHED.match(info.base_name) and info.mtime and time.time() - info.mtime.timestamp() > older:
                with suppress(OSError):  # what cannot be removed does no harm
                    store.delete_file(info.path)
                    removed += 1
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({one_line(error)})") from error
    return removed


def exists(uri: str) -> bool:
    """True where a file or a folder is. Raises DataError where that cannot be told."""
    store, path = open_store(uri)
    try:
        return store.get_file_info(path).type != fs.FileType.NotFound
    except OSError as error:
        raise DataError(f"{uri}: cannot be read ({one_line(error)})") from error


def list_files(uri: str, ending: str = "", recursive: bool = False) -> list[str]:
    """The files in a folder whose names end with `ending`, sorted, each as `join(uri, ...)` would name it.

    Hidden and unfinished (`_tmp-`) files are left out; a folder that is not there has none. Raises DataError where it
    cannot be listed.
    """
    store, path = open_store(uri)
    try:
        infos = store.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({one_line(error)})") from error
    return sorted(
        join(uri, info.path[len(path) :].lstrip("/"))
        for info in infos
        if info.is_file and info.base_name.endswith(ending) and not info.base_name.startswith((".", TEMPORARY))
    )


def check_writable(work: str) -> None:
    """Makes the folder `work` if it is not there and proves by a small file that it can be written, or DataError."""
    probe = join(work, f"{TEMPORARY}probe-{uuid.uuid4().hex[:12]}")
    try:
        write_bytes_atomically(probe, b"gansfp")
        store, path = open_store(probe)
        store.delete_file(path)
    except (DataError, OSError) as error:
        raise DataError(
            f"{work}: the work folder cannot be made or written ({one_line(error.__cause__ or error)})"
        ) from error


def read_parquet(uri: str) -> pa.Table:
    """A whole Parquet file. Raises what open_parquet raises."""
    return open_parquet(pa.BufferReader(read_bytes(uri))).read()


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """A Parquet file of plain columns, which holds no code: Ray registers a type whose values it unpickles.

    Raises OSError where it cannot be read, pyarrow.ArrowInvalid where it is none or has columns of a type that is
    implemented in Python, UsageError where the environment lets Ray unpickle what describes such a type.
    """
    if os.environ.get(_UNPICKLES, "0") != "0":
        raise UsageError(f"{_UNPICKLES} is set, with which a Parquet file can run code; unset it")
    try:
        file = pq.ParquetFile(source)
        schema = file.schema_arrow
    except (OSError, pa.ArrowInvalid):
        raise
    except Exception as error:  # an extension type's own code meets whatever describes it there
        raise pa.ArrowInvalid(f"{type(error).__name__}: {one_line(error)}") from error
    for column in schema:
        if not _is_plain(column.type):
            raise pa.ArrowInvalid(f"column {column.name!r} is {column.type}, expected plain text or numbers")
    return file


def _is_plain(column: pa.DataType) -> bool:
    """False for a type that is implemented in Python, or has one inside."""
    if isinstance(column, pa.ExtensionType):
        return False
    if isinstance(column, pa.BaseExtensionType):  # Arrow's own
        return _is_plain(column.storage_type)
    inner = [column.value_type] if pa.types.is_dictionary(column) else []
    return all(map(_is_plain, [*inner, *(column.field(index).type for index in range(column.num_fields))]))


def read_csv(uri: str, needed: Sequence[str]) -> dict[str, list[str]]:
    """The columns of a CSV file with a header line, as stripped strings: {column: values}.

    Raises DataError for a file that is not UTF-8 text, a column of `needed` that is missing, a row of another length.
    """
    try:
        rows = csv.reader(io.StringIO(read_bytes(uri).decode("utf-8-sig"), newline=""), strict=True)
        lines = [[value.strip() for value in line] for line in rows if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{uri}: cannot be read as a CSV file ({one_line(error)})") from error
    header = lines[0] if lines else []
    for column in needed:
        if column not in header:
            raise DataError(f"{uri}: no column {column!r}, its first line is {','.join(header)!r}")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise DataError(f"{uri}: row {number} has {len(line)} values, expected {len(header)}: {','.join(line)!r}")
    return {column: [line[index] for line in lines[1:]] for index, column in enumerate(header)}


def one_line(error: BaseException) -> str:
    """The first line of an error's message, without the path that our own messages already name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
