"""Names of files as ids: when two of them are the same, how an odd one is shown, which ones a CSV file can hold, and
why an id of a table may fit no image."""

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence

from gansfp.images.slices import without_ending

_CHANGES = (  # that may turn an id of a table into one of an image, and what each of them says of the id
    (lambda name: name.replace("\\", "/"), "write / between folders, not \\"),
    (without_ending, "ids have no file ending"),
    (posixpath.basename, "ids are file names, or paths below the data folder"),
    (lambda name: re.sub(r"(?<=\d)\.0+$", "", name), "a spreadsheet has made numbers of the ids"),
)


def normal(name: str) -> str:
    """Returns a name in Unicode's normal form NFC.

    A Mac writes "é" as two characters, other systems write it as one; both look the same and mean the same.
    """
    return unicodedata.normalize("NFC", name)


def key(name: str) -> str:
    """Returns what two ids have in common if they are the same: NFC, without the blanks around, which tables lose."""
    return normal(name).strip()


def shown(text: str) -> str:
    """Returns a text that any terminal can show: bytes that are not UTF-8, and control characters, become escapes."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def is_utf8(name: str) -> bool:
    """Returns False for a name that holds bytes that are not UTF-8, which Python writes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def fits_csv(name: str) -> bool:
    """Returns True for a name that all readers of CSV files read in the same way, without quotation marks around it.

    U+0085 and U+2028 are no line breaks in CSV files.
    """
    return not (set(',"\x7f') & set(name) or any(character < " " for character in name) or name.startswith("\ufeff"))


def frame_ending(frame: int) -> str:
    """Returns what the id of a slice ends in: its number in a file of several slices, "" for 0, the only slice."""
    return f"#{frame:04d}" if frame else ""


def without_frame(name: str) -> str:
    """Returns the id of a slice without what frame_ending gave it."""
    return re.sub(r"#\d{4,}$", "", name)


class KnownIds:
    """The ids and names of images, without ending, to which the ids of a table are compared."""

    def __init__(self, known: Iterable[str]) -> None:
        self._names = {key(name) for name in known}
        self._folded = {name.casefold(): name for name in self._names}
        self._full = {name.lstrip("0"): name for name in self._names if name.isdigit() and name.startswith("0")}
        self._around: dict[str, str] = {}
        for name in sorted(self._names):
            if "#" in name:
                around = f"a file of several slices has an id for each of them, such as {name}"
                self._around.setdefault(name.rpartition("#")[0], around)
            if ";" in name:
                around = f"the list of ids has semicolons, as in {name}; save it with commas"
                self._around.setdefault(name.partition(";")[0].strip(), around)
            if "/" in name:
                self._around.setdefault(posixpath.basename(name), f"the ids are paths, such as {name}")

    def reason(self, given: str) -> str:
        """Returns why an id fits no image, such as "ids have no file ending", or "" for no guess."""
        form, reasons = key(given), list[str]()
        if form in self._names:
            return ""
        for change, reason in ((str, ""), *_CHANGES):
            changed = change(form)
            reasons += [reason] if changed != form else []
            form = changed
            if (relation := self._relation(form)) is not None:
                return "; ".join(filter(None, [*reasons, relation]))
        return ""

    def _relation(self, form: str) -> str | None:
        """Returns how a form of an id differs from a known id, "" for not at all, None where it resembles none."""
        if form in self._names:
            return ""
        if (other := self._folded.get(form.casefold())) is not None:
            return f"{form} may be {other}, in other upper and lower case"
        if form.isdigit() and (full := self._full.get(form.lstrip("0"))) is not None:
            return f"{form} may be {full}, whose zeros a spreadsheet has removed"
        return self._around.get(form)


def likely_reason(unmatched: Sequence[str], known: Iterable[str]) -> str:
    """Returns why ids of a table fit no image: the reason for the first id that has one, or "" for no guess.

    unmatched: the ids; known: the names, ids and paths of the images, without ending.
    """
    ids = KnownIds(known)
    return next(filter(None, map(ids.reason, unmatched)), "")
