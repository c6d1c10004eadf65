"""What an image of DATA is there for, and where it is."""

from typing import NamedTuple


class Purpose(NamedTuple):
    """What an image is there for."""

    task: str  # "membership" or "attribution"
    set: str  # "" for attribution
    split: str  # "train" or "test"
    role: str  # "generated", "used", "not_used" or "unknown"
    generator: str  # of attribution's training slices, else ""

    @property
    def is_real(self) -> bool:
        """Whether the image is of a patient."""
        return self.task == "membership" and self.role != "generated"


class Image(NamedTuple):
    """One image file of DATA, not yet opened."""

    image_id: str
    name: str  # the file's name without the ending of an image format
    uri: str
    purpose: Purpose
    group: str
    bytes: int  # -1: there is no such file
    mtime: int  # nanoseconds, 0 where the store does not tell
    ctime: int = 0  # nanoseconds, of local files; 0 elsewhere
    folder: str = ""  # the class folder below DATA, or the name of the table that named the image
