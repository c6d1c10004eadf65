"""The folders of the challenges, as they come out of their archives; and folders that are nobody's."""

import pytest

from gansfp import store
from gansfp.collection.layout import describe_layout, find_images
from gansfp.errors import DataError

TRAIN_1 = ("generated_1", "real_used_1", "real_not_used_1")
TEST_1 = ("generated_1", "real_unknown_1")
TRAINING_2025 = "ImageCLEF25_GAN_Detect_Training_Data_Usage_training-dataset"
SUBSET_2025 = "GAN25_Identify_Training_Data_Subset"


def place(data, *folders, images=2):
    for folder in folders:
        (data / folder).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            (data / folder / f"{folder.replace('/', '-')}-{number}.png").write_bytes(b"x")


def classes(data):
    """{class folder: what it was taken for}, after a check of the images."""
    images, _ = find_images(str(data))
    described = describe_layout(images)
    assert sum(row.files for row in described) == len(images)
    assert {row.purpose.task for row in described} == {"membership"}
    return {row.folder: " ".join(row.purpose[1:4]) for row in described}


def refused(data):
    with pytest.raises(DataError) as caught:
        find_images(str(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_training_set_at_the_root(tmp_path):
    place(tmp_path, *TRAIN_1)
    assert classes(tmp_path) == {
        "generated_1": "1 train generated",
        "real_used_1": "1 train used",
        "real_not_used_1": "1 train not_used",
    }
    assert len(find_images(str(tmp_path))[0]) == 6
    assert find_images(str(tmp_path))[1] == [
        f"{tmp_path}: took the folders of a challenge: generated_1 for set 1, train, generated; "
        "real_not_used_1 for set 1, train, not_used; real_used_1 for set 1, train, used"
    ]


def test_a_test_set_at_the_root(tmp_path):
    place(tmp_path, *TEST_1)
    assert classes(tmp_path) == {"generated_1": "1 test generated", "real_unknown_1": "1 test unknown"}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("generated-2", "used-2", "not_used-2"), "2"),
        (("Generated_7", "Real_Used_7", "real not used 7"), "7"),
        (("generated02", "used_2", "not-used-2"), "2"),
        (("generated", "real_used", "real_not_used"), "1"),
    ],
)
def test_spellings(tmp_path, folders, expected):
    place(tmp_path, *folders)
    roles = ("generated", "used", "not_used")
    assert classes(tmp_path) == {
        folder: f"{expected} train {role}" for folder, role in zip(folders, roles, strict=True)
    }


def test_several_sets_beside_each_other(tmp_path):
    place(tmp_path, *TRAIN_1, "generated_2", "real_unknown_2")
    found = classes(tmp_path)
    assert found["generated_1"] == "1 train generated"
    assert found["generated_2"] == "2 test generated"
    assert found["real_unknown_2"] == "2 test unknown"


def test_training_and_test_folders_join_by_their_number(tmp_path):
    train, test = "Subtask1/training/data", "Subtask1/test"
    place(tmp_path, *(f"{train}/{name}" for name in TRAIN_1), *(f"{test}/{name}" for name in TEST_1))
    place(tmp_path, f"{train}/generated_2", f"{train}/real_used_2", f"{train}/real_not_used_2")
    assert classes(tmp_path) == {
        f"{train}/generated_1": "1 train generated",
        f"{train}/real_used_1": "1 train used",
        f"{train}/real_not_used_1": "1 train not_used",
        f"{test}/generated_1": "1 test generated",
        f"{test}/real_unknown_1": "1 test unknown",
        f"{train}/generated_2": "2 train generated",
        f"{train}/real_used_2": "2 train used",
        f"{train}/real_not_used_2": "2 train not_used",
    }
    images, _ = find_images(str(tmp_path / "Subtask1"))
    assert len(images) == 16


@pytest.mark.parametrize("around", ["", TRAINING_2025, f"data/{TRAINING_2025}"])
def test_2025_at_its_root_and_above(tmp_path, around):
    names = ("generated", "real_used", "real_not_used")
    place(tmp_path / around, *names)
    assert sorted(classes(tmp_path).values()) == ["1 train generated", "1 train not_used", "1 train used"]


