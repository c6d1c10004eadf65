"""Names of images that are not UTF-8, that look like others, or that a CSV file cannot hold."""

import os

import pytest

from gansfp.collection.layout import find_images
from gansfp.collection.names import shown
from gansfp.collection.submission import problems, read_ids, submission
from gansfp.errors import DataError


def place(data, *paths):
    for path in paths:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(b"x")


def refused(data):
    """The message of the DataError for DATA."""
    with pytest.raises(DataError) as caught:
        find_images(str(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def odd_place(folder, name):
    """Makes a file with a name of any bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.fsencode(folder) + b"/" + name, "wb") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    ("folder", "name", "shown"),
    [
        ("attribution/test", b"\xe9tude.png", r"attribution/test/\xe9tude.png"),
        ("attribution/test", b"\x93\xfa\x96\x7b.png", r"attribution/test/\x93\xfa\x96{.png"),
        ("attribution/train/gan", b"a\xff\n.png", r"attribution/train/gan/a\xff\n.png"),
    ],
)
def test_a_name_that_is_not_utf_8(tmp_path, folder, name, shown):
    place(tmp_path, "attribution/test/1.png")
    odd_place(tmp_path / folder, name)
    assert refused(tmp_path) == (f"{tmp_path}: 1 images have names that are not UTF-8, such as {shown}; rename them")


def test_other_files_may_have_any_name(tmp_path):
    place(tmp_path, "attribution/test/1.png")
    odd_place(tmp_path / "attribution/test", b"\xe9tude.txt")
    odd_place(tmp_path / "elsewhere", b"\xe9tude.png")
    images, notes = find_images(str(tmp_path))
    assert len(images) == 1
    assert notes == [r"ignored 1 files that are not images, such as attribution/test/\xe9tude.txt"]


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    place(tmp_path, "attribution/test/1.png")
    odd_place(tmp_path / "attribution/train" / os.fsdecode(b"g\xe9n"), b"1.png")
    assert r"such as attribution/train/g\xe9n/1.png; rename them" in refused(tmp_path)
    odd = tmp_path / os.fsdecode(b"d\xe9")
    place(odd, "attribution/test/1.png")
    assert refused(odd) == rf"{tmp_path}/d\xe9: the path is not UTF-8, expected another name; rename the folder"


def test_names_that_look_the_same_collide(tmp_path):
    place(tmp_path, "attribution/test/\u00e9.png", "attribution/train/gan/e\u0301.png", "attribution/train/gan/x.png")
    assert [image.image_id for image in find_images(str(tmp_path))[0]] == [
        "attribution/test/\u00e9",
        "attribution/train/gan/e\u0301",
        "x",
    ]
    place(tmp_path, "attribution/test/e\u0301.png")
    message = refused(tmp_path)
    assert "two images have ids that look the same" in message
    assert "rename one" in message


@pytest.mark.parametrize("name", ['"q', 'a"b', "a\tb", "a\x1bb", "a\x7f", "\ufeffa"])
def test_names_that_readers_of_csv_files_read_otherwise(tmp_path, name):
    place(tmp_path, f"attribution/train/gan/{name}.png", "attribution/test/b.png")
    assert len(find_images(str(tmp_path))[0]) == 2
    place(tmp_path, f"attribution/test/{name}2.png")
    message = refused(tmp_path)
    assert "quotation mark or control character" in message
    assert message.isprintable()


@pytest.mark.parametrize("name", ["a\u2028b", "a\u0085b", " t9", "t8 ", "a'b", "a;b", "#a", "\u65e5\u672c"])
def test_names_that_every_reader_of_csv_files_reads(tmp_path, name):
    place(tmp_path, f"attribution/test/{name}.png")
    (image,) = find_images(str(tmp_path))[0]
    assert image.image_id == image.name == name
    assert problems(submission({name: 1}), read_ids(str(tmp_path / "attribution/test"))) == []


def test_what_a_terminal_cannot_show_is_escaped():
    assert shown("a\udce9\n\u2028\u65e5 \u00e9") == r"a\xe9\n\u2028" + "\u65e5 \u00e9"
