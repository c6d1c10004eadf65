"""Symbolic links in DATA: they are followed, but no folder is read twice, and those that leave DATA are told."""

import pytest

from gansfp.collection.layout import find_images
from gansfp.errors import DataError


def place(data, *paths):
    for path in paths:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(b"x")


def table(data, uri):
    rows = f"one,{uri},attribution,test,unknown\ntwo,images/2.png,attribution,test,unknown\n"
    (data / "catalog.csv").write_text(f"image_id,uri,task,split,role\n{rows}")


def test_links_that_lead_out_are_followed_and_noted(tmp_path):
    data = tmp_path / "data"
    place(tmp_path, "other/2.png", "other/3.png")
    place(data, "attribution/test/1.png", "attribution/real/5.png")
    (data / "attribution/test/within.png").symlink_to(data / "attribution/real/5.png")
    assert find_images(str(data))[1] == ["ignored 1 images outside the layout, such as attribution/real/5.png"]
    (data / "attribution/test/file.png").symlink_to(tmp_path / "other/2.png")
    (data / "attribution/test/nowhere.png").symlink_to(tmp_path / "nothing")
    (data / "attribution/train").mkdir()
    (data / "attribution/train/gan").symlink_to(tmp_path / "other")
    for name in (str(data), f"file://{data}"):
        images, notes = find_images(name)
        assert len(images) == 6
        first = data / "attribution/test/file.png"
        assert notes[1:] == [f"symbolic links lead out of {name} to 3 images, such as {first}"]
    (tmp_path / "linked").symlink_to(data)  # DATA itself may be a link
    assert "to 3 images" in find_images(str(tmp_path / "linked"))[1][1]


def test_a_table_goes_through_links_but_not_up_from_them(tmp_path):
    """`link/..` is the folder that holds the link, as in a URI; the operating system would follow the link first."""
    data, outside = tmp_path / "data", tmp_path / "other/inner"
    place(data, "images/2.png", "images/3.png", "images/4.png", "images/5.png", "1.png")
    place(tmp_path, "other/inner/1.png", "other/1.png")
    (data / "link").symlink_to(outside)
    table(data, "link/1.png")
    images, notes = find_images(str(data))
    assert len(images) == 2
    assert f"symbolic links lead out of {data} to 1 images, such as {data}/link/1.png" in notes
    table(data, "link/../1.png")
    assert {image.image_id: image.uri for image in find_images(str(data))[0]}["one"] == str(data / "1.png")
    for uri in ("link/../../other/1.png", f"{data}/link/../../other/1.png", f"file://{data}/%2e%2e/other/1.png"):
        table(data, uri)
        with pytest.raises(DataError, match="leads out of"):
            find_images(str(data))


def test_a_loop_of_links_changes_nothing(tmp_path):
    place(tmp_path, "attribution/train/gan/1.png", "attribution/train/vae/2.png", "attribution/test/3.png")
    before, _ = find_images(str(tmp_path))
    (tmp_path / "attribution/train/gan/up").symlink_to("../..")
    (tmp_path / "attribution/train/vae/all").symlink_to(tmp_path)
    (tmp_path / "attribution/loop").symlink_to("loop")
    images, notes = find_images(str(tmp_path))
    assert images == before
    assert notes == [
        "2 symbolic links that lead back were left out, such as attribution/train/gan/up",
        "ignored 1 files that are not images, such as attribution/loop",
    ]


@pytest.mark.parametrize("links", [{"b": "a"}, {"b/train": "../a/train", "b/test": "../a/test"}])
def test_two_sets_that_are_one_folder(tmp_path, links):
    sets = tmp_path / "membership"
    for folder in ("train/generated", "train/used", "train/not_used", "test/unknown"):
        place(sets, f"a/{folder}/1.png", f"c/{folder}/1.png")
    assert find_images(str(tmp_path))[1] == []
    for link, target in links.items():
        (sets / link).parent.mkdir(exist_ok=True)
        (sets / link).symlink_to(target)
    images, notes = find_images(str(tmp_path))
    assert len(images) == 12
    assert notes == ["the sets a, b are the same folder, by a symbolic link; remove it if it is a mistake"]


def test_sets_may_share_their_training_images(tmp_path):
    place(tmp_path / "membership", "a/train/used/1.png", "a/test/unknown/2.png", "b/test/unknown/3.png")
    (tmp_path / "membership/b/train").symlink_to("../a/train")
    assert find_images(str(tmp_path))[1] == []
