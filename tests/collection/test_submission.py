"""gansfp.collection.submission: what the official rules accept and what they reject, and where ids come from."""

import pytest

from gansfp.collection.submission import problems, read_ids, submission
from gansfp.errors import DataError

IDS = ["a", "b", "real 7"]
RIGHT = b"a,1\nb,0\nreal 7,1\n"


def test_a_written_file_is_correct_and_in_order():
    assert submission({"b": 0, "a": 1, "real 7": 1}) == b"b,0\na,1\nreal 7,1\n"
    assert problems(submission(dict.fromkeys(IDS, 0)), IDS) == []


@pytest.mark.parametrize(
    "content", [RIGHT, RIGHT[:-1], RIGHT.replace(b"\n", b"\r\n"), b"real 7,0\na,0\nb,0\n", b"a,1\r\nb,0\nreal 7,1"]
)
def test_correct_files(content):
    assert problems(content, IDS) == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b"image_id,used\n" + RIGHT,
            ["line 1: got id 'image_id', expected an id of the set (the file must not have a header line)"],
        ),
        (b"\xef\xbb\xbf" + RIGHT, ["byte-order mark", "1 ids are missing, such as 'a'"]),
        (RIGHT + b"a,1\n", ["got 'a' 2 times, expected it once"]),
        (b"a,1\nreal 7,0\n", ["1 ids are missing, such as 'b'"]),
        (b"", ["3 ids are missing, such as 'a'"]),
        (b"\n", ["line 1: got '', expected id,value", "3 ids are missing"]),
        (RIGHT + b"\n", ["line 4: got '', expected id,value"]),
        (b"a,1\n\nb,0\nreal 7,1\n", ["line 2: got ''"]),
        (RIGHT + b"c,1\n", ["line 4: got id 'c', expected an id of the set"]),
        (b"c,1\n" + RIGHT, ["line 1: got id 'c', expected an id of the set"]),
        (RIGHT.replace(b"a,1", b"a.png,1"), ["(ids have no file ending)", "such as 'a'"]),
        (RIGHT.replace(b"a,1", b" a,1"), ["remove the spaces around it", "such as 'a'"]),
        (RIGHT.replace(b"a,1", b"a, 1"), ["line 1: got ' 1' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,1 "), ["line 1: got '1 ' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,2"), ["line 1: got '2' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,"), ["line 1: got '' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,1.0"), ["line 1: got '1.0'"]),
        (RIGHT.replace(b"a,1", b"a,1,0.9"), ["line 1: got 'a,1,0.9', expected id,value"]),
        (RIGHT.replace(b",", b";"), ["line 1", "line 2", "line 3", "3 ids are missing"]),
        (RIGHT.replace(b"\n", b"\r"), ["line 1: got 'a,1\\rb,0", "2 ids are missing"]),
        (b"\xff\xfea\x00", ["the file is not text in UTF-8"]),
    ],
)
def test_wrong_files(content, expected):
    lines = problems(content, IDS)
    assert len(lines) == len(expected)
    for line, text in zip(lines, expected, strict=True):
        assert text in line


def test_the_header_is_only_mentioned_where_there_is_one():
    assert "header" not in problems(b"c,1\n" + RIGHT, IDS)[0]


def test_clusters_are_numbers():
    assert problems(b"a,0\nb,11\nreal 7,3\n", IDS, binary=False) == []
    assert problems(b"a,x\nb,-1\nreal 7,1.5\n", IDS, binary=False) == [
        "line 1: got 'x' for 'a', expected a number",
        "line 2: got '-1' for 'b', expected a number",
        "line 3: got '1.5' for 'real 7', expected a number",
    ]


def test_ids_of_a_folder(tmp_path):
    for name in ("b.png", "a.b.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.png").write_bytes(b"")
    assert read_ids(str(tmp_path)) == ["a.b", "b"]
    assert read_ids(tmp_path.as_uri()) == ["a.b", "b"]


def test_ids_of_a_bucket(monkeypatch):
    def folder(uri):
        raise IsADirectoryError(uri)

    files = [f"s3://bucket/x/{name}?region=eu" for name in ("a%20b.png", "c.txt")]
    monkeypatch.setattr("gansfp.store.read_bytes", folder)
    monkeypatch.setattr("gansfp.store.list_files", lambda uri: files)
    assert read_ids("s3://bucket/x?region=eu") == ["a b"]


@pytest.mark.parametrize(
    "text",
    ["a\nb.2\n", "image_id\na\nb.2", "image_id,used\r\na,1\r\nb.2,0\r\n", "\ufeffa\n\n b.2 \n", "a.png\nb.2.dcm\n"],
)
def test_ids_of_a_list(tmp_path, text):
    (tmp_path / "ids.csv").write_bytes(text.encode())
    assert read_ids(str(tmp_path / "ids.csv")) == ["a", "b.2"]


def test_no_ids(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"image_id\n")
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff")
    (tmp_path / "twice.txt").write_bytes(b"a\nb\na\n")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("empty.txt", "has no ids"),
        ("folder", "has no ids"),
        ("nothing", "has no ids"),
        ("picture", "not a text file"),
        ("twice.txt", "has 'a' twice"),
    ):
        with pytest.raises(DataError, match=message):
            read_ids(str(tmp_path / name))
