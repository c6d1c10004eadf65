"""Dealing: whole patients, enough slices in every class; and reading folders of real slices."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from gansfp.errors import DataError
from gansfp.simulation.patients import deal, read_archive
from gansfp.simulation.phantom import phantoms


@pytest.mark.parametrize("seed", range(20))
def test_patients_stay_together_and_every_class_has_enough(seed):
    rng = np.random.default_rng(seed)
    patients = np.repeat([f"p{i}" for i in range(40)], rng.integers(1, 12, 40))
    total = len(patients)
    needs = {"a": total // 8, "b": total // 5, "c": total // 3}
    dealt = deal(patients, needs, rng)
    rows = np.concatenate(list(dealt.values()))
    assert sorted(rows.tolist()) == list(range(total))
    owners = [set(patients[class_rows]) for class_rows in dealt.values()]
    assert sum(map(len, owners)) == len(set.union(*owners)) == 40
    assert all(len(dealt[name]) >= needs[name] for name in needs)
    for class_rows in dealt.values():  # the first rows of a class come from all its patients, one from each
        firsts = patients[class_rows][: len(set(patients[class_rows]))]
        assert max(Counter(firsts.tolist()).values()) == 1


def test_patients_of_one_size_are_dealt_without_loss():
    patients = np.repeat([f"p{i}" for i in range(8)], 2)
    dealt = deal(patients, {"a": 3, "b": 5, "c": 6}, np.random.default_rng(0))
    assert [len(class_rows) for class_rows in dealt.values()] == [4, 6, 6]


@pytest.mark.parametrize("patients", [["a"] * 50 + ["b"] * 50, [str(i) for i in range(20)]])
def test_with_too_few_patients_or_slices_the_error_names_the_need(patients):
    with pytest.raises(DataError, match=r"needed at least 30 of 3 patients or more.*10 used, 10 not_used, 10 other"):
        deal(np.array(patients), {"used": 10, "not_used": 10, "other": 10}, np.random.default_rng(0))


def test_a_real_folder_with_groups_and_a_bad_file(tmp_path):
    pixels, _ = phantoms(3, 2, seed=0)
    (tmp_path / "deep").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "deep" / f"s{number}.png")
    (tmp_path / "deep" / "bad.png").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image either")
    (tmp_path / "groups.csv").write_text("image_id,group\ns0,A\ndeep/s1,A\ns2,B\ns3,B\n")
    lines: list[str] = []
    archive = read_archive(str(tmp_path), most=100, progress=lines.append)
    assert archive.patients.tolist() == ["A", "A", "B", "B", "deep/s4", "deep/s5"]
    assert np.array_equal(archive.pixels, pixels)
    assert len(lines) == 1
    assert "1 images left out" in lines[0]
    assert "bad.png" in lines[0]


def test_a_large_folder_gives_as_many_patients_as_possible(tmp_path):
    pixels, _ = phantoms(1, 1, seed=0)
    for patient, count in (("a", 20), ("b", 2), ("c", 1)):
        for number in range(count):
            Image.fromarray(pixels[0]).save(tmp_path / f"{patient}{number}.png")
    names = sorted(path.stem for path in tmp_path.iterdir())
    (tmp_path / "groups.csv").write_text("image_id,group\n" + "".join(f"{name},{name[0]}\n" for name in names))
    assert sorted(read_archive(str(tmp_path), most=6).patients.tolist()) == ["a", "a", "a", "b", "b", "c"]


def test_folders_without_images_or_with_bad_ones_only(tmp_path):
    with pytest.raises(DataError, match="no images found in"):
        read_archive(str(tmp_path), most=5)
    with pytest.raises(DataError, match="no images found in"):
        read_archive(str(tmp_path / "nowhere"), most=5)
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 1 images in"):
        read_archive(str(tmp_path), most=5)


def test_dicom_files_are_grouped_by_patient_and_what_is_no_ct_is_left_out(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_files import chest, dicom

    for number in range(6):
        (tmp_path / f"IM{number:04d}").write_bytes(dicom(chest(64, number) + 1024, PatientID=f"MRN{77 + number // 2}"))
    (tmp_path / "IM0009").write_bytes(dicom(chest(64) + 1024, PatientID="MRN99", Modality="MR"))
    lines: list[str] = []
    archive = read_archive(str(tmp_path), most=100, progress=lines.append)
    assert archive.patients.tolist() == [f"patient-000{n}" for n in (1, 1, 2, 2, 3, 3)]
    assert lines == [
        f"1 images left out that cannot be read, such as {tmp_path}/IM0009: Modality is 'MR', and only CT has HU; "
        "say what the numbers are with --sixteen-bit"
    ]
