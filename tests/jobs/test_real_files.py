"""A collection as a hospital has it: DICOM of several transfer syntaxes, from catalog to predictions; and --dry-run."""

import csv
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import status_of

from jobs import audit

pydicom = pytest.importorskip("pydicom")

SYNTAXES = ("ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "RLELossless", "JPEGLSLossless", "JPEG2000Lossless")


def as_dicom(pixels: np.ndarray, patient: str, number: int) -> pydicom.Dataset:
    """The CT slice whose lung window is `pixels`, (256, 256) uint8, in one of the transfer syntaxes."""
    syntax = getattr(pydicom.uid, SYNTAXES[number % len(SYNTAXES)])
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax if not syntax.is_compressed else pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, f"1.2.826.{number + 1}"
    dataset.PatientID, dataset.PatientName = patient, f"Name^Of {patient}"
    dataset.SeriesInstanceUID = "1.2.840.7." + str(int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16))
    dataset.Modality, dataset.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows = dataset.Columns = 256
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-2000", "1", "HU"
    units = np.rint(pixels * (1500 / 255) - 1350)
    dataset.PixelData = (units + 2000).astype(np.uint16).tobytes()
    if syntax.is_compressed:
        dataset.compress(syntax)
    return dataset


@pytest.fixture(scope="module")
def hospital(challenge, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The set `warp` with real slices as DICOM without endings, and no groups.csv; and the patient of each slice."""
    with open(challenge / "groups.csv", newline="") as file:
        patients = {row["image_id"]: f"MRN-{row['group']}-7731" for row in csv.DictReader(file)}
    data = tmp_path_factory.mktemp("hospital") / "data"
    chosen: dict[str, str] = {}
    for number, path in enumerate(sorted((challenge / "membership/warp").rglob("*.png"))):
        place = data / path.relative_to(challenge)
        place.parent.mkdir(parents=True, exist_ok=True)
        if "generated" in path.parts:
            place.write_bytes(path.read_bytes())
            continue
        patient = chosen[path.stem] = (
            patients.get(path.stem) or patients[str(path.relative_to(challenge).with_suffix(""))]
        )
        as_dicom(np.asarray(Image.open(path)), patient, number).save_as(place.with_suffix(""), enforce_file_format=True)
    (data / "membership/warp/test/truth.csv").write_bytes((challenge / "membership/warp/test/truth.csv").read_bytes())
    return data, chosen


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_here", "serial_trials")
def test_dicom_series_to_predictions_by_patient(hospital, tmp_path, capfd, caplog):
    data, patients = hospital
    options = ["--backbones", "highpass-w15-32", "--views", "full", "--permutations", "60", "--max-actors", "1"]
    status = status_of(audit.main, ["--data", str(data), "--work", str(tmp_path / "work"), *options])
    done = capfd.readouterr()
    said = done.out + done.err + caplog.text
    assert status == 0, said
    assert "Traceback" not in said
    assert "read as DICOM HU: " in said
    report = json.loads((tmp_path / "work/results/metrics.json").read_text())
    unknown = [path.name for path in (data / "membership/warp/test/unknown").iterdir()]
    one_set = report["membership"]["sets"]["warp"]
    assert (one_set["n"], one_set["n_groups"]) == (len(unknown), len({patients[name] for name in unknown}))
    assert one_set["auc"]["value"] > 0.9  # as for the same slices as PNG files
    assert report["run"]["readings"]["DICOM HU"] == len(patients)
    predictions = dict(csv.reader((tmp_path / "work/results/membership-warp.csv").read_text().splitlines()))
    assert set(predictions) == set(unknown)

    catalog = pq.read_table(tmp_path / "work/catalog.parquet").to_pylist()
    groups = defaultdict(set)
    for row in catalog:
        if row["format"] == "DICOM":
            assert (row["status"], row["reading"]) == ("ok", "DICOM HU")
            groups[row["group"]].add(patients[row["image_id"]])
    assert all(len(of_group) == 1 for of_group in groups.values())
    assert len(groups) == len(set(patients.values()))
    for path in (tmp_path / "work").rglob("*"):  # no identifier of a patient is in any output, nor its plain digest
        if path.is_file():
            content = path.read_bytes()
            for patient in set(patients.values()):
                assert patient.encode() not in content, path
                assert hashlib.sha256(patient.encode()).hexdigest()[:16].encode() not in content, path
    assert "MRN-" not in said


def test_dry_run_says_what_everything_is_taken_for(hospital, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gansfp.runtime.cluster.start_ray", lambda *_: pytest.fail("started Ray"))
    data, patients = hospital
    audit.main(["--data", str(data), "--dry-run"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    used = sorted((data / "membership/warp/train/used").iterdir())
    first = next(number for number, line in enumerate(lines) if line.startswith("membership/warp/train/used: "))
    assert lines[first] == f"membership/warp/train/used: {len(used)} files, from membership/warp/train/used"
    opened = min(len(used), 100)
    assert lines[first + 1] == f"  sizes 256x256 ({opened}); modes MONOCHROME2 ({opened})"
    assert lines[first + 2] == f"  read as DICOM HU ({opened})"
    patients_of_used = {patients[path.name] for path in used}
    assert lines[first + 3] == f"  groups: {len(patients_of_used)} by what the opened files say"
    assert "MRN-" not in text
    assert sorted(path.name for path in data.iterdir()) == ["membership"]  # nothing was written


def test_dry_run_names_what_is_refused(tmp_path, capsys):
    folder = tmp_path / "attribution/test"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16)).save(folder / "b.png")
    Image.new("L", (64, 64), 7).save(folder / "c.png")
    audit.main(["--data", str(tmp_path), "--dry-run"])
    text = capsys.readouterr().out
    assert "  refused: 2 of 3\n    1 x empty file\n    1 x numbers from " in text
    assert "say what they are with --sixteen-bit" in text
    audit.main(["--data", str(tmp_path), "--dry-run", "--sixteen-bit", "hu+1024"])
    assert "read as PNG 16-bit hu+1024 (1), PNG grey (1)" in capsys.readouterr().out