def test_folders_doubled_by_unpacking(tmp_path):
    place(tmp_path, *(f"Subtask2/Subtask2/{name}" for name in TEST_1))
    assert classes(tmp_path) == {
        "Subtask2/Subtask2/generated_1": "1 test generated",
        "Subtask2/Subtask2/real_unknown_1": "1 test unknown",
    }
    place(tmp_path / "x", "generated_1/generated_1", "real_unknown/real_unknown_1")
    assert classes(tmp_path / "x") == {
        "generated_1/generated_1": "1 test generated",
        "real_unknown/real_unknown_1": "1 test unknown",
    }


def test_every_part_in_an_archive_of_its_own(tmp_path):
    place(
        tmp_path, *(f"archive-{name}/{name}" for name in TRAIN_1), "test_generated/generated_1", "test/real_unknown_1"
    )
    message = refused(tmp_path)
    assert "both for set 1, test, generated" in message or "both for set 1, train, generated" in message
    place(tmp_path / "one", "a/generated_1", "b/real_unknown_1")
    assert classes(tmp_path / "one") == {"a/generated_1": "1 test generated", "b/real_unknown_1": "1 test unknown"}


def test_class_folders_may_have_folders(tmp_path):
    place(tmp_path, "generated_1/part1", "generated_1/unknown", "real_unknown_1/patient 7/series")
    assert classes(tmp_path) == {"generated_1": "1 test generated", "real_unknown_1": "1 test unknown"}


def test_ids_are_names_or_paths(tmp_path):
    for folder in TEST_1:
        (tmp_path / "test" / folder).mkdir(parents=True)
        (tmp_path / "test" / folder / "0001.png").write_bytes(b"x")
    (tmp_path / "test/real_unknown_1/0002.png").write_bytes(b"x")
    assert [image.image_id for image in find_images(str(tmp_path))[0]] == [
        "0002",
        "test/generated_1/0001",
        "test/real_unknown_1/0001",
    ]


def test_what_is_not_clear_is_not_guessed(tmp_path):
    place(tmp_path / "copy", *TEST_1, *(f"again/{name}" for name in TEST_1))
    assert refused(tmp_path / "copy") == (
        "found the folders again/generated_1 and generated_1, both for set 1, test, generated; remove one if it is a "
        "copy, or give each set its number, as in generated_1 and generated_2"
    )
    place(tmp_path / "spelled", "generated_1", "used_1", "real_used_1", "not_used_1")
    assert "real_used_1 and used_1, both for set 1, train, used" in refused(tmp_path / "spelled")
    place(tmp_path / "number", "generated", "real_unknown_2", "generated_2")
    assert "found the folders generated and generated_2, expected a number" in refused(tmp_path / "number")
    place(tmp_path / "differ", "generated_1/generated_2", "real_unknown_1")
    assert "found the folder generated_1/generated_2, whose numbers differ" in refused(tmp_path / "differ")


def test_a_class_folder_without_images(tmp_path):
    place(tmp_path, *TRAIN_1)
    place(tmp_path, "real_not_used_1/empty", images=0)
    for file in (tmp_path / "real_not_used_1").glob("*.png"):
        file.unlink()
    assert refused(tmp_path).startswith(f"no images in {tmp_path}/real_not_used_1, expected files ending in")


@pytest.mark.parametrize("names", [("real", "generated"), ("Real", "Generated"), ("REAL", "generated")])
def test_task_2_of_2025_is_not_read(tmp_path, names):
    place(tmp_path, *(f"{SUBSET_2025}/{kind}/t{number}" for kind in names for number in range(3)))
    for data, name in ((tmp_path, f"{tmp_path}/{SUBSET_2025}"), (tmp_path / SUBSET_2025, f"{tmp_path}/{SUBSET_2025}")):
        message = refused(data)
        assert message.startswith(f"{name}: its folders real and generated are task 2 of 2025")
        assert message.endswith(
            "does not do yet, expected those of task 1, such as generated, real_used and real_not_used"
        )
        assert len(message.removeprefix(name)) < 250
    place(tmp_path, *(f"{TRAINING_2025}/{name}" for name in ("generated", "real_used", "real_not_used")))
    images, notes = find_images(str(tmp_path))
    assert len(images) == 6
    assert notes[0].startswith(f"{tmp_path}/{SUBSET_2025}: its folders real and generated are task 2 of 2025")
    assert notes[0].endswith("; ignored")
    assert not [note for note in notes if "outside the layout" in note]


