"""Lists the files below a folder, and recognises images whose names do not tell that they are images.

Hidden files and folders, and the __MACOSX folders that archives from a Mac hold, are left out.
"""

import os
import posixpath
import stat
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from pyarrow import fs

from gansfp import store
from gansfp.collection.names import shown
from gansfp.images.slices import ENDINGS, HEAD, recognise

# Files without the ending of an image that are never opened: names of files that are no images, and endings of texts.
_OTHER_NAMES = ("readme", "license", "dicomdir", "thumbs.db", "desktop.ini")
_OTHER_ENDINGS = (".txt", ".csv", ".json", ".md")
_LEADS_BACK, _HELD_ALREADY = "that leads back", "to a folder that its class holds already"  # links that are left out
_MANY = {_LEADS_BACK: "that lead back", _HELD_ALREADY: "to folders that their classes hold already"}
_READERS = 16  # threads that read the first bytes of files in a store: they wait for its answers


class Entry(NamedTuple):
    """A file or a folder. path: below the listed folder."""

    path: str
    is_folder: bool
    bytes: int = -1  # -1 for a folder, and for what is neither a file nor a folder
    mtime: int = 0  # nanoseconds, 0 where the store does not tell
    ctime: int = 0  # nanoseconds, of local files; 0 elsewhere


class Listing(NamedTuple):
    """The files and folders below a folder, sorted by path, and notes about symbolic links that were left out."""

    entries: list[Entry]
    notes: list[str]


# Of a folder's path, split into names: the class folder that it is or belongs to, "" for a folder outside all classes,
# None for a folder that may hold class folders.
ClassOf = Callable[[Sequence[str]], str | None]


def list_below(folder: str, part: str = "", class_of: ClassOf = lambda names: "") -> Listing:
    """Lists the files and folders below `folder` (a path or a URI), or below its folder `part`.

    Symbolic links on a local disk are followed, but not in a loop: not to a folder that holds the link, and not to one
    from which folders and links lead back to it. Nor is a folder read twice as a part of one class; a folder that is
    linked into two classes is read in both. A broken link, and an empty folder with a name like an image, are listed as
    files of -1 bytes, so that they become unreadable rows of the catalog instead of missing without notice. A folder
    that does not exist holds nothing.

    Raises OSError where a folder cannot be listed.
    """
    file_system, base = store.open_store(folder)
    if isinstance(file_system, fs.LocalFileSystem):
        entries, notes = _LocalWalk(base, part, class_of).run()
    else:
        entries, notes = _list_store(file_system, base, part), []
    return Listing(sorted(entries), sorted(notes))


def sub_folders(folder: str) -> list[str]:
    """Returns the names of the folders in a folder, sorted. Raises OSError where it cannot be listed."""
    file_system, base = store.open_store(folder)
    if isinstance(file_system, fs.LocalFileSystem):
        here = _Folder("", _identity(base), (), False, False)
        return [item.path for item in _scan(base, here) if isinstance(item, _Folder)]
    infos = file_system.get_file_info(fs.FileSelector(base))
    folders = (info.base_name for info in infos if info.type == fs.FileType.Directory)
    return sorted(name for name in folders if not _is_left_out(name))


def is_image_name(path: str) -> bool:
    """Returns True for a name that ends like that of an image file."""
    return path.lower().endswith(ENDINGS)


def recognise_images(folder: str, entries: Sequence[Entry]) -> set[str]:
    """Returns the paths of the files that are images: by their names, or, for other names, by their first bytes."""
    file_system, base = store.open_store(folder)
    is_local = isinstance(file_system, fs.LocalFileSystem)
    to_open = [entry.path for entry in entries if entry.bytes > 0 and _may_be_image(entry.path)]

    def holds_image(path: str) -> bool:
        place = posixpath.join(base, path)
        with suppress(OSError):  # a file that cannot be read, and has no image's name, counts as another file
            if is_local:
                with open(place, "rb") as file:
                    return recognise(file.read(HEAD), path) is not None
            with file_system.open_input_file(place) as source:
                return recognise(source.read(HEAD), path) is not None
        return False

    with ThreadPoolExecutor(1 if is_local else _READERS) as readers:
        found = list(readers.map(holds_image, to_open))
    named = {entry.path for entry in entries if not entry.is_folder and is_image_name(entry.path)}
    return named | {path for path, is_image in zip(to_open, found, strict=True) if is_image}


def _may_be_image(path: str) -> bool:
    """Returns True for a name that does not tell what the file is."""
    name = posixpath.basename(path).lower().partition(";")[0]  # a CD writes DICOMDIR;1
    return not (is_image_name(path) or name.endswith(_OTHER_ENDINGS) or name in _OTHER_NAMES)


