"""gansfp.collection.catalog: the table of all images, of small folders made here and of the shared challenge."""

import hashlib
import io
import os
import shutil
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gansfp import store
from gansfp.collection import contents
from gansfp.collection.catalog import SCHEMA, Catalog, read_catalog, read_previous, update_catalog, write_catalog
from gansfp.errors import DataError, UsageError


def png(number):
    file = io.BytesIO()
    Image.new("L", (8, 4), number).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def data(tmp_path):
    """Two sets and an attribution, every file different."""
    paths = [
        *(f"membership/a/train/{role}/{role}{n}.png" for role in ("generated", "used", "not_used") for n in range(3)),
        *(f"membership/a/test/unknown/x{n}.png" for n in range(3)),
        "membership/b/train/used/used0.png",
        "membership/b/test/unknown/x0.png",
        *(f"attribution/train/{generator}/{generator}{n}.png" for generator in ("gan", "vae") for n in range(2)),
        *(f"attribution/test/t{n}.png" for n in range(3)),
    ]
    for number, path in enumerate(paths):
        (tmp_path / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / path).write_bytes(png(number))
    return tmp_path / "data"


def row(catalog, image_id):
    return next(row for row in catalog.table.to_pylist() if row["image_id"] == image_id)


def test_a_row_of_the_table(data):
    catalog = read_catalog(str(data))
    path = data / "membership/a/train/used/used1.png"
    assert row(catalog, "used1") == {
        "image_id": "used1",
        "name": "used1",
        "uri": str(path),
        "frame": 0,
        "task": "membership",
        "set": "a",
        "split": "train",
        "role": "used",
        "generator": "",
        "group": "",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "content": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "mtime": path.stat().st_mtime_ns,
        "ctime": path.stat().st_ctime_ns,
        "format": "PNG",
        "mode": "L",
        "bits": 8,
        "width": 8,
        "height": 4,
        "frames": 1,
        "turned": False,
        "scale": "grey",
        "unknown_because": "",
        "numbers": "",
        "reading": "PNG grey",
        "rule": "auto",
        "patient": "",
        "series": "",
        "status": "ok",
        "error": "",
        "duplicate_of": "",
    }


def test_table_and_selection(data):
    catalog = read_catalog(str(data))
    assert catalog.table.schema.equals(SCHEMA)
    assert catalog.notes == ()
    assert catalog.duplicates() == []
    assert len(catalog) == len(catalog.ids) == 21
    assert catalog.ids.tolist() == sorted(catalog.ids)
    assert catalog.sets() == ["a", "b"]
    chosen = catalog.select(task="membership", set="a", split="train", role="not_used")
    assert isinstance(chosen, Catalog)
    assert chosen.ids.tolist() == ["not_used0", "not_used1", "not_used2"]
    assert catalog.select(set="b").ids.tolist() == ["membership/b/test/unknown/x0", "membership/b/train/used/used0"]
    assert catalog.select(task="attribution", split="train").column("generator").tolist() == [
        "gan",
        "gan",
        "vae",
        "vae",
    ]
    assert catalog.column("bytes").dtype == np.int64
    none = catalog.select(set="c")
    assert (len(none), none.ids.shape, none.groups().shape, none.sets()) == (0, (0,), (0,), [])


def test_uri_of_data(data):
    assert read_catalog(f"file://{data}").table.equals(read_catalog(str(data)).table)


def test_bad_images_are_rows(data):
    unknown = data / "membership/a/test/unknown"
    (unknown / "empty.png").write_bytes(b"")
    (unknown / "text.png").write_text("no image")
    (unknown / "folder.png").mkdir()
    (unknown / "nowhere.png").symlink_to(data / "nothing")
    catalog = read_catalog(str(data))
    bad = catalog.select(status="unreadable")
    assert dict(zip(bad.ids, bad.column("error"), strict=True)) == {
        "empty": "empty file",
        "text": "not a DICOM, PNG, JPEG, TIFF or NIfTI file",
        "folder": "Is a directory",
        "nowhere": "No such file or directory",
    }
    assert len(catalog.select(status="ok")) == 21
    assert catalog.notes == ("4 unreadable images, such as empty: empty file",)
    assert row(catalog, "nowhere")["sha256"] == ""


def test_a_giant_file_is_not_read(data, monkeypatch):
    monkeypatch.setattr(contents.slices, "MAX_BYTES", 1000)
    with open(data / "attribution/test/t0.png", "r+b") as file:
        file.truncate(1001)
    assert row(read_catalog(str(data)), "t0")["error"] == "1001 bytes, at most 1000 are read"


def test_pipes_and_devices_are_not_read(data):
    os.mkfifo(data / "attribution/test/pipe.png")
    (data / "attribution/test/zeros.png").symlink_to("/dev/zero")
    catalog = read_catalog(str(data))
    for name in ("pipe", "zeros"):
        assert row(catalog, name)["error"] == "neither a file nor a folder"


