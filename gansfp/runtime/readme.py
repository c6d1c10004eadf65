"""A table that a command writes into a text file, between two lines that mark its place."""

from __future__ import annotations

from dataclasses import dataclass

from gansfp import store
from gansfp.errors import UsageError


@dataclass(frozen=True)
class Place:
    """The lines between which a command writes."""

    begin: str
    end: str

    def put(self, text: str, table: str) -> str:
        """A text with what stands between the lines replaced by the table without its heading, its first line.

        Raises UsageError where the lines are not there.
        """
        before, begin, rest = text.partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not (begin and end):
            raise UsageError(f"--readme: expected the lines {self.begin!r} and {self.end!r} in the file")
        return f"{before}{begin}\n\n{table.partition(chr(10))[2].strip()}\n\n{end}{after}"

    def read(self, file: str) -> str:
        """The text that is to hold the table, looked at before minutes are spent.

        Raises UsageError for a file that cannot be read or has no such lines.
        """
        try:
            text = store.read_bytes(file).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--readme: got {file!r}, which cannot be read ({store.one_line(error)})") from error
        self.put(text, "")
        return text

    def write(self, file: str, table: str) -> None:
        """Puts the table into the file as it is now. Raises UsageError as `read` does, DataError where it cannot be
        written.
        """
        store.write_bytes_atomically(store.absolute(file), self.put(self.read(file), table).encode())
