"""gansfp.collection.catalog: files of several slices, numbers of 16 bits, patients of DICOM files, replaced files."""

import hashlib
import io
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gansfp.collection import catalog
from gansfp.collection.catalog import read_catalog, update_catalog
from gansfp.errors import DataError
from gansfp.images.slices import Source, load

RNG = np.random.default_rng(0)
SIDE = 256


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def encode(image, kind="PNG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def stack(*pictures):
    first, *others = map(Image.fromarray, pictures)
    return encode(first, "TIFF", save_all=True, append_images=others)


PICTURES = RNG.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)


def test_each_page_of_a_stack_is_a_slice(tmp_path):
    write(tmp_path / "membership/a/train/used/stack.tif", stack(*PICTURES))
    write(tmp_path / "membership/a/train/used/one.png", encode(PICTURES[0]))
    write(tmp_path / "membership/a/train/not_used/copy.tif", stack(*PICTURES[:2]))
    catalog = read_catalog(str(tmp_path))
    assert catalog.ids.tolist() == ["copy#0001", "copy#0002", "one", "stack#0001", "stack#0002", "stack#0003"]
    assert catalog.column("name").tolist() == ["copy"] * 2 + ["one"] + ["stack"] * 3
    groups = catalog.groups().tolist()
    assert groups[0] == groups[1] != groups[2]
    assert len(set(groups)) == 3
    assert len(set(catalog.hashes().values())) == 6
    assert catalog.duplicates() == []  # pages of one file are not copies of each other
    pixels = [load(source).pixels for source in catalog.sources()]
    for page, expected in zip(pixels, PICTURES[[0, 1, 0, 0, 1, 2]], strict=True):
        assert (page == expected).all()
    assert load(Source(catalog.column("uri")[3])).error == "holds 3 frames, expected one slice a file"


def test_two_stacks_of_one_patient_are_one_group(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / f"membership/a/train/used/{name}.tif", stack(*PICTURES))
    ids = read_catalog(str(tmp_path)).ids.tolist()
    (tmp_path / "groups.csv").write_text("image_id,group\n" + "".join(f"{id},{id[0] < 'c'}\n" for id in ids))
    assert read_catalog(str(tmp_path)).groups().tolist() == ["True"] * 6 + ["False"] * 3


def test_the_same_stack_in_two_classes_is_reported(tmp_path):
    write(tmp_path / "membership/a/train/used/x.tif", stack(*PICTURES))
    write(tmp_path / "membership/a/train/not_used/y.tif", stack(*PICTURES))
    (finding,) = read_catalog(str(tmp_path)).duplicates()
    assert (finding.kind, finding.count) == ("used / not used", 3)


def test_groups_csv_may_name_the_file_of_a_stack(tmp_path):
    write(tmp_path / "attribution/test/x.tif", stack(*PICTURES))
    (tmp_path / "groups.csv").write_text("image_id,group\nx,p1\n")
    assert read_catalog(str(tmp_path)).groups().tolist() == ["p1"] * 3


def test_a_page_must_not_have_the_id_of_another_file(tmp_path):
    write(tmp_path / "attribution/test/x.tif", stack(*PICTURES))
    write(tmp_path / "attribution/test/x#0002.png", encode(PICTURES[0]))
    with pytest.raises(DataError, match=r"two slices have the image_id 'x#0002'"):
        read_catalog(str(tmp_path))


@pytest.mark.parametrize("part", [1, 2, 3, 7])
def test_a_large_catalog_is_made_and_digested_in_parts(tmp_path, monkeypatch, part):
    for number in range(6):
        write(tmp_path / f"attribution/test/{number}.png", encode(RNG.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)))
    whole = read_catalog(str(tmp_path))
    names = ("image_id", "content", "task", "set", "split", "role", "generator", "group")
    rows = [{"sha256" if name == "content" else name: row[name] for name in names} for row in whole.table.to_pylist()]
    monkeypatch.setattr(catalog, "_PART", part)
    in_parts = read_catalog(str(tmp_path))
    assert in_parts.table.equals(whole.table)
    assert in_parts.digest() == whole.digest() == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    nothing = in_parts.where([False] * 6)
    assert nothing.digest() == hashlib.sha256(b"[]").hexdigest()


def test_a_work_remembers_what_16_bits_are(tmp_path):
    data, work = tmp_path / "data", str(tmp_path / "work")
    write(data / "attribution/test/x.png", encode(RNG.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)))
    first = update_catalog(str(data), work)
    assert first.column("status").tolist() == ["unreadable"]
    assert "--sixteen-bit" in first.column("error")[0]
    assert load(first.sources()[0]).status == "failed"  # the embedding refuses it too
    second = update_catalog(str(data), work, sixteen_bit="hu+1024")
    assert second.column("reading").tolist() == ["PNG 16-bit hu+1024"]
    assert load(second.sources()[0]).status == "ok"
    third = update_catalog(str(data), work)  # another command of the same audit
    assert third.table.equals(second.table)
    assert third.digest() == second.digest() != first.digest()
    fourth = update_catalog(str(data), work, sixteen_bit="full")
    assert fourth.hashes() != third.hashes()
    assert any("fewer than 32 grey levels" in finding for finding in fourth.findings)


