"""Decodes compressed frames in a process of its own: frame_decoder_worker.py.

Decoders in C and C++ end their process on some damaged frames (GDCM), or do not return (CharLS). Here they end, or
block, a process that does nothing else, and the next frame gets a new one.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping

from gansfp.images.image_file import NoSliceError

SECONDS = 8.0  # for a frame; one of 512x512 pixels takes some milliseconds
_SECONDS_TO_START = 120.0
_WORKER = "gansfp.images.frame_decoder_worker"


class FrameDecoder:
    """The process, started with the first frame. It ends with the process that started it: its input ends then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0  # the id of the process that started it; a fork of that process starts its own

    def decode(self, frame: bytes, options: Mapping[str, str | int]) -> bytes:
        """Returns the pixel cells of a frame, in this machine's byte order.

        options: of pydicom's Decoder.as_array, and `syntax`, whose decoder is taken. Raises NoSliceError if the decoder
        fails, or takes longer than SECONDS.
        """
        request = json.dumps({**options, "length": len(frame)}).encode() + b"\n" + frame
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            try:
                length = self._exchange(request, 8, SECONDS)
                cells = self._exchange(b"", int.from_bytes(length, "big"), SECONDS)
            except TimeoutError:
                raise NoSliceError(f"a compressed frame that took longer than {SECONDS:g} s to decode") from None
        if not cells:
            raise NoSliceError(f"a compressed frame that {options['decoding_plugin']} cannot decode")
        return cells

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _start(self) -> None:
        self.stop()
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            started = self._exchange(b"", 1, _SECONDS_TO_START)
        except TimeoutError:
            started = b""
        if not started:
            raise NoSliceError("the process that decodes compressed frames does not start")

    def _exchange(self, request: bytes, length: int, seconds: float) -> bytes:
        """Writes a request, and returns a reply of some bytes, b"" if the process ends.

        Raises TimeoutError where the process takes too long; it is ended.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return b""
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            reply = process.stdout.read(length)
        except OSError:  # the process has ended
            reply = b""
        finally:
            timer.cancel()
        if len(reply) == length:
            return reply
        self.stop()
        if late.is_set():
            raise TimeoutError
        return b""


FRAME_DECODER = FrameDecoder()
atexit.register(FRAME_DECODER.stop)
