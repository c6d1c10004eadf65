"""gansfp.collection.table: what pandas, Excel and others write into a table of images."""

import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gansfp.collection.catalog import read_catalog
from gansfp.collection.layout import find_images
from gansfp.collection.table import plain_names
from gansfp.errors import DataError

COLUMNS = {
    "image_id": ["one", "two", "three"],
    "uri": ["1.png", "2.png", "3.png"],
    "task": ["membership"] * 3,
    "set": ["a"] * 3,
    "split": ["train", "train", "test"],
    "role": ["used", "not_used", "unknown"],
    "generator": [None] * 3,
    "group": ["p1", "p1", "p2"],
}


@pytest.fixture
def data(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    return tmp_path


def write_parquet(data, **columns):
    pq.write_table(pa.table({**COLUMNS, **columns}), data / "catalog.parquet")


def groups(data):
    return [image.group for image in sorted(find_images(str(data))[0], key=lambda image: image.uri)]


def refused(data):
    with pytest.raises(DataError) as caught:
        find_images(str(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["group", "image_id", "role"])
def test_a_column_that_is_there_twice(data, name):
    table = pa.table(COLUMNS)
    pq.write_table(table.append_column(name, pa.array(["x", "y", "z"])), data / "catalog.parquet")
    assert refused(data) == f"{data}/catalog.parquet: has the column {name!r} twice, expected it once; remove one"
    (data / "catalog.parquet").unlink()
    frame = pd.concat([pd.DataFrame(COLUMNS), pd.DataFrame({name: ["x", "y", "z"]})], axis=1)
    frame.to_csv(data / "catalog.csv", index=False)
    assert refused(data) == f"{data}/catalog.csv: has the column {name!r} twice, expected it once; remove one"


def test_another_column_may_be_there_twice_in_a_parquet_file(data):
    table = pa.table(COLUMNS).append_column("note", pa.array([1, 2, 3])).append_column("note", pa.array([1, 2, 3]))
    pq.write_table(table, data / "catalog.parquet")
    assert groups(data) == ["p1", "p1", "p2"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([12.0, math.nan, 13.0]),
        pa.array([12.0, None, 13.0], pa.float32()),
        pa.array([12, None, 13]),
        pa.array(["12", "", "13"]),
        pa.array(["12.0", "nan", "13.0"]),
        pa.array(["12", None, "13"]).dictionary_encode(),
        pa.array([12.0, None, 13.0]).dictionary_encode(),
    ],
)
def test_numbers_as_groups(data, column):
    """pandas makes numbers of a column with a missing number fractional; NaN is no group that images share."""
    write_parquet(data, group=column)
    assert groups(data) == ["12", "", "13"]


def test_a_table_of_pandas_and_groups_of_a_spreadsheet_agree(data):
    frame = pd.DataFrame({**COLUMNS, "group": [12, None, 13]})
    (data / "groups.csv").write_text("image_id,group\none,12\nthree,13\n")
    for write, name in ((frame.to_parquet, "catalog.parquet"), (frame.to_csv, "catalog.csv")):
        write(data / name, index=False)
        catalog = read_catalog(str(data))
        assert dict(zip(catalog.ids, catalog.column("group"), strict=True)) == {"one": "12", "two": "", "three": "13"}
        (data / name).unlink()


def test_names_that_only_look_like_numbers_stay():
    assert plain_names(["12.0", "p1"]) == ["12.0", "p1"]
    assert plain_names(["12.5", "13.0"]) == ["12.5", "13.0"]
    assert plain_names(["nano", "NA1", "#", "-", "0"]) == ["nano", "NA1", "#", "-", "0"]
    assert plain_names(["012", "12"]) == ["012", "12"]


NO_GROUPS = ("nan", "NaN", "<NA>", "Nan", "NA", "n/a", "N/A", "#N/A", "None", "none", "null", "NULL", "#NV", "#REF!")


@pytest.mark.parametrize("word", NO_GROUPS)
@pytest.mark.parametrize("name", ["catalog.csv", "catalog.parquet"])
def test_words_for_a_missing_value_are_no_group(data, name, word):
    """R, Excel, databases and pandas write them; as a name, one of them would make one patient of all slices."""
    frame = pd.DataFrame({**COLUMNS, "group": ["12.0", word, word]})
    (frame.to_csv if name.endswith("csv") else frame.to_parquet)(data / name, index=False)
    assert groups(data) == ["12", "", ""]
    assert find_images(str(data))[1] == [f"{data}/{name}: 2 groups, such as {word!r}, were taken for no group"]


def test_images_that_a_table_leaves_without_a_group_are_told(data):
    write_parquet(data, group=["p1", None, None], role=["used", "not_used", "unknown"])
    note = "catalog.parquet: 2 of 3 real images are left without a group, such as three"
    assert note in read_catalog(str(data)).notes
    write_parquet(data, group=["p1", None, None], role=["used", "generated", "unknown"])
    assert note.replace("2 of 3", "1 of 2") in read_catalog(str(data)).notes
    write_parquet(data, group=[None, "nan", ""])
    assert not [note for note in read_catalog(str(data)).notes if "left without a group" in note]
    (data / "groups.csv").write_text("image_id,group\none,p1\n")
    write_parquet(data, group=[None, "p2", None])
    notes = [note for note in read_catalog(str(data)).notes if "left without a group" in note]
    assert notes == ["groups.csv: 1 of 3 real images are left without a group, such as three"]


def test_uris_of_windows_are_told(data):
    (data / "a").mkdir()
    (data / "odd\\name.png").write_bytes(b"x")  # a name that Linux allows
    write_parquet(data, uri=["a\\1.png", "a\\2.png", "odd\\name.png"])
    note = f"{data}/catalog.parquet: 2 uris have \\ between folders, expected /, such as a\\1.png"
    assert find_images(str(data))[1] == [note]


def test_no_value_is_no_set_and_no_generator(data):
    write_parquet(data, set=["a", "nan", "a"])
    assert "'two' belongs to the membership task and has no set" in refused(data)
    write_parquet(
        data, task=["attribution"] * 3, role=["generated"] * 3, split=["train"] * 3, generator=["g", "nan", "g"]
    )
    assert "'two' is a training slice of attribution, expected its generator" in refused(data)
    write_parquet(data, uri=["1.png", None, "3.png"])
    assert "'two' has no uri, expected the place of its file" in refused(data)


def test_ids_that_look_the_same(data):
    write_parquet(data, image_id=["\u00e9", "e\u0301", "x"])
    message = refused(data)
    assert r"two images have ids that look the same, '\xe9'" in message
    assert "1.png" in message
    assert "2.png" in message


def test_numbers_as_ids(data):
    write_parquet(data, image_id=[1, 2, 3])
    assert [image.image_id for image in find_images(str(data))[0]] == ["1", "2", "3"]
    write_parquet(data, image_id=[1.0, 2.0, 3.0])
    assert [image.image_id for image in find_images(str(data))[0]] == ["1", "2", "3"]


def test_local_files_of_a_table_have_change_times(data):
    write_parquet(data, uri=["1.png", "2.png", "gone.png"])
    images = {image.image_id: image.ctime for image in find_images(str(data))[0]}
    assert images == {
        "one": (data / "1.png").stat().st_ctime_ns,
        "two": (data / "2.png").stat().st_ctime_ns,
        "three": 0,
    }


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"image_id;uri;task\none;1.png;membership\n", "it has semicolons, save it with commas"),
        (b"image_id\turi\none\t1.png\n", "it has tabs, save it with commas"),
        (b"sep=;\r\nimage_id;uri\r\none;1.png\r\n", "'image_id;uri'; it has semicolons, save it with commas"),
        (b"PK\x03\x04rest", "cannot be read as a CSV file (an Excel workbook, not text; save it as CSV)"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook, not text; save it as CSV"),
        ("image_id,uri\none,1.png\n".encode("utf-16"), "probably UTF-16; save it as UTF-8"),
        ("image_id,uri\n\u00e9,1.png\n".encode("latin-1"), "probably Latin-1 or another encoding"),
    ],
)
def test_a_spreadsheet_saved_in_another_way(data, content, hint):
    (data / "catalog.csv").write_bytes(content)
    assert hint in refused(data)


def test_a_spreadsheet_saved_as_csv_in_utf_8(data):
    frame = pd.DataFrame(COLUMNS)
    text = frame.to_csv(index=False, lineterminator="\r\n") + ",,,,,,,\r\n"  # with an empty row at the end
    (data / "catalog.csv").write_bytes(text.encode("utf-8-sig"))
    assert groups(data) == ["p1", "p1", "p2"]


def test_a_uri_with_a_zero_byte_is_one_line(tmp_path):
    (tmp_path / "catalog.csv").write_bytes(b"image_id,uri,task,split,role\na,0\0.png,attribution,test,unknown\n")
    with pytest.raises(DataError, match=r"the uri '0\\x00.png' has a zero byte in it"):
        find_images(str(tmp_path))