def test_a_file_that_was_replaced_by_one_of_equal_size_and_time_is_read_again(tmp_path):
    data, work = tmp_path / "data", str(tmp_path / "work")
    path = data / "attribution/test/x.png"
    write(path, encode(Image.new("L", (9, 9), 1)))
    before, status = update_catalog(str(data), work), path.stat()
    (tmp_path / "other.png").write_bytes(encode(Image.new("L", (9, 9), 2)))
    os.utime(tmp_path / "other.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(tmp_path / "other.png", path)
    after = update_catalog(str(data), work)
    assert path.stat().st_size == status.st_size
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert after.hashes() != before.hashes()


def dicom(patient, series, number):
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, f"1.2.{number + 1}"
    dataset.PatientID, dataset.SeriesInstanceUID, dataset.Modality = patient, series, "CT"
    dataset.Rows = dataset.Columns = 64
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
    dataset.PixelData = np.random.default_rng(number).choice([-1000, -850, 40], (64, 64)).astype(np.int16).tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_dicom_patients_are_groups_and_their_numbers_are_nowhere(tmp_path):
    data = tmp_path / "data"
    for number in range(6):
        patient, series = f"MRN{1234567 + number // 2}", f"1.2.840.99.{number // 2}"
        write(data / f"attribution/test/{number}.dcm", dicom(patient, series, number))
    write(data / "attribution/test/picture.png", encode(PICTURES[0]))
    catalogs = [update_catalog(str(data), str(tmp_path / work)) for work in ("w1", "w2")]
    groups = catalogs[0].groups().tolist()
    assert [groups.index(group) for group in groups] == [0, 0, 2, 2, 4, 4, 6]
    assert groups[6] == "picture"
    assert groups[:6] == [f"patient-{patient}" for patient in catalogs[0].column("patient")[:6]]
    assert catalogs[0].table.equals(catalogs[1].table)  # the same DATA gives the same audit
    assert update_catalog(str(data), str(tmp_path / "w1")).table.equals(catalogs[0].table)
    written = (tmp_path / "w1/catalog.parquet").read_bytes()
    assert b"MRN" not in written
    assert b"1.2.840.99" not in written


def test_the_salt_is_a_file_of_data_and_in_no_output(tmp_path):
    data, work = tmp_path / "data", str(tmp_path / "work")
    write(data / "attribution/test/a.dcm", dicom("P1", "1.2.1", 1))
    write(data / "attribution/test/b.dcm", dicom("P2", "1.2.2", 2))
    first = update_catalog(str(data), work)
    known = {text: value for text, value in first.table.to_pylist()[1].items() if isinstance(value, str)}
    metadata = list(pq.read_table(tmp_path / "work/catalog.parquet").schema.metadata.values())
    for key in (
        b"",
        *metadata,
        *map(bytes.fromhex, [known["sha256"], known["content"]]),
        *map(str.encode, known.values()),
    ):
        digest = hashlib.blake2b(b"P2", key=key[:64], digest_size=10).hexdigest()
        assert digest != known["patient"]
    write(data / "attribution/test/a.dcm", dicom("P1", "1.2.1", 7))  # another salt: all digests are made again
    second = update_catalog(str(data), work)
    assert not set(first.groups().tolist()) & set(second.groups().tolist())
    assert len(set(second.groups().tolist())) == 2


def test_a_new_file_of_a_known_patient_joins_the_group(tmp_path):
    data, work = tmp_path / "data", str(tmp_path / "work")
    for number in range(4):
        write(data / f"attribution/test/{number}.dcm", dicom(f"P{number % 2}", f"1.2.{number % 2}", number))
    update_catalog(str(data), work)
    write(data / "attribution/test/9.dcm", dicom("P0", "1.2.0", 9))
    groups = update_catalog(str(data), work).groups().tolist()
    assert [groups.index(group) for group in groups] == [0, 1, 0, 1, 0]


def test_rows_can_be_read_by_others(tmp_path):
    write(tmp_path / "data/attribution/test/x.tif", stack(*PICTURES))
    update_catalog(str(tmp_path / "data"), str(tmp_path / "work"))
    rows = pq.read_table(tmp_path / "work/catalog.parquet").to_pylist()
    assert [(row["frame"], row["frames"], row["reading"]) for row in rows] == [
        (number, 3, "TIFF grey") for number in (1, 2, 3)
    ]
