"""gansfp.collection.submission: what the official rules accept and what they reject, and where ids come from."""

import os

import pytest

from gansfp import store
from gansfp.collection.submission import other_readings, problems, read_ids, submission
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
        (RIGHT.replace(b"a,1", b"a, 1"), ["line 1: got ' 1' for 'a', expected 0 or 1 (remove the spaces around it)"]),
        (RIGHT.replace(b"a,1", b"a,1 "), ["line 1: got '1 ' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,2"), ["line 1: got '2' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,"), ["line 1: got '' for 'a', expected 0 or 1"]),
        (RIGHT.replace(b"a,1", b"a,1.0"), ["line 1: got '1.0'"]),
        (RIGHT.replace(b"a,1", b"a,1,0.9"), ["line 1: got 'a,1,0.9', expected id,value"]),
        (RIGHT.replace(b",", b";"), ["with a comma, not a semicolon", "line 2", "line 3", "3 ids are missing"]),
        (RIGHT.replace(b",", b"\t"), ["with a comma, not a tab", "line 2", "line 3", "3 ids are missing"]),
        (RIGHT.replace(b"a,1", b'"a",1'), ["without quotation marks (remove them)", "such as 'a'"]),
        (RIGHT.replace(b"a,1", b'a,"1"'), ["got '\"1\"' for 'a', expected 0 or 1"]),
        ("a,1\n".encode("utf-16"), ["probably UTF-16; save it as UTF-8"]),
        ("\u00e9,1\n".encode("latin-1"), ["not text in UTF-8, probably Latin-1"]),
        (RIGHT.replace(b"\n", b"\r"), ["line 1: got 'a,1\\rb,0", "2 ids are missing"]),
        (b"\xff\xfea\x00", ["the file is not text in UTF-8"]),
        (b"PK\x03\x04rest", ["the file is an Excel workbook, not text; save it as CSV"]),
        (
            b"sep=,\n" + RIGHT,
            ["line 1: got id 'sep=', expected an id of the set (the file must not have a header line)"],
        ),
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
    assert read_ids(str(tmp_path)) == ["a.b", "b", "c"]
    assert read_ids(tmp_path.as_uri()) == ["a.b", "b", "c"]


def test_ids_of_a_bucket(bucket):
    for name in ("a b.png", "below/c.png", "d.txt"):
        store.write_bytes_atomically(store.join("s3://bucket/x?region=eu", *name.split("/")), b"x")
    assert read_ids("s3://bucket/x?region=eu") == ["a b", "c"]


def test_a_folder_from_an_archive_of_a_mac(tmp_path):
    for name in ("a.png", "._a.png", "__MACOSX/a.png", "__MACOSX/._a.png", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert read_ids(str(tmp_path)) == ["a"]


def test_ids_of_files_without_a_known_ending(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "1.2.840.113").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes").write_bytes(b"text")
    assert read_ids(str(tmp_path)) == ["1.2.840.113", "IM0001"]


def accepted_as_ids(content, uri):
    return any(not problems(content, ids) for ids in [read_ids(uri), *other_readings(uri)])


@pytest.mark.parametrize("text", ["a.dcm\nb.dcm\n", "image_id,used\na.dcm,1\nb.dcm,0\n", '"a.dcm"\n"b.dcm"\n'])
def test_listed_ids_may_end_like_files(tmp_path, text):
    """A file a.dcm.png has the id a.dcm, and a list of files has a.dcm for the id a: only one of them is right."""
    (tmp_path / "ids.txt").write_text(text)
    uri = str(tmp_path / "ids.txt")
    assert accepted_as_ids(b"a.dcm,1\nb.dcm,0\n", uri)
    assert accepted_as_ids(b"a,1\nb,0\n", uri)
    assert not accepted_as_ids(b"a.dcm,1\nb,0\n", uri)
    assert not accepted_as_ids(b"a.dcm,1\n", uri)


def test_listed_ids_may_have_blanks_around(tmp_path):
    (tmp_path / "ids.txt").write_text(" t9\nt8 \n")
    uri = str(tmp_path / "ids.txt")
    assert accepted_as_ids(b" t9,1\nt8 ,0\n", uri)
    assert accepted_as_ids(b"t9,1\nt8,0\n", uri)
    assert not accepted_as_ids(b" t9,1\nt8,0\n", uri)


def test_names_that_two_images_have_become_paths(tmp_path):
    """The catalog has the path below DATA, which is a folder above."""
    folder = tmp_path / "membership/s/test/unknown"
    for name in ("p1/a.png", "p2/a.png", "b.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    here = "membership/s/test/unknown"
    assert accepted_as_ids(f"{here}/p1/a,0\n{here}/p2/a,1\nb,0\n".encode(), str(folder))
    assert accepted_as_ids(b"p1/a,0\np2/a,1\nb,0\n", str(folder))
    assert not accepted_as_ids(b"p1/a,0\np1/a,1\nb,0\n", str(folder))
    assert not accepted_as_ids(b"p1/a,0\nunknown/p2/a,1\nb,0\n", str(folder))


def test_lines_end_as_csv_readers_see_it(tmp_path):
    """U+2028 and U+0085 end no line, though str.splitlines thinks so."""
    for name in ("a\u2028b", "c\u0085d"):
        (tmp_path / f"{name}.png").write_bytes(b"x")
    content = "a\u2028b,0\nc\u0085d,1\n".encode()
    assert problems(content, read_ids(str(tmp_path))) == []
    (tmp_path / "ids.txt").write_text("a\u2028b\nc\u0085d\n")
    assert problems(content, read_ids(str(tmp_path / "ids.txt"))) == []


def test_ids_match_in_every_unicode_form():
    one, two = "\u00e9tude", "e\u0301tude"
    assert problems(f"{one},1\n".encode(), [two]) == []
    assert problems(f"{two},1\n".encode(), [one]) == []
    assert "2 times" in problems(f"{two},1\n{one},1\n".encode(), [one])[0]


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
        ("nothing", "does not exist, expected a folder of images or a list of ids"),
        ("picture", "not a text file"),
        ("twice.txt", "has 'a' twice"),
    ):
        with pytest.raises(DataError, match=message):
            read_ids(str(tmp_path / name))


def test_lists_in_other_encodings_and_odd_names(tmp_path):
    (tmp_path / "ids.txt").write_text("a\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"not a text file, .*probably UTF-16; save it as UTF-8"):
        read_ids(str(tmp_path / "ids.txt"))
    (tmp_path / "folder").mkdir()
    with open(os.fsencode(tmp_path / "folder") + b"/\xe9tude.png", "wb"):
        pass
    with pytest.raises(DataError, match=r"a name that is not UTF-8, \\xe9tude\.png; rename it"):
        read_ids(str(tmp_path / "folder"))


def test_an_id_that_readers_of_csv_files_read_otherwise_is_refused():
    message = problems(b'"q,0\nr,1\n', ['"q', "r"])
    assert message == [
        "line 1: got id '\"q', expected an id without quotation marks "
        "(rename the image, which readers of CSV files would read otherwise)"
    ]
    assert "byte-order mark" in problems("\ufeffq,0\n".encode(), ["\ufeffq"])[0]