def test_permission_to_read_outside_data_holds_for_one_run(data, tmp_path):
    """The catalog of an earlier run does not let the next run read an image outside DATA."""
    outside = tmp_path / "outside.png"
    shutil.copy(data / "attribution/test/t0.png", outside)
    collection, work = tmp_path / "collection", str(tmp_path / "work")
    collection.mkdir()
    table = f"image_id,uri,task,split,role\nt,{outside},attribution,test,unknown\n"
    (collection / "catalog.csv").write_text(table)
    with pytest.raises(DataError, match="leads out of"):
        update_catalog(str(collection), work)
    assert update_catalog(str(collection), work, allow_outside=True).column("uri").tolist() == [str(outside)]
    assert read_previous(work).num_rows == 1
    with pytest.raises(DataError, match="--allow-outside"):
        update_catalog(str(collection), work)


def test_duplicates_are_found_and_noted(data):
    shutil.copy(data / "membership/a/train/used/used1.png", data / "membership/a/train/not_used/not_used2.png")
    shutil.copy(data / "membership/a/train/used/used2.png", data / "membership/a/test/unknown/x1.png")
    shutil.copy(data / "membership/a/train/generated/generated0.png", data / "membership/a/test/unknown/x2.png")
    catalog = read_catalog(str(data))
    assert [(finding.kind, finding.ids) for finding in catalog.duplicates()] == [
        ("used / not used", (("not_used2", "used1"),)),
        ("used or not used / unknown", (("used2", "x1"),)),
        ("generated / real", (("generated0", "x2"),)),
    ]
    assert catalog.notes == tuple(str(finding) for finding in catalog.duplicates())
    assert "not_used2 = used1" in catalog.notes[0]
    copies = {row["image_id"]: row["duplicate_of"] for row in catalog.table.to_pylist() if row["duplicate_of"]}
    assert copies == {"used1": "not_used2", "x1": "used2", "x2": "generated0"}
    assert catalog.select(role="used").duplicates() == []


def test_groups(data):
    lines = ["image_id,group", "used1,p1", "x1,p1", "x0,p2", "membership/b/train/used/used0,p3", "t0,", "gone,p9"]
    (data / "groups.csv").write_text("\n".join(lines))
    catalog = read_catalog(str(data))
    groups = dict(zip(catalog.ids.tolist(), catalog.groups().tolist(), strict=True))
    assert groups["used1"] == groups["x1"] == "p1"
    assert groups["membership/a/test/unknown/x0"] == groups["membership/b/test/unknown/x0"] == "p2"
    assert groups["membership/b/train/used/used0"] == "p3"
    assert groups["t0"] == "t0"
    assert groups["membership/a/train/used/used0"] == "membership/a/train/used/used0"
    assert row(catalog, "t0")["group"] == ""
    assert catalog.notes == (
        "groups.csv: 1 names fit several images each, all get the group, such as x0",
        "groups.csv: 1 ids fit no image, such as gone",
        "groups.csv: 16 of 21 images are left without a group, such as gan0",
    )


def test_groups_by_paths_where_names_would_do(data):
    (data / "groups.csv").write_text("image_id,group\nmembership/a/train/used/used1,p1\nused2,p2\n")
    catalog = read_catalog(str(data))
    assert row(catalog, "used1")["group"] == "p1"
    assert row(catalog, "used2")["group"] == "p2"
    first = "membership/a/test/unknown/x0"
    assert catalog.notes == (f"groups.csv: 9 of 11 real images are left without a group, such as {first}",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("used1,p1\nused1,p2", "'used1' has two groups, 'p1' and 'p2'"),
        ("used0,p1\nmembership/a/train/used/used0,p2", "has two groups, 'p1' and 'p2'"),
        ("gone,p1\ngone,p2", "'gone' has two groups"),
    ],
)
def test_groups_that_contradict_themselves(data, lines, message):
    (data / "groups.csv").write_text(f"image_id,group\n{lines}\n")
    with pytest.raises(DataError, match=message):
        read_catalog(str(data))


def test_groups_repeated_and_without_a_column(data):
    (data / "groups.csv").write_text("image_id,group\nused1,p1\nused1,p1\n")
    assert row(read_catalog(str(data)), "used1")["group"] == "p1"
    (data / "groups.csv").write_text("image_id,patient\nused1,p1\n")
    with pytest.raises(DataError, match="no column 'group'"):
        read_catalog(str(data))


def test_groups_of_a_table(data):
    line = "membership/a/train/used/used1.png,membership,a,train,used,p1"
    (data / "catalog.csv").write_text(f"image_id,uri,task,set,split,role,group\none,{line}\n")
    assert row(read_catalog(str(data)), "one")["group"] == "p1"
    (data / "groups.csv").write_text("image_id,group\nused1,p1\n")
    assert row(read_catalog(str(data)), "one")["group"] == "p1"
    (data / "groups.csv").write_text("image_id,group\none,p2\n")
    with pytest.raises(DataError, match="has two groups, 'p1' and 'p2'"):
        read_catalog(str(data))


