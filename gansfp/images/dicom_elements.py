"""Reads elements of a DICOM data set with pydicom. No message tells a byte of an element that can name a patient."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from gansfp.images.image_file import NoSliceError

if TYPE_CHECKING:
    from pydicom import Dataset as PydicomDataset

Dataset: TypeAlias = "PydicomDataset"  # pydicom is not always installed


def read(dataset: Dataset, keyword: str) -> object:
    """Returns the value of an element, a list of several values, or None if the element is missing or empty.

    Raises NoSliceError if it cannot be read.
    """
    try:
        value = dataset[keyword].value if keyword in dataset else None
    except Exception as error:  # pydicom raises any exception on a damaged element, with bytes of the file in its text
        raise NoSliceError(f"{keyword} cannot be read ({type(error).__name__})") from None
    if isinstance(value, str):
        return value.strip(" \0") or None
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        value = list(value)
    return None if value in ([], b"") else value


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Returns the items of a sequence, or several values; [] if there are none. Raises NoSliceError as `read` does."""
    value = read(dataset, keyword)
    return value if isinstance(value, list) else []


def read_whole_number(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    """Returns a whole number. Raises NoSliceError if it is another value, or if it is missing without a default."""
    value = read(dataset, keyword)
    if value is None:
        if default is None:
            raise NoSliceError(f"not a DICOM image: no {keyword}")
        return default
    try:
        number = float(str(value))
        if not number.is_integer():
            raise ValueError
    except ValueError:
        raise NoSliceError(f"{keyword} is {short(value)}, expected a whole number") from None
    return int(number)


def read_text(dataset: Dataset, keyword: str) -> str:
    """Returns the text of an element without blanks around it, "" if it is missing. It never raises.

    The bytes are decoded without the character set of the file, so that one identifier is one text in all files.
    """
    element = dataset.get_item(keyword) if keyword in dataset else None
    value = element.value if element else b""
    if not isinstance(value, bytes):
        return str(value or "").strip(" \0")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip(" \0")


def short(value: object) -> str:
    """Returns a value as a quoted text of at most 20 characters, for messages."""
    return repr(str(value)[:20])