def test_anything_else_is_shown(tmp_path):
    place(tmp_path, "gan", "vae", "diffusion", images=10)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}: found the folders diffusion, gan, vae with 30 images, such as diffusion/")
    assert "expected membership/<set>/train/{generated,used,not_used}" in message
    assert "generated_1, real_used_1, real_not_used_1" in message
    place(tmp_path, *(f"more{number}" for number in range(5)))
    assert "found the folders diffusion, gan, more0, more1, more2 and 3 more with 40 images" in refused(tmp_path)


@pytest.mark.parametrize("folders", [("generated_1",), ("real_used_1", "real_not_used_1"), ("generated", "real")])
def test_half_a_set_is_no_set(tmp_path, folders):
    place(tmp_path, *folders)
    assert f"found the folders {', '.join(sorted(folders))} with" in refused(tmp_path)


def test_images_without_a_folder_and_without_an_ending(tmp_path):
    (tmp_path / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert refused(tmp_path).startswith(f"{tmp_path}: found no folders with 1 images, such as IM0001; expected")


def test_the_folders_of_the_layout_come_first(tmp_path):
    place(tmp_path, "membership/a/train/used", "membership/a/train/generated", *TRAIN_1)
    images, notes = find_images(str(tmp_path))
    assert {image.purpose.set for image in images} == {"a"}
    assert notes == ["ignored 3 folders beside those of the layout, such as generated_1"]


@pytest.mark.parametrize("around", ["challenge", "challenge/challenge", "a/b/c/d"])
def test_the_layout_in_a_folder(tmp_path, around):
    folder = tmp_path / around
    place(folder, "membership/a/train/used", "membership/a/train/generated", "attribution/test")
    (tmp_path / "other").mkdir()
    below, above = find_images(str(folder))[0], find_images(str(tmp_path))[0]
    assert [image._replace(folder="") for image in above] == [image._replace(folder="") for image in below]
    assert {image.folder for image in above} == {f"{around}/{image.folder}" for image in below}


def test_two_collections_in_one_folder(tmp_path):
    place(tmp_path, "one/attribution/test", "two/attribution/test")
    assert refused(tmp_path) == f"{tmp_path}: found two collections, one and two, expected one; name it with --data"
    (tmp_path / "alias").symlink_to("one")
    assert "found two collections" in refused(tmp_path)


def test_one_collection_by_two_ways(tmp_path):
    place(tmp_path, "one/attribution/test")
    (tmp_path / "alias").symlink_to("one")
    assert len(find_images(str(tmp_path))[0]) == 2


def test_a_link_back_in_a_challenge(tmp_path):
    place(tmp_path, *(f"Subtask1/{name}" for name in TEST_1))
    (tmp_path / "Subtask1/generated_1/up").symlink_to("../..")
    (tmp_path / "Subtask1/again").symlink_to("..")
    images, notes = find_images(str(tmp_path))
    assert len(images) == 4
    assert notes[0] == "2 symbolic links that lead back were left out, such as Subtask1/again"


def test_a_challenge_in_a_store(bucket):
    place(bucket / "data", *(f"Subtask1/test/{name}" for name in TEST_1))
    (bucket / "data/Subtask1/test/generated_1/IM1").write_bytes(bytes(128) + b"DICM")
    uri = "s3://bucket/data?region=eu"
    images, _ = find_images(uri)
    assert len(images) == 5
    assert describe_layout(images)[0] == ("Subtask1/test/generated_1", images[0].purpose, 3)
    assert images[0].uri == store.join(uri, "Subtask1", "test", "generated_1", "IM1")
    place(bucket / "wrapped", "x/attribution/test")
    assert [image.folder for image in find_images("s3://bucket/wrapped")[0]] == ["x/attribution/test"] * 2
