"""gansfp.collection.listing: folders are walked once, links and all; images are found by name or by content."""

import os

import pytest

from gansfp import store
from gansfp.collection.listing import list_below, recognise_images, sub_folders

DICOM = bytes(128) + b"DICM"
PNG = b"\x89PNG\r\n\x1a\n"


def place(folder, *paths, content=b"x"):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def files(folder, part="", class_of=lambda names: ""):
    return [entry.path for entry in list_below(str(folder), part, class_of).entries if not entry.is_folder]


def first_folder(names):
    return names[0]


def test_files_have_sizes_and_times(tmp_path):
    place(tmp_path, "a/b/1.png", content=b"four")
    folder, below, file = list_below(str(tmp_path)).entries
    assert (folder.path, below.path, file.path) == ("a", "a/b", "a/b/1.png")
    assert (folder.is_folder, below.is_folder, file.is_folder) == (True, True, False)
    status = (tmp_path / "a/b/1.png").stat()
    assert (file.bytes, file.mtime, file.ctime) == (4, status.st_mtime_ns, status.st_ctime_ns)
    assert list_below(str(tmp_path), "nothing") == ([], [])


def test_hidden_files_and_the_folders_of_a_mac_are_left_out(tmp_path):
    place(tmp_path, "a/1.png", "a/._1.png", "a/.hidden/2.png", "__MACOSX/a/._1.png", "a/__MACOSX/3.png")
    assert files(tmp_path) == ["a/1.png"]
    assert sub_folders(str(tmp_path)) == ["a"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_a_link_to_a_folder_above_is_not_followed(tmp_path, target):
    data = tmp_path / "data"
    place(data, "a/b/1.png", "c/2.png")
    (data / "a/b/up").symlink_to(target)
    entries, notes = list_below(str(data))
    assert [entry.path for entry in entries] == ["a", "a/b", "a/b/1.png", "c", "c/2.png"]
    assert notes == ["a symbolic link that leads back was left out: a/b/up"]


def test_a_link_that_leads_back_by_a_way_outside(tmp_path):
    """Outside DATA there is a link to DATA: the folders above a link are not only those of its real place."""
    place(tmp_path / "data", "a/1.png", "b/2.png")
    place(tmp_path / "other", "3.png")
    (tmp_path / "other/home").symlink_to(tmp_path / "data")
    (tmp_path / "data/a/out").symlink_to(tmp_path / "other")
    listing = list_below(str(tmp_path / "data"), "a", first_folder)
    assert [entry.path for entry in listing.entries if not entry.is_folder] == ["a/1.png", "a/out/3.png"]
    assert listing.notes == ["a symbolic link that leads back was left out: a/out/home"]


@pytest.mark.parametrize("around", ["class", ""])
def test_folders_that_link_to_each_other_are_read_once(tmp_path, around):
    """Followed, the links would make 8! ways; in one class, or from class to class."""
    names = [f"f{number}" for number in range(8)]
    for name in names:
        place(tmp_path / around, f"{name}/{name}.png")
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / around / name / f"to {other}").symlink_to(f"../{other}")
    listing = list_below(str(tmp_path), class_of=first_folder)
    expected = [os.path.join(around, name, f"{name}.png") for name in names]
    assert [entry.path for entry in listing.entries if not entry.is_folder] == expected
    link = os.path.join(around, "f0/to f1")
    assert listing.notes == [f"56 symbolic links that lead back were left out, such as {link}"]


def test_a_loop_over_three_classes(tmp_path):
    place(tmp_path, "a/1.png", "b/x/2.png", "c/3.png", "d/4.png")
    (tmp_path / "a/to").symlink_to("../b")
    (tmp_path / "b/x/to").symlink_to("../../c")
    (tmp_path / "c/to").symlink_to("../a")
    (tmp_path / "d/to").symlink_to("../a")  # leads into the loop, but is no part of it
    listing = list_below(str(tmp_path), class_of=first_folder)
    found = [entry.path for entry in listing.entries if not entry.is_folder]
    assert found == ["a/1.png", "b/x/2.png", "c/3.png", "d/4.png", "d/to/1.png"]
    assert listing.notes == ["4 symbolic links that lead back were left out, such as a/to"]


def test_a_folder_is_read_once_in_a_class(tmp_path):
    place(tmp_path, "pool/1.png", "data/class/a/2.png")
    (tmp_path / "data/class/b").symlink_to("a")
    (tmp_path / "data/class/c").symlink_to(tmp_path / "pool")
    (tmp_path / "data/class/d").symlink_to(tmp_path / "pool")
    listing = list_below(str(tmp_path / "data"), class_of=first_folder)
    assert [entry.path for entry in listing.entries if not entry.is_folder] == ["class/a/2.png", "class/c/1.png"]
    assert listing.notes == [
        "2 symbolic links to folders that their classes hold already were left out, such as class/b"
    ]


