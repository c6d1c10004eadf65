"""The process of frame_decoder.py: reads compressed frames from standard input, writes their pixels to standard output.

A request is a line of JSON, options of pydicom's Decoder.as_array with `syntax` and `length`, and a frame of that
length. A reply is the number of bytes, as 8 bytes in big endian, and the pixel cells; 0 bytes if the decoder fails.
"""

import io
import json
import os
import sys
from typing import BinaryIO


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answers requests until there are no more."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    replies.write(b"\1")  # ready
    replies.flush()
    while line := requests.readline():
        options = json.loads(line)
        frame = requests.read(options.pop("length"))
        try:
            cells, _ = get_decoder(options.pop("syntax")).as_array(encapsulate([frame]), **options)
            reply = cells.tobytes()
        except Exception:  # pydicom passes on any exception of a decoder
            reply = b""
        replies.write(len(reply).to_bytes(8, "big") + reply)
        replies.flush()


def main() -> None:
    """Serves, and keeps what decoders print out of the replies."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = io.StringIO()
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
