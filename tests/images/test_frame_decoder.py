"""The process that decodes compressed frames: it crashes, hangs and ends, and the next frame is decoded."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from dicom_files import chest, dataset, encode
from processes import command

from gansfp.images import frame_decoder
from gansfp.images.frame_decoder import FRAME_DECODER, FrameDecoder
from gansfp.images.image_file import NoSliceError
from gansfp.images.slices import decode

ROOT = Path(__file__).parents[2]
J2K = "1.2.840.10008.1.2.4.90"
LOSSLESS_JPEG = bytes.fromhex(  # 16x16 zeros of 16 bits, made with GDCM
    "ffd8ffc3000b100010001001011100ffc4001500010100000000000000000000000000000010ffda000801010001000080000000000000"
    "000000000000000000000000000000000000000000000000007fffd9"
)


@pytest.fixture(scope="module")
def file() -> bytes:
    image = dataset((chest() + 1024).astype(np.uint16))
    image.compress(J2K, generate_instance_uid=False)
    return encode(image)


def options(plugin="pillow", syntax=J2K, side=16):
    return {
        **{"syntax": syntax, "decoding_plugin": plugin, "rows": side, "columns": side, "number_of_frames": 1},
        **{"samples_per_pixel": 1, "photometric_interpretation": "MONOCHROME2", "pixel_representation": 0},
        **{"bits_allocated": 16, "bits_stored": 16},
    }


def test_a_decoder_that_crashes(file):
    """GDCM 3.2 aborts its process where a marker of a lossless JPEG frame is damaged."""
    pytest.importorskip("gdcm")
    lossless = options("gdcm", "1.2.840.10008.1.2.4.70")
    assert FRAME_DECODER.decode(LOSSLESS_JPEG, lossless) == bytes(512)
    damaged = bytearray(LOSSLESS_JPEG)
    damaged[15] = 0
    for _ in range(2):
        with pytest.raises(NoSliceError, match="a compressed frame that gdcm cannot decode"):
            FRAME_DECODER.decode(bytes(damaged), lossless)
        assert FRAME_DECODER._process is None
        assert decode(file).status == "ok"


def test_a_decoder_that_takes_too_long(file, monkeypatch):
    decode(file)
    monkeypatch.setattr(frame_decoder, "SECONDS", 0)
    assert decode(file).error == "a compressed frame that took longer than 0 s to decode"
    monkeypatch.undo()
    assert decode(file).status == "ok"


def test_a_process_that_somebody_ended(file):
    assert decode(file).status == "ok"
    process = FRAME_DECODER._process
    process.kill()
    process.wait()
    assert decode(file).status == "ok"
    assert FRAME_DECODER._process.pid != process.pid


def test_one_process_for_all_threads(file):
    decode(file)
    process, results = FRAME_DECODER._process, []
    threads = [threading.Thread(target=lambda: results.append(decode(file).pixels)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all((pixels == results[0]).all() for pixels in results)
    assert FRAME_DECODER._process is process


def test_a_process_that_does_not_start(monkeypatch):
    monkeypatch.setattr(frame_decoder, "_WORKER", "gansfp.images.no_such_module")
    with pytest.raises(NoSliceError, match="does not start"):
        FrameDecoder().decode(b"frame", options())
    monkeypatch.undo()
    monkeypatch.setattr(frame_decoder, "_SECONDS_TO_START", 0)
    with pytest.raises(NoSliceError, match="does not start"):
        FrameDecoder().decode(b"frame", options())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_starts_a_process_of_its_own(file):
    decode(file)
    process, child = FRAME_DECODER._process, os.fork()
    if not child:
        ok = decode(file).status == "ok" and FRAME_DECODER._process.pid != process.pid
        FRAME_DECODER.stop()
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert decode(file).status == "ok"
    assert FRAME_DECODER._process is process


@pytest.mark.parametrize("end", ["", "os._exit(0)"])
def test_it_ends_with_the_process_that_started_it(file, end, tmp_path):
    (tmp_path / "file.dcm").write_bytes(file)
    code = f"""
import os, sys
from gansfp.images.frame_decoder import FRAME_DECODER
from gansfp.images.slices import decode
assert decode(open(sys.argv[1], "rb").read()).status == "ok"
print(FRAME_DECODER._process.pid, flush=True)
{end}
"""
    arguments = [sys.executable, "-c", code, str(tmp_path / "file.dcm")]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    deadline = time.monotonic() + 10
    while "frame_decoder_worker" in command(int(ended.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
