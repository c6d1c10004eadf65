"""Opens files on local disks and in object stores: only this file turns a path or a URI into a file system.

All other files pass strings: an absolute local path, or a URI that pyarrow's file systems open, with its options
(`s3://bucket/data?region=eu-west-1`). The names of keys inside a URI are percent-encoded, as pyarrow expects.
"""

import codecs
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

TEMPORARY = "_tmp-"  # prefix of the names of unfinished files, which no listing shows
UNFINISHED_FOR = 3600.0  # seconds in which any file is written; an older unfinished file is from a killed writer

_UNFINISHED = re.compile(TEMPORARY + r"(probe-)?[0-9a-f]{12}")
_LOCAL = fs.LocalFileSystem()
_SEPARATOR_LINE = re.compile(r'"?sep=[,;\t|]"?[,;\t]*\r?\n')  # that Excel reads and writes above the header
_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # the first bytes of .xlsx, .ods and .xls
_SEPARATORS = ((";", "semicolons"), ("\t", "tabs"))  # that tables have where they should have commas
_UNPICKLES = "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"  # with it, Ray may run code in a Parquet file on opening


def absolute(uri: str) -> str:
    """Returns the one form in which a place is stored: an absolute path for a local one (also for `file://`), otherwise
    the URI without a slash at its end.

    Raises UsageError for an empty string, a `file://` URI that names another machine, and a URI with a password in it.
    """
    if not uri:
        raise UsageError("got an empty path, expected a folder or a URI such as s3://bucket/folder")
    if uri.startswith("file:"):
        path = uri.removeprefix("file:").removeprefix("//localhost")
        if path.startswith("//") and not path.startswith("///"):
            raise UsageError(f"got {uri!r}, expected file:/// (three slashes) and an absolute path")
        return os.path.abspath(unquote(path.removeprefix("//")))
    if is_remote(uri):
        base, mark, options = uri.partition("?")
        user, at, _ = base.partition("://")[2].partition("/")[0].rpartition("@")
        if at and ":" in user:  # URIs are written into catalogs, logs and results
            raise UsageError(
                "got a URI with a secret in it, expected access keys in the environment or in the cloud's own files"
            )
        return base.rstrip("/") + mark + options
    return os.path.abspath(uri)


def is_remote(uri: str) -> bool:
    """Returns True for a URI with another scheme than `file`."""
    return "://" in uri and not uri.startswith("file:")


