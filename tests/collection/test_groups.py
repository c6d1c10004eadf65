"""gansfp.collection.groups: ids match in every form, and what matches no image is told with a reason."""

import pytest

from gansfp.collection.groups import read_groups
from gansfp.collection.layout import find_images
from gansfp.errors import DataError


def place(data, *names):
    for name in names:
        (data / "attribution/test" / name).parent.mkdir(parents=True, exist_ok=True)
        (data / "attribution/test" / name).write_bytes(b"x")


def read(data, text, encoding="utf-8", place="groups.csv"):
    """The group of each image that has one, by image_id, and the notes."""
    (data / place).write_bytes(text.encode(encoding))
    images = find_images(str(data))[0]
    groups, notes = read_groups(str(data), images)
    return {image.image_id: group for image, group in zip(images, groups, strict=True) if group}, notes


def refused(data, text, encoding="utf-8"):
    with pytest.raises(DataError) as caught:
        read(data, text, encoding)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_unicode_form_and_blanks_around(tmp_path):
    place(tmp_path, "e\u0301tude.png", "\u00fcber.png", " t9.png", "t8 .png")
    lines = "image_id,group\n\u00e9tude,a\nu\u0308ber,b\n t9,c\nt8 ,d\n"
    assert read(tmp_path, lines) == ({"e\u0301tude": "a", "\u00fcber": "b", " t9": "c", "t8 ": "d"}, [])
    assert read(tmp_path, lines.replace(" t9", "t9").replace("t8 ", "t8"))[0].keys() == read(tmp_path, lines)[0].keys()
    place(tmp_path, "sub/e\u0301tude.png")  # both now have a path as id
    groups, notes = read(tmp_path, "image_id,group\nattribution/test/\u00e9tude,a\n")
    assert (groups, notes) == ({"attribution/test/e\u0301tude": "a"}, [])
    assert "'e\u0301tude' has two groups, 'a' and 'b'" in refused(
        tmp_path, "image_id,group\n\u00e9tude,a\ne\u0301tude,b\n"
    )


def test_ids_of_slices_in_a_file_stand_for_the_file(tmp_path):
    place(tmp_path, "s1.nii.gz", "s2.nii.gz", "s3.nii.gz", "x#0001.png")
    every = "image_id,group\n" + "".join(f"{s}#{n:04d},p\n" for s in ("s1", "s2") for n in range(1, 5))
    assert read(tmp_path, every)[0] == {"s1": "p", "s2": "p"}
    lines = "image_id,group\ns1#0002,p\ns2,p\nattribution/test/s3#12345,q\nx#0001,r\n"
    assert read(tmp_path, lines) == ({"s1": "p", "s2": "p", "s3": "q", "x#0001": "r"}, [])
    assert refused(tmp_path, "image_id,group\ns1#0001,p\ns1#0002,q\n").endswith(
        "s1.nii.gz has two groups, 'p' and 'q', expected one"
    )
    assert "none of its 2 ids fits an image" in refused(tmp_path, "image_id,group\nother#0001,p\ns1#1,q\n")


def test_zeros_that_a_spreadsheet_has_removed(tmp_path):
    place(tmp_path, "0996.png", "0997.png", "1000.png", "1001.png")
    groups, notes = read(tmp_path, "image_id,group\n996,a\n997,a\n1000,b\n1001,b\n")
    assert groups == {"1000": "b", "1001": "b"}
    assert notes == [
        "groups.csv: 2 ids fit no image, such as 996 (996 may be 0996, whose zeros a spreadsheet has removed)",
        "groups.csv: 2 of 4 images are left without a group, such as 0996",
    ]
    assert "none of its 1 ids fits an image, such as '997'; 997 may be 0997" in refused(
        tmp_path, "image_id,group\n997,a\n"
    )
    assert "may be" not in refused(tmp_path, "image_id,group\n98,a\n")


def test_ids_with_file_endings(tmp_path):
    place(tmp_path, "a.png", "b.nii.gz", "c.png")
    message = refused(tmp_path, "image_id,group\na.png,p\nb.nii.gz,p\n")
    assert message.endswith("none of its 2 ids fits an image, such as 'a.png'; ids have no file ending")
    _, notes = read(tmp_path, "image_id,group\na.png,p\nb.nii.gz,p\nc,p\n")
    assert notes == [
        "groups.csv: 2 ids fit no image, such as a.png (ids have no file ending)",
        "groups.csv: 2 of 3 images are left without a group, such as a",
    ]


