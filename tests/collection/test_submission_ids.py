"""gansfp.collection.submission: ids of files with several slices, and hints where ids nearly fit."""

import numpy as np
import pytest
from PIL import Image

from gansfp.collection.catalog import read_catalog
from gansfp.collection.submission import other_readings, problems, read_ids, submission


def write_stack(path, slices):
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(np.full((8, 8), 40 * number, np.uint8)) for number in range(slices)]
    pages[0].save(path, "TIFF", save_all=True, append_images=pages[1:])


def write_volume(path, slices):
    nibabel = pytest.importorskip("nibabel")
    numbers = np.random.default_rng(0).integers(-1000, 400, (8, 8, slices)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(numbers, np.eye(4)), path)


def accepted(content, uri):
    return any(not problems(content, ids) for ids in [read_ids(uri), *other_readings(uri)])


def test_the_catalogs_ids_are_the_ids_of_its_folder(tmp_path):
    folder = tmp_path / "membership/a/test/unknown"
    write_stack(folder / "stack.tif", 3)
    write_stack(folder / "one.tiff", 1)
    write_stack(folder / "without_ending", 2)
    write_volume(folder / "volume.nii.gz", 4)
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM")
    Image.new("L", (8, 8)).save(folder / "picture.png")
    ids = read_ids(str(folder))
    assert ids == read_catalog(str(tmp_path)).unknown("a").ids.tolist()
    assert {"stack#0003", "one", "without_ending#0002", "volume#0004", "broken", "picture"} <= set(ids)
    assert problems(submission(dict.fromkeys(ids, 1)), read_ids(str(folder))) == []


def test_stacks_of_one_name_have_paths(tmp_path):
    folder = tmp_path / "membership/a/test/unknown"
    for name in ("p1/s.tif", "p2/s.tif", "t.tif"):
        write_stack(folder / name, 2)
    ids = read_catalog(str(tmp_path)).unknown("a").ids.tolist()
    assert "membership/a/test/unknown/p2/s#0002" in ids
    assert "t#0001" in ids
    assert accepted(submission(dict.fromkeys(ids, 0)), str(folder))
    assert not accepted(submission(dict.fromkeys(ids[1:], 0)), str(folder))


def test_pictures_are_not_opened(tmp_path, monkeypatch):
    for name in ("a.png", "b.JPG", "c.jpeg"):
        (tmp_path / name).write_bytes(b"x")
    opened: list[str] = []
    monkeypatch.setattr("gansfp.collection.submission.read_files", lambda uris: opened.extend(uris) or [])
    assert read_ids(str(tmp_path)) == ["a", "b", "c"]
    assert opened == []


@pytest.mark.parametrize(
    ("line", "ids", "hint"),
    [
        ("996,1", ["0996"], "996 may be 0996, whose zeros a spreadsheet has removed"),
        ("996.0,1", ["0996"], "a spreadsheet has made numbers of the ids; 996 may be 0996"),
        ("A,1", ["a"], "A may be a, in other upper and lower case"),
        ("test\\a,1", ["a"], "write / between folders, not \\; ids are file names"),
        ("test/a,1", ["a"], "ids are file names, or paths below the data folder"),
        ("a,1", ["test/a"], "the ids are paths, such as test/a"),
        ("a,1", ["a;x"], "the list of ids has semicolons, as in a;x; save it with commas"),
        ("s,1", ["s#0001", "s#0002"], "a file of several slices has an id for each of them, such as s#0001"),
    ],
)
def test_ids_that_nearly_fit_get_a_hint(line, ids, hint):
    first = problems(line.encode(), ids)[0]
    assert first.startswith(f"line 1: got id {line.partition(',')[0]!r}, expected an id of the set ({hint}")


def test_a_list_of_paths_or_with_semicolons_gets_a_hint(tmp_path):
    (tmp_path / "ids.txt").write_text("test/a.png\ntest/b.png\n")
    assert "(the ids are paths, such as test/a)" in problems(b"a,1\nb,0\n", read_ids(str(tmp_path / "ids.txt")))[0]
    (tmp_path / "ids.txt").write_text("a;x\nb;y\n")
    assert "has semicolons, as in a;x" in problems(b"a,1\nb,0\n", read_ids(str(tmp_path / "ids.txt")))[0]


def test_a_list_may_have_the_first_line_of_excel(tmp_path):
    (tmp_path / "ids.csv").write_text("sep=,\nimage_id,used\na,1\nb,0\n")
    assert read_ids(str(tmp_path / "ids.csv")) == ["a", "b"]
