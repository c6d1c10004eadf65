"""Files that a search leaves for the final step and the report: damaged ones, and those of another digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gansfp.decision import nearest_slices, places, planted, real_slices, shortcuts
from gansfp.decision.stamped import is_current, read_stamped, write_stamped
from gansfp.errors import DataError

OF_REAL = {("highpass", "full"): {"warp": np.arange(6, dtype=np.float32).reshape(3, 2)}}


@pytest.mark.parametrize(
    ("file", "read"),
    [
        (nearest_slices.FILE, nearest_slices.read_nearest),
        (real_slices.FILE, real_slices.read_real_slices),
        (planted.FILE, planted.read_planted),
        (places.FILE, places.read_places),
        (shortcuts.FILE, shortcuts.read_shortcuts),
    ],
)
@pytest.mark.parametrize("content", [b"", b"PAR1 cut off", b'{"digest": "of others"'])
def test_a_damaged_file_is_one_line(file: str, read: Callable[[str], object], content: bytes, tmp_path: Path) -> None:
    assert read(str(tmp_path)) is None
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}: cannot be read \(.*\); run tune.search again") as raised:
        read(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("values", [b"[]", b"{}", b'{"sets": {"warp": [{"unknown": 1}]}}', b'{"sets": {"warp": 5}}'])
def test_shortcuts_of_another_form_are_one_line(values: bytes, tmp_path: Path) -> None:
    (tmp_path / shortcuts.FILE).write_bytes(values)
    with pytest.raises(DataError, match=r"shortcuts\.json: cannot be read"):
        shortcuts.read_shortcuts(str(tmp_path))


def test_a_search_writes_damaged_files_again(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert not is_current(real_slices.read_real_slices, folder, "a")
    real_slices.write_real_slices(folder, OF_REAL, "a")
    assert is_current(real_slices.read_real_slices, folder, "a")
    assert not is_current(real_slices.read_real_slices, folder, "b")
    file = tmp_path / real_slices.FILE
    file.write_bytes(file.read_bytes()[:-20])
    assert not is_current(real_slices.read_real_slices, folder, "a")


def test_tables_of_other_columns_are_as_absent(tmp_path: Path) -> None:
    place = str(tmp_path / "table.parquet")
    table = pa.table({"slice": [1, 2]})
    write_stamped(place, table, "a")
    found = read_stamped(place, table.schema)
    assert found is not None
    assert found.to_pydict() == {"slice": [1, 2]}
    assert read_stamped(place, pa.schema([("slices", pa.int64())])) is None
    assert read_stamped(place, table.schema, "b") is None