def open_store(uri: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system that holds `uri`, and the path of `uri` in it.

    Raises UsageError for a scheme that pyarrow does not know, DataError where the store cannot be reached.
    """
    uri = absolute(uri)
    if not is_remote(uri):
        return _LOCAL, uri
    base, mark, options = uri.partition("?")
    scheme, _, place = base.partition("://")
    root, _, key = place.partition("/")
    file_system, path = _open_root(f"{scheme}://{root}{mark}{options}")
    return file_system, f"{path.rstrip('/')}/{unquote(key)}" if key else path


# Cached: one client (and for S3 one look-up of the bucket's region) for each bucket, not for each file.
@lru_cache(maxsize=64)
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
    """Returns `uri` with `parts` appended. In a URI, the parts are percent-encoded and the options stay at the end."""
    uri = absolute(uri)
    if not is_remote(uri):
        return os.path.abspath(os.path.join(uri, *parts))
    base, mark, options = uri.partition("?")
    return "/".join([base, *(quote(part.strip("/")) for part in parts)]) + mark + options


def read_bytes(uri: str, max_bytes: int | None = None) -> bytes:
    """Returns the bytes of a file. Raises OSError (FileNotFoundError, PermissionError, ...) where it cannot be read.

    max_bytes: with it, a larger file is not read, nor a pipe or device, which may have no end; both raise OSError.
    """
    file_system, path = open_store(uri)
    if file_system is _LOCAL:  # for small files, this is twice as fast as pyarrow's stream
        if max_bytes is not None:
            status = os.stat(path)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise OSError(errno.EINVAL, "neither a file nor a folder")
            _check_size(status.st_size, max_bytes)
        with open(path, "rb") as file:
            return file.read()
    with file_system.open_input_file(path) as source:
        if max_bytes is not None:
            _check_size(source.size(), max_bytes)
        return source.read()


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes, at most {max_bytes} are read")


def write_bytes_atomically(uri: str, data: bytes | pa.Buffer) -> None:
    """Writes a file completely or not at all: it is written under a temporary name beside it, then moved.

    Makes the folder. Raises DataError where writing fails; then it leaves nothing behind.
    """
    file_system, path = open_store(uri)
    folder, _, name = path.rpartition("/")
    temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex[:12]}-{name}.part"  # no reader looks for this ending
    try:
        file_system.create_dir(folder, recursive=True)
        try:
            with file_system.open_output_stream(temporary) as stream:
                stream.write(data)
            file_system.move(temporary, path)
        except OSError:
            if file_system.get_file_info(temporary).type == fs.FileType.File:
                file_system.delete_file(temporary)
            raise
    except OSError as error:
        raise DataError(f"{uri}: cannot be written ({one_line(error)})") from error


def remove(uri: str) -> None:
    """Removes a file, or a folder with all its files. Does nothing where there is neither. Raises DataError where
    removing fails."""
    file_system, path = open_store(uri)
    try:
        is_folder = file_system.get_file_info(path).type == fs.FileType.Directory
        (file_system.delete_dir if is_folder else file_system.delete_file)(path)
    except FileNotFoundError:
        pass  # another run removed it at the same time
    except OSError as error:
        raise DataError(f"{uri}: cannot be removed ({one_line(error)})") from error


def clear_unfinished(uri: str, recursive: bool = False, older: float = UNFINISHED_FOR) -> int:
    """Removes the unfinished files that killed writers left in a folder. Returns how many it removed.

    recursive: also in folders below. older: files that changed in the last so many seconds stay, because a writer may
    be at work. Raises DataError where the folder cannot be listed.
    """
    file_system, path = open_store(uri)
    removed = 0
    try:
        for info in file_system.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True)):
            if _UNFINISHED.match(info.base_name) and info.mtime and time.time() - info.mtime.timestamp() > older:
                with suppress(OSError):  # an unfinished file that stays does no harm
                    file_system.delete_file(info.path)
                    removed += 1
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({one_line(error)})") from error
    return removed


def exists(uri: str) -> bool:
    """Returns True where there is a file or a folder. Raises DataError where the store cannot answer."""
    file_system, path = open_store(uri)
    try:
        return file_system.get_file_info(path).type != fs.FileType.NotFound
    except OSError as error:
        raise DataError(f"{uri}: cannot be read ({one_line(error)})") from error


def list_files(uri: str, ending: str = "", recursive: bool = False) -> list[str]:
    """Returns the files in a folder whose names end with `ending`, sorted, each as `join(uri, ...)` writes it.

    Hidden and unfinished (`_tmp-`) files are left out. A missing folder has no files. Raises DataError where the folder
    cannot be listed.
    """
    file_system, path = open_store(uri)
    try:
        infos = file_system.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
        return sorted(
            join(uri, info.path[len(path) :].lstrip("/"))
            for info in infos
            if info.is_file and info.base_name.endswith(ending) and not info.base_name.startswith((".", TEMPORARY))
        )
    except OSError as error:
        raise DataError(f"{uri}: cannot be listed ({one_line(error)})") from error
    except UnicodeDecodeError as error:
        name = error.object.decode(errors="backslashreplace")
        raise DataError(f"{uri}: holds a file whose name is not UTF-8 ({name}); rename it") from error


def check_writable(work: str) -> None:
    """Makes the folder `work` if it is missing; writes and removes a small file. Raises DataError where that fails."""
    probe = join(work, f"{TEMPORARY}probe-{uuid.uuid4().hex[:12]}")
    try:
        write_bytes_atomically(probe, b"gansfp")
        file_system, path = open_store(probe)
        file_system.delete_file(path)
    except (DataError, OSError) as error:
        raise DataError(
            f"{work}: the work folder cannot be made or written ({one_line(error.__cause__ or error)})"
        ) from error


def read_parquet(uri: str) -> pa.Table:
    """Returns a whole Parquet file. Raises the errors of read_bytes and open_parquet."""
    return open_parquet(pa.BufferReader(read_bytes(uri))).read()


def open_parquet(source: pa.NativeFile) -> pq.ParquetFile:
    """Opens a Parquet file that has only plain columns, so that reading it cannot run code.

    Ray registers a column type whose values it unpickles. Pages that carry a checksum are checked when they are read.
    Raises OSError where the file cannot be read,
    pyarrow.ArrowInvalid where it is not Parquet or has a column of a type that is implemented in Python, and UsageError
    where the environment lets Ray unpickle the description of such a type.
    """
    if os.environ.get(_UNPICKLES, "0") != "0":
        raise UsageError(f"{_UNPICKLES} is set, with which a Parquet file can run code; unset it")
    try:
        file = pq.ParquetFile(source, page_checksum_verification=True)
        schema = file.schema_arrow
    except (OSError, pa.ArrowInvalid):
        raise
    except Exception as error:  # the code of an extension type may raise any error on its description
        raise pa.ArrowInvalid(f"{type(error).__name__}: {one_line(error)}") from error
    for column in schema:
        if not _is_plain(column.type):
            raise pa.ArrowInvalid(f"column {column.name!r} is {column.type}, expected plain text or numbers")
    return file


def _is_plain(column: pa.DataType) -> bool:
    """Returns False for a type that is implemented in Python, or that contains one."""
    if isinstance(column, pa.ExtensionType):
        return False
    if isinstance(column, pa.BaseExtensionType):  # one of Arrow's own, implemented in C++
        return _is_plain(column.storage_type)
    inner = [column.value_type] if pa.types.is_dictionary(column) else []
    return all(map(_is_plain, [*inner, *(column.field(index).type for index in range(column.num_fields))]))


def read_csv(uri: str, needed: Sequence[str]) -> dict[str, list[str]]:
    """Returns the columns of a CSV file with a header line, as stripped strings: {column: values}.

    Rows without any value are left out. Raises DataError for a file that is not UTF-8 text, a missing column of
    `needed`, a column that is there twice, and a row of another length.
    """
    try:
        content = read_bytes(uri)
        rows = csv.reader(io.StringIO(decode_text(content), newline=""), strict=True)
        lines = [stripped for line in rows if any(stripped := [value.strip() for value in line])]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{uri}: cannot be read as a CSV file ({one_line(error)})") from error
    header = lines[0] if lines else []
    for column in needed:
        if column not in header:
            joined = ",".join(header)
            hint = next((f"; it has {name}, save it with commas" for mark, name in _SEPARATORS if mark in joined), "")
            raise DataError(f"{uri}: no column {column!r}, its first line is {joined!r}{hint}")
    for column in header:
        if column and header.count(column) > 1:
            raise DataError(f"{uri}: has the column {column!r} twice, expected it once; remove one")
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise DataError(f"{uri}: row {number} has {len(line)} values, expected {len(header)}: {','.join(line)!r}")
    return {column: [line[index] for line in lines[1:]] for index, column in enumerate(header)}


def decode_text(content: bytes) -> str:
    """Returns a text file's content, which is UTF-8, with or without a byte-order mark, and without Excel's first line
    `sep=,`.

    Raises ValueError for another encoding, with the encoding that it seems to have and what to do, and for a workbook.
    """
    if content.startswith(_WORKBOOKS):
        raise ValueError("an Excel workbook, not text; save it as CSV")
    try:
        text = content.decode("utf-8-sig")
        separator_line = _SEPARATOR_LINE.match(text)
        return text[separator_line.end() :] if separator_line else text
    except UnicodeDecodeError as error:
        is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if is_utf_16 else "Latin-1 or another encoding, if it is text"
        raise ValueError(f"not text in UTF-8, probably {encoding}; save it as UTF-8") from error


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without the path, which the caller's message names."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
