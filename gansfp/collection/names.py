"""Names of files as ids: when two of them are the same, how an odd one is shown, which ones a CSV file can hold."""

import unicodedata
from collections.abc import Iterable, Sequence

from gansfp.images.slices import without_ending


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


def likely_reason(unmatched: Sequence[str], known: Iterable[str]) -> str:
    """Returns why ids of a table fit no image, such as "ids have no file ending", or "" for no guess.

    unmatched: the ids; known: the names of the images, without ending.
    """
    keys = {key(name): name for name in known}
    if any(key(without_ending(given)) in keys for given in unmatched):
        return "ids have no file ending"
    longer = {name.lstrip("0"): name for name in keys if name.isdigit() and name.startswith("0")}
    for given in unmatched:
        if given.isdigit() and (full := longer.get(given.lstrip("0"), given)) != given:
            return f"{given} may be {full}, whose zeros a spreadsheet has removed"
    return ""
