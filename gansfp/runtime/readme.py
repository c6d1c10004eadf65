"""A place in a text file, between two marker lines, into which a command writes a table."""

from __future__ import annotations

from dataclasses import dataclass

from gansfp import store
from gansfp.errors import UsageError


@dataclass(frozen=True)
class Place:
    """The marker lines; a command replaces the text between them."""

    begin: str
    end: str

    def put(self, text: str, table: str) -> str:
        """Returns the text with the table between the marker lines, without the table's first line, its heading.

        Raises UsageError where a marker line is missing.
        """
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not (begin and end):
            raise UsageError(f"--readme: expected the lines {self.begin!r} and {self.end!r} in the file")
        return f"{before}{begin}\n\n{table.partition(chr(10))[2].strip()}\n\n{end}{after}"

    def read(self, file: str) -> str:
        """Reads the file, so that a mistake is found before the table is computed, which takes minutes.

        Raises UsageError for a file that cannot be read or has no marker lines.
        """
        try:
            text = store.read_bytes(file).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--readme: got {file!r}, which cannot be read ({store.one_line(error)})") from error
        self.put(text, "")
        return text

    def write(self, file: str, table: str) -> None:
        """Writes the table into the file. Raises UsageError as `read` does, DataError where it cannot be written."""
        store.write_bytes_atomically(store.absolute(file), self.put(self.read(file), table).encode())