def test_a_second_reading_opens_only_new_files(data, tmp_path, monkeypatch):
    opened = []
    read_bytes = store.read_bytes
    monkeypatch.setattr(
        store, "read_bytes", lambda uri, *most: opened.append(os.path.basename(uri)) or read_bytes(uri, *most)
    )
    (data / "attribution/test/t9.png").write_bytes(b"broken")
    work = str(tmp_path / "work")
    assert read_previous(work) is None
    first = update_catalog(str(data), work)
    assert len([name for name in opened if name.endswith(".png")]) == 22
    assert pq.read_table(tmp_path / "work/catalog.parquet").equals(first.table)
    opened.clear()
    again = update_catalog(str(data), work)
    assert again.table.equals(first.table)
    assert [name for name in opened if name.endswith(".png")] == ["t9.png"]  # an unreadable file may be repaired
    opened.clear()
    changed = data / "attribution/test/t1.png"
    changed.write_bytes(png(200))
    os.utime(changed, ns=(1, row(first, "t1")["mtime"] + 1))
    (data / "attribution/test/t9.png").unlink()
    third = update_catalog(str(data), work)
    assert [name for name in opened if name.endswith(".png")] == ["t1.png"]
    assert row(third, "t1")["sha256"] == hashlib.sha256(png(200)).hexdigest()
    assert len(third) == 21


def test_files_without_a_time_are_read_again(data):
    path = data / "attribution/test/t1.png"
    os.utime(path, ns=(0, 0))
    first = read_catalog(str(data))
    assert row(first, "t1")["mtime"] == 0
    path.write_bytes(png(200))
    os.utime(path, ns=(0, 0))
    assert row(first, "t1")["bytes"] == path.stat().st_size
    second = read_catalog(str(data), first.table)
    assert row(second, "t1")["sha256"] == hashlib.sha256(png(200)).hexdigest()


def test_a_known_catalog_of_another_version_is_not_used(tmp_path):
    for content in (b"", b"no parquet"):
        (tmp_path / "catalog.parquet").write_bytes(content)
        assert read_previous(str(tmp_path)) is None
    pq.write_table(SCHEMA.empty_table().drop_columns(["mtime"]), tmp_path / "catalog.parquet")
    assert read_previous(str(tmp_path)) is None
    pq.write_table(SCHEMA.empty_table(), tmp_path / "catalog.parquet")
    assert read_previous(str(tmp_path)).num_rows == 0


def test_work_must_not_be_data(data):
    with pytest.raises(UsageError, match="expected two folders"):
        write_catalog(read_catalog(str(data)), f"file://{data}/")
    assert not (data / "catalog.parquet").exists()


def test_progress(data, monkeypatch):
    monkeypatch.setattr(contents, "_CHUNK", 10)
    seen = []
    read_catalog(str(data), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 21), (20, 21), (21, 21)]


def test_the_truth_is_not_in_the_catalog(data):
    before = read_catalog(str(data))
    (data / "membership/a/test/truth.csv").write_text("image_id,used\nx0,1\nx1,0\nx2,1\n")
    (data / "attribution/test/truth.csv").write_text("image_id,generator\nt0,gan\nt1,gan\nt2,vae\n")
    after = read_catalog(str(data))
    assert after.table.equals(before.table)
    assert after.notes == before.notes


def test_the_shared_challenge(shared, tmp_path):
    start = time.monotonic()
    catalog = update_catalog(str(shared / "challenge"), str(tmp_path / "work"))
    assert time.monotonic() - start < 20  # 0.7 s on one core
    counts = {
        (set_, split, role): len(catalog.select(task="membership", set=set_, split=split, role=role))
        for set_ in ("glo", "warp")
        for split, roles in (("train", ("generated", "used", "not_used")), ("test", ("generated", "unknown")))
        for role in roles
    }
    assert set(counts.values()) == {500, 60, 300, 130}
    assert len(catalog.select(task="attribution", split="train")) == 300
    assert len(catalog.select(task="attribution", split="test")) == 400
    assert len(catalog) == 2800 == len(list((shared / "challenge").rglob("*.png")))
    assert set(catalog.column("status")) == {"ok"}
    assert set(catalog.column("width")) == set(catalog.column("height")) == {256}
    assert catalog.sets() == ["glo", "warp"]


def test_groups_are_refused_if_none_fits(data):
    (data / "groups.csv").write_text("image_id,group\nused1.png,p1\nx1.png,p2\n")
    with pytest.raises(DataError, match=r"none of its 2 ids fits an image, such as 'used1.png'"):
        read_catalog(str(data))