def _is_left_out(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _list_store(file_system: fs.FileSystem, base: str, part: str) -> list[Entry]:
    """Lists an object store, which has no links."""
    selector = fs.FileSelector(posixpath.join(base, part).rstrip("/"), recursive=True, allow_not_found=True)
    infos = [(info.path[len(base) :].lstrip("/"), info) for info in file_system.get_file_info(selector)]
    parents = {posixpath.dirname(path) for path, _ in infos}
    entries = []
    for path, info in infos:
        if any(map(_is_left_out, path.split("/"))):
            continue
        if info.type == fs.FileType.Directory:
            entries.append(Entry(path, path in parents or not is_image_name(path)))
        else:
            entries.append(Entry(path, False, -1 if info.size is None else info.size, info.mtime_ns or 0))
    return entries


_Identity = tuple[int, int]  # device and inode: what tells that two paths lead to one folder


class _Folder(NamedTuple):
    """A local folder to walk. above: the folders that hold it, by the way that led to it."""

    path: str
    identity: _Identity
    above: tuple[_Identity, ...]
    is_link: bool
    is_below_link: bool


class _LocalWalk:
    """A walk through a local folder. Links to folders come last, so that a folder is listed by its own name."""

    def __init__(self, base: str, part: str, class_of: ClassOf) -> None:
        self._base, self._part, self._class_of = base, part, class_of
        self._outside: frozenset[_Identity] = frozenset()  # folders around the walk
        self._seen: dict[str, set[_Identity]] = {}  # class folder -> the folders that are read as parts of it
        self._inner: dict[_Identity, set[_Identity]] = {}  # folder walked by its own name -> the folders in it

    def run(self) -> tuple[list[Entry], list[str]]:
        """Returns files, folders and notes."""
        start = os.path.normpath(os.path.join(self._base, self._part))
        if not os.path.isdir(start):
            return [], []
        self._outside = _folders_above(os.path.realpath(start)) | _folders_above(start)
        entries: list[Entry] = []
        left_out: dict[str, list[str]] = defaultdict(list)
        folders, links = [_Folder(self._part, _identity(start), (), False, False)], deque[_Folder]()
        while folders or links:
            folder = folders.pop() if folders else links.popleft()
            if why := self._left_out(folder):
                left_out[why].append(folder.path)
                continue
            found = list(_scan(self._base, folder))
            if folder.path != self._part:
                entries.append(Entry(folder.path, bool(found) or not is_image_name(folder.path)))
            within = [item for item in found if isinstance(item, _Folder)]
            entries += [item for item in found if isinstance(item, Entry)]
            links += [item for item in within if item.is_link]
            folders += [item for item in within if not item.is_link]
            if not (folder.is_link or folder.is_below_link):
                self._inner[folder.identity] = {item.identity for item in within}
        return entries, [_note_of_links(why, paths) for why, paths in left_out.items()]

    def _left_out(self, folder: _Folder) -> str:
        """Returns why a folder is not walked, "" for one that is walked now."""
        if folder.identity in self._outside or folder.identity in folder.above:
            return _LEADS_BACK
        if folder.is_link and _reaches(self._inner, folder.identity, folder.above[-1]):
            return _LEADS_BACK
        class_folder = self._class_of(folder.path.split("/")) if folder.path else None
        if class_folder is None:
            return ""
        of_class = self._seen.setdefault(class_folder, set())
        if folder.identity in of_class:
            return _HELD_ALREADY
        of_class.add(folder.identity)
        return ""


def _note_of_links(why: str, paths: Sequence[str]) -> str:
    """Returns one note for all links that are left out for one reason: their number can grow as its square."""
    if len(paths) == 1:
        return f"a symbolic link {why} was left out: {shown(paths[0])}"
    return f"{len(paths)} symbolic links {_MANY[why]} were left out, such as {shown(min(paths))}"


def _reaches(inner: Mapping[_Identity, set[_Identity]], start: _Identity, end: _Identity) -> bool:
    """Returns True where a way of folders and links leads from one folder to another, so that a link back to the first
    closes a loop."""
    reached, ahead = {start}, [start]
    while ahead and end not in reached:
        new = inner.get(ahead.pop(), set()) - reached
        reached |= new
        ahead += new
    return end in reached


def _scan(base: str, folder: _Folder) -> Iterator[Entry | _Folder]:
    """Yields what is in a local folder."""
    above = (*folder.above, folder.identity)
    with os.scandir(os.path.join(base, folder.path)) as found:
        for item in sorted(found, key=lambda item: item.name):
            if _is_left_out(item.name):
                continue
            path = os.path.join(folder.path, item.name)
            try:
                status = item.stat()
            except OSError:  # a broken link
                yield Entry(path, False)
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = (status.st_dev, status.st_ino)
                yield _Folder(path, identity, above, item.is_symlink(), folder.is_link or folder.is_below_link)
            else:
                size = status.st_size if stat.S_ISREG(status.st_mode) else -1
                yield Entry(path, False, size, status.st_mtime_ns, status.st_ctime_ns)


def _folders_above(path: str) -> frozenset[_Identity]:
    """Returns the folders that hold `path`, up to the root of the disk."""
    above = set()
    while path != (path := os.path.dirname(path)):
        above.add(_identity(path))
    return frozenset(above)


def _identity(path: str) -> _Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino
