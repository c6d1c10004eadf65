"""Shards: other programs can read them; each is complete and of one identity; each image is used once."""

import logging
import os
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gansfp import store
from gansfp.embedding import shards
from gansfp.embedding.shards import count_done, folder, read_embeddings, repair_and_list_done, write_shard
from gansfp.errors import DataError

IDENTITY = {"backbone": "net:map", "weights": "0123", "view": "full", "mask": "", "size": "256", "precision": "float32"}
PAIR = ("net:map", "full")


def write(work, images, identity=IDENTITY, failed=(), seed=0):
    """Writes a shard whose vectors depend on id and hash."""
    vectors = np.array([vector(i, h) for i, h in images.items()], np.float32).reshape(-1, 4)
    statuses = ["failed" if i in failed else "ok" for i in images]
    errors = ["empty file" if i in failed else "" for i in images]
    return write_shard(str(work), identity, images, statuses, errors, vectors)


def vector(image_id, sha256):
    return [len(image_id), *(ord(letter) for letter in f"{image_id}{sha256}   "[:3])]


def raw_ids(work, pair=PAIR):
    """Returns the image ids of all rows on disk, read by pyarrow itself."""
    place = folder(str(work), pair)
    return sorted(i for name in os.listdir(place) for i in pq.read_table(f"{place}/{name}")["image_id"].to_pylist())


def test_exact_columns_and_identity(tmp_path):
    place = write(tmp_path, {"a": "1", "b": "2"}, failed=("b",))
    assert place.startswith(str(tmp_path / "embeddings" / "net:map" / "full"))
    schema = pq.read_schema(place)
    assert schema.names == ["image_id", "sha256", "status", "error", "embedding"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), 4)
    assert all(schema.field(name).type == pa.string() for name in schema.names[:4])
    assert b'"weights": "0123"' in schema.metadata[shards.IDENTITY]


def test_a_slash_in_a_name_makes_no_folder(tmp_path):
    assert folder(str(tmp_path), ("a/../b", "full")) == str(tmp_path / "embeddings" / "a%2F..%2Fb" / "full")


def test_a_long_name_makes_a_folder_of_its_own(tmp_path):
    names = [f"resnet18:{size}@/" + "a long path/" * 30 for size in (64, 65)]
    places = [folder(str(tmp_path), (name, "full")) for name in names]
    assert len(set(places)) == 2
    for place in places:
        name = Path(place).parts[-2]
        assert name.startswith("resnet18:6")
        assert len(name.encode()) < 200
        os.makedirs(place)


def test_duckdb_polars_and_pandas_read_them(tmp_path):
    write(tmp_path, {"a": "1", "b": "2"}, failed=("b",))
    write(tmp_path, {"c": "3"})
    pattern = folder(str(tmp_path), PAIR) + "/*.parquet"
    rows = duckdb.sql(
        f"SELECT image_id, status, embedding, typeof(embedding) FROM '{pattern}' ORDER BY image_id"
    ).fetchall()
    assert [row[:2] for row in rows] == [("a", "ok"), ("b", "failed"), ("c", "ok")]
    assert [None if row[2] is None else list(row[2]) for row in rows] == [vector("a", "1"), None, vector("c", "3")]
    assert rows[0][3].startswith("FLOAT[")
    table = pl.read_parquet(pattern).sort("image_id")
    assert table["embedding"].dtype == pl.Array(pl.Float32, 4)
    assert table["embedding"].to_list() == [vector("a", "1"), None, vector("c", "3")]
    frame = pd.read_parquet(folder(str(tmp_path), PAIR)).sort_values("image_id")
    assert frame["embedding"].iloc[0].tolist() == vector("a", "1")
    assert frame["embedding"].iloc[1] is None


def test_rows_have_the_order_of_the_request_and_failed_ones_are_zero(tmp_path):
    write(tmp_path, {"a": "1", "b": "2", "c": "3"}, failed=("b",))
    write(tmp_path, {"d": "4"})
    found = read_embeddings(str(tmp_path), IDENTITY, {"d": "4", "b": "2", "a": "1"})
    assert found.vectors.dtype == np.float32
    assert found.vectors.tolist() == [vector("d", "4"), [0, 0, 0, 0], vector("a", "1")]
    assert found.status.tolist() == ["ok", "failed", "ok"]
    assert found.error.tolist() == ["", "empty file", ""]
    assert found.ok.tolist() == [True, False, True]


def test_missing_images_are_an_error(tmp_path):
    write(tmp_path, {"a": "1"})
    with pytest.raises(DataError, match=r"no embedding of 2 images, such as 'b'; run jobs\.embed again"):
        read_embeddings(str(tmp_path), IDENTITY, {"a": "1", "b": "2", "c": "3"})
    assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1", "b": "2"}) == {"a"}


@pytest.mark.parametrize("field", ["weights", "mask", "precision", "size"])
def test_shards_of_another_identity_are_not_read(tmp_path, caplog, field):
    other = {**IDENTITY, field: "another"}
    write(tmp_path, {"a": "1"}, other)
    with pytest.raises(DataError):
        read_embeddings(str(tmp_path), IDENTITY, {"a": "1"})
    assert "left out 1 shards of another identity" in caplog.text
    assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1"}) == set()
    write(tmp_path, {"a": "1"})  # the same images under both identities: neither shard overwrites the other
    assert (
        repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1"})
        == repair_and_list_done(str(tmp_path), other, {"a": "1"})
        == {"a"}
    )


def test_what_is_done_is_counted_and_nothing_is_changed_or_said(tmp_path, caplog):
    write(tmp_path, {"a": "1", "b": "old"})
    write(tmp_path, {"a": "1", "c": ""}, failed=("c",))  # c could not be read
    write(tmp_path, {"d": "4"}, {**IDENTITY, "precision": "bfloat16"})
    (tmp_path / "embeddings" / "net:map" / "full" / "truncated.parquet").write_bytes(b"PAR1")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    images = {"a": "1", "b": "2", "c": "3", "d": "4"}
    assert count_done(str(tmp_path), IDENTITY, images) == len({"a", "c"})
    assert count_done(str(tmp_path), {**IDENTITY, "precision": "bfloat16"}, images) == len({"d"})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before
    assert caplog.text == ""


def test_a_foreign_parquet_file_is_left_out(tmp_path):
    place = write(tmp_path, {"a": "1"})
    pq.write_table(pa.table({"image_id": ["a"]}), os.path.join(os.path.dirname(place), "other.parquet"))
    assert read_embeddings(str(tmp_path), IDENTITY, {"a": "1"}).vectors.tolist() == [vector("a", "1")]


def test_a_replaced_image_counts_as_missing_and_its_old_row_is_removed(tmp_path):
    write(tmp_path, {"a": "1", "b": "2"})
    now = {"a": "1", "b": "9"}
    with pytest.raises(DataError, match="'b'"):
        read_embeddings(str(tmp_path), IDENTITY, now)
    assert repair_and_list_done(str(tmp_path), IDENTITY, now) == {"a"}
    assert raw_ids(tmp_path) == ["a"]
    write(tmp_path, {"b": "9"})
    assert read_embeddings(str(tmp_path), IDENTITY, now).vectors.tolist() == [vector("a", "1"), vector("b", "9")]
    assert raw_ids(tmp_path) == ["a", "b"]


def test_an_unreadable_image_is_tried_again_when_it_can_be_read(tmp_path):
    write(tmp_path, {"a": "1", "b": ""}, failed=("b",))
    assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1", "b": ""}) == {"a", "b"}  # still unreadable
    now = {"a": "1", "b": "2"}
    assert read_embeddings(str(tmp_path), IDENTITY, now).status.tolist() == ["ok", "failed"]
    assert repair_and_list_done(str(tmp_path), IDENTITY, now, retry=False) == {"a", "b"}
    assert repair_and_list_done(str(tmp_path), IDENTITY, now) == {"a"}
    write(tmp_path, {"b": "2"})
    assert read_embeddings(str(tmp_path), IDENTITY, now).status.tolist() == ["ok", "ok"]
    assert raw_ids(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_row_with_a_hash_is_better_than_one_without(tmp_path, order):
    for images in ({"a": ""}, {"a": "1"})[::order]:
        write(tmp_path, images, failed=[i for i, h in images.items() if not h])
    found = read_embeddings(str(tmp_path), IDENTITY, {"a": "1"})
    assert found.status.tolist() == ["ok"]
    assert found.vectors.tolist() == [vector("a", "1")]


def test_duplicates_are_used_once_and_removed(tmp_path):
    write(tmp_path, {"a": "1", "b": "2"})
    write(tmp_path, {"b": "2", "c": "3"})
    write(tmp_path, {"c": "3"})
    write(tmp_path, {"x": "7"})  # an image of another task
    images = {"a": "1", "b": "2", "c": "3"}
    before = read_embeddings(str(tmp_path), IDENTITY, images)
    assert before.vectors.tolist() == [vector(i, h) for i, h in images.items()]
    assert raw_ids(tmp_path) == ["a", "b", "b", "c", "c", "x"]
    assert repair_and_list_done(str(tmp_path), IDENTITY, images) == {"a", "b", "c"}
    assert raw_ids(tmp_path) == ["a", "b", "c", "x"]
    assert read_embeddings(str(tmp_path), IDENTITY, images).vectors.tolist() == before.vectors.tolist()
    names = sorted(os.listdir(folder(str(tmp_path), PAIR)))
    assert repair_and_list_done(str(tmp_path), IDENTITY, images) == {"a", "b", "c"}
    assert sorted(os.listdir(folder(str(tmp_path), PAIR))) == names  # correct shards are not changed


@pytest.mark.parametrize("truncated", [False, True])
def test_a_rewritten_shard_may_get_the_name_of_another_one(tmp_path, truncated):
    """Without b, the shard of b and another image gets the name of that image's own shard, which may come later."""
    for image_id in "acdefgh":
        work, images = tmp_path / image_id, {"b": "1", image_id: "1"}
        place = write(work, {image_id: "1"})
        if truncated:
            Path(place).write_bytes(b"PAR1")
        write(work, images)
        write(work, {"b": "1"})
        assert repair_and_list_done(str(work), IDENTITY, images) == set(images)
        assert raw_ids(work) == sorted(images)


def test_a_task_that_runs_twice_writes_one_shard(tmp_path):
    assert write(tmp_path, {"a": "1"}) == write(tmp_path, {"a": "1"})
    assert raw_ids(tmp_path) == ["a"]


def test_a_temporary_file_is_not_a_shard(tmp_path):
    place = write(tmp_path, {"a": "1"})
    whole = Path(place).read_bytes()
    with open(os.path.join(os.path.dirname(place), "_tmp-0123-abc.parquet"), "wb") as half:
        half.write(whole[:100])
    assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1", "b": "2"}) == {"a"}


@pytest.mark.parametrize("size", [0, 7, 400, -20])
def test_a_truncated_shard_is_named_and_its_images_are_embedded_again(tmp_path, caplog, size):
    images = {"a": "1", "b": "2"}
    write(tmp_path, {"a": "1"})
    place = write(tmp_path, {"b": "2"})
    whole = Path(place).read_bytes()
    with open(place, "wb") as shard:
        shard.write(whole[:size])
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="no embedding of 1 images, such as 'b'"):
        read_embeddings(str(tmp_path), IDENTITY, images)
    assert f"{place}: not a whole shard" in caplog.text
    assert repair_and_list_done(str(tmp_path), IDENTITY, images) == {"a"}
    assert not os.path.exists(place)  # so it does not stop other readers
    write(tmp_path, {"b": "2"})
    assert read_embeddings(str(tmp_path), IDENTITY, images).ok.all()


def zeroed(place, at, count=8):
    """Damages a shard among its vectors. at: bytes from the start of their page, which has a header of some 60."""
    start = pq.ParquetFile(place).metadata.row_group(0).column(4).data_page_offset + at
    content = bytearray(Path(place).read_bytes())
    content[start : start + count] = bytes(count)
    Path(place).write_bytes(content)


@pytest.mark.parametrize("at", [0, 80])
def test_damage_among_the_vectors_is_found_and_its_images_are_embedded_again(tmp_path, caplog, at):
    images = {f"b{number}": "2" for number in range(20)}
    write(tmp_path, {"a": "1"})
    place = write(tmp_path, images)
    zeroed(place, at)
    with pytest.raises(DataError, match=r"no embedding of 20 images, such as 'b0'; run jobs\.embed again"):
        read_embeddings(str(tmp_path), IDENTITY, {"a": "1", **images})
    assert f"{place}: not a whole shard" in caplog.text
    assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1", **images}) == {"a"}
    write(tmp_path, images)
    assert read_embeddings(str(tmp_path), IDENTITY, {"a": "1", **images}).ok.all()


def test_a_damaged_shard_is_not_rewritten(tmp_path, caplog):
    write(tmp_path, {"a": "1"})
    place = write(tmp_path, {"b": "1", **{f"c{number}": "1" for number in range(20)}})
    zeroed(place, 80)
    assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1", "b": "2", "c1": "1"}) == {"a"}
    assert f"{place}: a damaged shard" in caplog.text
    assert raw_ids(tmp_path) == ["a"]


def test_a_shard_of_a_store_that_does_not_answer_is_kept(tmp_path, monkeypatch):
    place = write(tmp_path, {"a": "1"})

    def away(*_):
        raise OSError("no answer")

    with monkeypatch.context() as store_is_away:
        store_is_away.setattr(store, "open_parquet", away)
        store_is_away.setattr(store, "read_bytes", away)
        with pytest.raises(DataError, match="no embedding of 1 images"):
            read_embeddings(str(tmp_path), IDENTITY, {"a": "1"})
        assert repair_and_list_done(str(tmp_path), IDENTITY, {"a": "1"}) == set()
    assert os.path.exists(place)
    assert read_embeddings(str(tmp_path), IDENTITY, {"a": "1"}).ok.all()


def test_many_shards(tmp_path):
    images = {f"i{number:04}": "1" for number in range(150)}
    for image_id, sha256 in images.items():
        write(tmp_path, {image_id: sha256})
    assert repair_and_list_done(str(tmp_path), IDENTITY, images) == set(images)
    found = read_embeddings(str(tmp_path), IDENTITY, images)
    assert found.vectors.tolist() == [vector(i, h) for i, h in images.items()]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "embeddings").write_text("a file in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path, {"a": "1"})


def test_work_can_be_a_uri(tmp_path):
    uri = (tmp_path / "of uri").as_uri()
    write(uri, {"a": "1"})
    assert read_embeddings(uri, IDENTITY, {"a": "1"}).vectors.tolist() == [vector("a", "1")]
    assert repair_and_list_done(str(tmp_path / "of uri"), IDENTITY, {"a": "1"}) == {"a"}