def test_names_keep_the_dots_that_are_no_ending(tmp_path):
    place(tmp_path, "1.2.840.113.dcm", "b.dcm.png")
    assert read(tmp_path, "image_id,group\n1.2.840.113,p\nb.dcm,q\n") == ({"1.2.840.113": "p", "b.dcm": "q"}, [])
    assert read(tmp_path, "image_id,group\nattribution/test/1.2.840.113,p\n") == ({"1.2.840.113": "p"}, [])


def test_values_that_are_no_groups(tmp_path):
    place(tmp_path, "a.png", "b.png", "c.png")
    assert read(tmp_path, "image_id,group\na,12.0\nb,\nc,\n") == ({"a": "12"}, [])
    for word in ("nan", "NA", "N/A", "None", "null", "NULL", "#N/A"):
        groups, notes = read(tmp_path, f"image_id,group\na,12.0\nb,{word}\nc,{word}\n")
        assert groups == {"a": "12"}
        assert notes == [f"groups.csv: 2 groups, such as {word!r}, were taken for no group"]


def test_a_column_that_is_there_twice(tmp_path):
    place(tmp_path, "a.png")
    assert "has the column 'group' twice" in refused(tmp_path, "image_id,group,group\na,p,q\n")


def test_files_of_spreadsheets(tmp_path):
    place(tmp_path, "a.png")
    assert read(tmp_path, "image_id,group\r\na,p\r\n,\r\n", "utf-8-sig") == ({"a": "p"}, [])
    assert "it has semicolons, save it with commas" in refused(tmp_path, "image_id;group\na;p\n")
    assert "probably UTF-16; save it as UTF-8" in refused(tmp_path, "image_id,group\na,p\n", "utf-16")
    assert "probably Latin-1" in refused(tmp_path, "image_id,group\na,\u00e9\n", "latin-1")


@pytest.mark.parametrize("first", ["sep=,", "sep=,,,", '"sep=,"', "sep=;", "\ufeffsep=,"])
def test_the_first_line_of_excel_is_no_header(tmp_path, first):
    place(tmp_path, "a.png")
    assert read(tmp_path, f"{first}\r\nimage_id,group\r\na,p\r\n") == ({"a": "p"}, [])


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("1001.0", "a spreadsheet has made numbers of the ids"),
        (
            "996.0",
            "a spreadsheet has made numbers of the ids; 996 may be 0996, whose zeros a spreadsheet has removed",
        ),
        ("attribution\\test\\1001", "write / between folders, not \\"),
        ("C:\\scans\\Im7", "write / between folders, not \\; ids are file names, or paths below the data folder"),
        ("IM7", "IM7 may be Im7, in other upper and lower case"),
        ("im7.PNG", "ids have no file ending; im7 may be Im7, in other upper and lower case"),
        ("attribution/test/Im7.png", "ids have no file ending"),
        ("scans/Im7", "ids are file names, or paths below the data folder"),
        ("Attribution/Test/Im7", "Attribution/Test/Im7 may be attribution/test/Im7, in other upper and lower case"),
        ("other", "expected file names without ending, or paths below the data folder without ending"),
    ],
)
def test_ids_that_nearly_fit_get_a_hint(tmp_path, given, hint):
    place(tmp_path, "1001.png", "0996.png", "Im7.png")
    assert refused(tmp_path, f"image_id,group\n{given},p\n").endswith(f"such as {given!r}; {hint}")
    _, notes = read(tmp_path, f"image_id,group\n1001,p\n{given},p\n")
    hint = "" if given == "other" else f" ({hint})"
    assert notes[0] == f"groups.csv: 1 ids fit no image, such as {given}{hint}"


def test_the_file_may_lie_beside_the_folders_of_the_layout(tmp_path):
    """DATA holds one folder, which holds the collection."""
    place(tmp_path / "unpacked", "a.png", "b.png")
    assert read(tmp_path, "image_id,group\na,p\n", place="unpacked/groups.csv")[0] == {"a": "p"}
    (tmp_path / "unpacked/groups.csv").unlink()
    assert read(tmp_path, "image_id,group\nunpacked/attribution/test/b,p\nattribution/test/b,p\na,q\n")[0] == {
        "a": "q",
        "b": "p",
    }