def test_a_folder_is_listed_by_its_own_name(tmp_path):
    place(tmp_path, "class/z/deep/1.png")
    (tmp_path / "class/a").symlink_to("z/deep")
    assert files(tmp_path, class_of=first_folder) == ["class/z/deep/1.png"]


def test_a_folder_may_be_linked_into_two_classes(tmp_path):
    place(tmp_path, "real/1.png")
    for name in ("used", "unknown"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "link").symlink_to(tmp_path / "real")
    (tmp_path / "data/whole").symlink_to(tmp_path / "real")
    listing = list_below(str(tmp_path / "data"), class_of=first_folder)
    assert [entry.path for entry in listing.entries if not entry.is_folder] == [
        "unknown/link/1.png",
        "used/link/1.png",
        "whole/1.png",
    ]
    assert listing.notes == []


def test_what_is_no_regular_file(tmp_path):
    place(tmp_path, "a/1.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "a/broken.png").symlink_to("nowhere")
    (tmp_path / "a/itself.png").symlink_to("itself.png")
    (tmp_path / "a/empty.png").mkdir()
    sizes = {entry.path: entry.bytes for entry in list_below(str(tmp_path)).entries if not entry.is_folder}
    assert sizes == {"a/1.png": 1, "a/pipe.png": -1, "a/broken.png": -1, "a/itself.png": -1, "a/empty.png": -1}
    assert recognise_images(str(tmp_path), list_below(str(tmp_path)).entries) == sizes.keys()


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    place(tmp_path, "a/1.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list_below(str(tmp_path))


ODD_NAMES = ("IM0001", "1.2.840.113619.2.55", "x.IMA", "scan.dicom", "scan.bin", "slice.001", "image")


def test_images_are_recognised_by_their_content(tmp_path):
    place(tmp_path, *ODD_NAMES, content=DICOM)
    place(tmp_path, "drawing", content=PNG)
    place(tmp_path, "notes", "empty", "data.bin")
    (tmp_path / "empty").write_bytes(b"")
    entries = list_below(str(tmp_path)).entries
    assert recognise_images(str(tmp_path), entries) == {*ODD_NAMES, "drawing"}


NO_IMAGES = (
    "truth.csv",
    "notes.txt",
    "a.json",
    "README.md",
    "README",
    "license",
    "DICOMDIR",
    "DICOMDIR;1",
    "Thumbs.db",
)


def test_names_that_are_no_images_are_not_opened(tmp_path, monkeypatch):
    place(tmp_path, *NO_IMAGES, "desktop.ini", content=DICOM)
    place(tmp_path, "1.png", content=b"no image, but a row of the catalog")
    entries = list_below(str(tmp_path)).entries
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))
    assert recognise_images(str(tmp_path), entries) == {"1.png"}


def test_only_the_first_bytes_of_a_file_are_read(tmp_path):
    with open(tmp_path / "IM0001", "wb") as file:
        file.write(DICOM)
        file.truncate(1 << 40)  # reading all of it would not end
    assert recognise_images(str(tmp_path), list_below(str(tmp_path)).entries) == {"IM0001"}


def test_a_store_is_listed_as_a_folder_is(bucket):
    place(bucket, "a/1.png", "a/._1.png", "__MACOSX/2.png", "b/readme.txt")
    place(bucket, "b/IM0001", content=DICOM)
    (bucket / "b/empty.png").mkdir()
    (bucket / "c").mkdir()
    entries, notes = list_below("s3://bucket")
    assert notes == []
    assert [(entry.path, entry.is_folder, entry.bytes, entry.ctime) for entry in entries] == [
        ("a", True, -1, 0),
        ("a/1.png", False, 1, 0),
        ("b", True, -1, 0),
        ("b/IM0001", False, 132, 0),
        ("b/empty.png", False, -1, 0),
        ("b/readme.txt", False, 1, 0),
        ("c", True, -1, 0),
    ]
    assert list_below("s3://bucket", "b").entries[0].path == "b/IM0001"
    assert recognise_images("s3://bucket", entries) == {"a/1.png", "b/IM0001", "b/empty.png"}
    assert sub_folders("s3://bucket") == ["a", "b", "c"]
    assert sub_folders(store.join("s3://bucket", "b")) == ["empty.png"]
