"""gansfp.collection.layout: the images of DATA, by folders and by tables, and every way in which DATA can be wrong."""

import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gansfp.collection.layout import Purpose, describe_layout, find_images
from gansfp.errors import DataError


def place(data, *paths, content=b"x"):
    for path in paths:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(content)


def purposes(data, **options):
    return {image.image_id: tuple(image.purpose) for image in find_images(str(data), **options)[0]}


def refused(data, **options):
    """The message of the DataError for DATA."""
    with pytest.raises(DataError) as caught:
        find_images(str(data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_folder_of_the_layout(tmp_path):
    place(
        tmp_path,
        "membership/a/train/generated/g1.png",
        "membership/a/train/used/u1.PNG",
        "membership/a/train/not_used/n1.jpg",
        "membership/a/test/generated/g2.JPEG",
        "membership/a/test/unknown/x1.tif",
        "membership/b/train/real_used/patient7/deep/u2.tiff",
        "membership/b/train/real_not_used/n2.dcm",
        "membership/b/test/real_unknown/x2.png",
        "attribution/train/vae/v1.png",
        "attribution/train/gan/run 1/v2.png",
        "attribution/test/t1.png",
        "attribution/test/unknown/t2.png",
        "attribution/test/generated_unknown/t3.png",
    )
    assert purposes(tmp_path) == {
        "g1": ("membership", "a", "train", "generated", ""),
        "u1": ("membership", "a", "train", "used", ""),
        "n1": ("membership", "a", "train", "not_used", ""),
        "g2": ("membership", "a", "test", "generated", ""),
        "x1": ("membership", "a", "test", "unknown", ""),
        "u2": ("membership", "b", "train", "used", ""),
        "n2": ("membership", "b", "train", "not_used", ""),
        "x2": ("membership", "b", "test", "unknown", ""),
        "v1": ("attribution", "", "train", "generated", "vae"),
        "v2": ("attribution", "", "train", "generated", "gan"),
        "t1": ("attribution", "", "test", "unknown", ""),
        "t2": ("attribution", "", "test", "unknown", ""),
        "t3": ("attribution", "", "test", "unknown", ""),
    }
    images, notes = find_images(f"file://{tmp_path}")
    assert notes == []
    assert [image.image_id for image in images] == sorted(image.image_id for image in images)
    deep = next(image for image in images if image.image_id == "u2")
    assert deep.uri == str(tmp_path / "membership/b/train/real_used/patient7/deep/u2.tiff")
    assert deep.bytes == 1
    assert deep.mtime == (tmp_path / "membership/b/train/real_used/patient7/deep/u2.tiff").stat().st_mtime_ns


def test_ids_are_names_or_paths_where_names_collide(tmp_path):
    place(tmp_path, "attribution/test/a.b.png", "attribution/train/g/1.png", "attribution/train/h/1.jpg")
    images, _ = find_images(str(tmp_path))
    assert [(image.image_id, image.name) for image in images] == [
        ("a.b", "a.b"),
        ("attribution/train/g/1", "1"),
        ("attribution/train/h/1", "1"),
    ]


@pytest.mark.parametrize("second", ["1.jpg", "1.PNG"])
def test_two_files_that_differ_only_in_their_ending_are_refused(tmp_path, second):
    place(tmp_path, "attribution/test/1.png", f"attribution/test/{second}")
    message = refused(tmp_path)
    assert "two images have the image_id 'attribution/test/1'" in message
    assert str(tmp_path / "attribution/test/1.png") in message
    assert str(tmp_path / "attribution/test" / second) in message


def test_other_files_are_ignored_and_counted(tmp_path):
    place(
        tmp_path,
        "attribution/test/1.png",
        "attribution/test/truth.csv",
        "attribution/test/readme.txt",
        "attribution/test/.hidden.png",
        "attribution/.cache/2.png",
        "attribution/train/loose.png",
        "membership/a/train/usde/u.png",
        "membership/a/train/unknown/u2.png",
        "membership/a/test/used/u3.png",
        "elsewhere/3.png",
    )
    images, notes = find_images(str(tmp_path))
    assert [image.image_id for image in images] == ["1"]
    assert notes == [
        "ignored 1 files that are not images, such as attribution/test/readme.txt",
        "ignored 4 images outside the layout, such as attribution/train/loose.png",
    ]


def test_broken_links_and_folders_named_like_images_become_rows(tmp_path):
    place(tmp_path, "attribution/test/1.png", "real/2.png", "attribution/test/series.dcm/3.dcm")
    (tmp_path / "attribution/test/nowhere.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "attribution/test/folder.png").mkdir()
    (tmp_path / "attribution/train").mkdir()
    (tmp_path / "attribution/train/linked").symlink_to(tmp_path / "real")
    images = {image.image_id: (image.purpose.split, image.bytes) for image in find_images(str(tmp_path))[0]}
    assert images == {
        "1": ("test", 1),
        "2": ("train", 1),
        "3": ("test", 1),
        "folder": ("test", -1),
        "nowhere": ("test", -1),
    }


@pytest.mark.parametrize(
    "folder",
    ["membership/a/train/used", "membership/a/test/real_unknown", "attribution/train/gan", "attribution/test"],
)
def test_a_class_without_images_is_an_error(tmp_path, folder):
    place(tmp_path, "membership/a/train/generated/1.png")
    (tmp_path / folder / "sub").mkdir(parents=True)
    place(tmp_path, f"{folder}/notes.txt")
    assert refused(tmp_path).startswith(f"no images in {tmp_path / folder}, expected files ending in .")


def test_data_without_images(tmp_path):
    message = refused(tmp_path)
    assert message.startswith(
        f"no images found in {tmp_path}, expected membership/<set>/train/{{generated,used,not_used}}"
    )
    place(tmp_path, "1.png", "train/used/2.png")
    assert refused(tmp_path).startswith(
        f"{tmp_path}: found the folders train/used with 2 images, such as 1.png; expected membership/<set>/train/"
    )
    assert refused(tmp_path / "nothing") == f"{tmp_path / 'nothing'}: the data folder does not exist"
    assert refused(tmp_path / "1.png") == f"{tmp_path / '1.png'}: the data folder is not a folder"


ROWS = """image_id,uri,task,set,split,role,generator,group
one,images/1.png,membership,a,train,used,,p1
two,{data}/images/2.png,membership,a,train,generated,gan,
three,file://{data}/images/3.png,attribution,,train,generated,gan,p1
four,images/4.png,attribution,,test,unknown,gan,
"""


def table(data, text=ROWS):
    place(data, *(f"images/{number}.png" for number in range(1, 5)))
    (data / "catalog.csv").write_text(text.format(data=data))
    return data


def check_rows(data):
    images, notes = find_images(str(data))
    assert [(image.image_id, image.name, image.purpose, image.group, image.bytes) for image in images] == [
        ("four", "4", Purpose("attribution", "", "test", "unknown", ""), "", 1),
        ("one", "1", Purpose("membership", "a", "train", "used", ""), "p1", 1),
        ("three", "3", Purpose("attribution", "", "train", "generated", "gan"), "p1", 1),
        ("two", "2", Purpose("membership", "a", "train", "generated", ""), "", 1),
    ]
    assert [image.uri for image in images] == [str(data / f"images/{number}.png") for number in (4, 1, 3, 2)]
    assert all(image.mtime > 0 for image in images)
    assert len(notes) == 1
    assert "ignored the generators of 1 test slices" in notes[0]


def test_table_as_csv_and_as_parquet(tmp_path):
    check_rows(table(tmp_path))
    header, *lines = [line.split(",") for line in ROWS.format(data=tmp_path).splitlines()]
    columns = {name: [line[index] or None for line in lines] for index, name in enumerate(header)}
    (tmp_path / "catalog.csv").unlink()
    typed = pa.table(columns | {"embedding": [[1.0, 2.0]] * 4})  # other columns are ignored
    typed = typed.set_column(5, "role", typed["role"].dictionary_encode())
    pq.write_table(typed, tmp_path / "catalog.parquet")
    check_rows(tmp_path)
    (tmp_path / "catalog.csv").write_text("")
    assert "both catalog.parquet and catalog.csv" in refused(tmp_path)
    (tmp_path / "catalog.csv").unlink()
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1")
    assert "cannot be read as a Parquet table" in refused(tmp_path)


def test_a_table_has_priority_over_the_folders(tmp_path):
    place(tmp_path, "attribution/test/1.png", "attribution/train/vae/2.png")
    (tmp_path / "catalog.csv").write_text(
        "image_id,uri,task,split,role\nx,attribution/test/1.png,attribution,test,unknown\n"
    )
    assert purposes(tmp_path) == {"x": ("attribution", "", "test", "unknown", "")}
    (tmp_path / "catalog.csv").write_text("image_id,uri,task,split,role\n")
    assert refused(tmp_path).startswith(f"no images found in {tmp_path / 'catalog.csv'}, expected")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_id,uri", "id,uri", "no column 'image_id'"),
        (",set,", ",sets,", "no column 'set'"),
        (",role,", ",class,", "no column 'role'"),
        ("two,", "one,", "two images have the image_id 'one'"),
        ("two,", ",", "a row has no image_id"),
        (
            "membership,a,train,used",
            "member,a,train,used",
            "'one' has task 'member', expected one of membership, attribution",
        ),
        ("membership,a,train,used", "membership,a,dev,used", "'one' has split 'dev', expected one of train, test"),
        (
            "membership,a,train,used",
            "membership,a,train,real",
            "'one' has role 'real', expected one of generated, used",
        ),
        (
            "membership,a,train,used",
            "membership,a,test,used",
            "'one' has role 'used', expected one of generated, unknown",
        ),
        ("membership,a,train,used", "membership,,train,used", "'one' belongs to the membership task and has no set"),
        ("membership,a,train,used", "membership,../a,train,used", "'one' has set '../a', expected a name without /"),
        (
            "train,generated,gan,p1",
            "train,generated,,p1",
            "'three' is a training slice of attribution, expected its generator",
        ),
        ("images/1.png", "../1.png", "the uri '../1.png' leads out of"),
        ("images/1.png", "images/../../1.png", "leads out of"),
        ("images/1.png", "/etc/1.png", "the uri '/etc/1.png' leads out of"),
        ("images/1.png", "s3://bucket/1.png?region=eu", "leads out of"),
        ("images/1.png", "{data}-other/1.png", "leads out of"),
    ],
)
def test_bad_tables(tmp_path, old, new, message):
    assert old in ROWS
    assert message in refused(table(tmp_path, ROWS.replace(old, new)))


def test_allow_outside_and_missing_files(tmp_path):
    data = tmp_path / "data"
    place(tmp_path, "1.png")
    place(data, "x")
    table(data, ROWS.replace("images/1.png", "../1.png").replace("images/4.png", "images/5.png"))
    images = {image.image_id: image for image in find_images(str(data), allow_outside=True)[0]}
    assert images["one"].uri == str(tmp_path / "1.png")
    assert images["one"].bytes == 1
    assert images["four"].bytes == -1


@pytest.mark.parametrize("name", ["a,b.png", "a\nb.png"])
def test_a_test_slice_with_a_name_that_csv_cannot_hold(tmp_path, name):
    for folder, file in (("train/gan", "a,b.png"), ("test", name)):
        (tmp_path / "attribution" / folder).mkdir(parents=True)
        (tmp_path / "attribution" / folder / file).write_bytes(b"")
    message = refused(tmp_path)
    assert "comma or line break" in message
    assert "\n" not in message
    (tmp_path / "attribution/test" / name).rename(tmp_path / "attribution/test/c.png")
    assert len(find_images(str(tmp_path))[0]) == 2


def test_images_by_content_in_class_folders_only(tmp_path):
    dicom = bytes(128) + b"DICM"
    names = ("IM0001", "1.2.840.113619.2.55", "x.IMA", "scan.dicom")
    place(tmp_path, *(f"attribution/test/{name}" for name in names), "elsewhere/IM0002", content=dicom)
    place(tmp_path, "attribution/test/DICOMDIR", "attribution/test/series/DICOMDIR", "attribution/IM3", content=dicom)
    images, notes = find_images(str(tmp_path))
    assert [(image.image_id, image.name) for image in images] == [
        ("1.2.840.113619.2.55", "1.2.840.113619.2.55"),
        ("IM0001", "IM0001"),
        ("scan", "scan"),
        ("x", "x"),
    ]
    assert notes == ["ignored 3 files that are not images, such as attribution/IM3"]


def test_a_replaced_file_of_equal_size_and_time_has_another_change_time(tmp_path):
    file = tmp_path / "attribution/test/1.png"
    place(tmp_path, "attribution/test/1.png", content=b"old")
    (before,), _ = find_images(str(tmp_path))
    assert before.ctime == file.stat().st_ctime_ns
    time.sleep(0.02)  # longer than the clock of a file system ticks
    place(tmp_path, "attribution/test/1.png", content=b"new")
    os.utime(file, ns=(before.mtime, before.mtime))
    (after,), _ = find_images(str(tmp_path))
    assert (after.bytes, after.mtime) == (before.bytes, before.mtime)
    assert after.ctime > before.ctime


def test_each_folder_is_described(tmp_path):
    place(tmp_path, "membership/a/train/used/p/1.png", "membership/a/train/real_used/2.png", "attribution/test/3.png")
    used = Purpose("membership", "a", "train", "used", "")
    assert describe_layout(find_images(str(tmp_path))[0]) == [
        ("attribution/test", Purpose("attribution", "", "test", "unknown", ""), 1),
        ("membership/a/train/real_used", used, 1),
        ("membership/a/train/used", used, 1),
    ]
    table(tmp_path)
    described = describe_layout(find_images(str(tmp_path))[0])
    assert {row.folder for row in described} == {"catalog.csv"}
    assert sum(row.files for row in described) == 4
