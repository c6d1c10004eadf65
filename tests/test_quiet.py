"""gansfp.quiet: nothing reaches file descriptor 2 inside the block, everything does before and after it."""

import os
import sys

import pytest

from gansfp.quiet import discard_stderr


def test_stderr_is_open_again_after_an_error(capfd):
    def fail_silently():
        with discard_stderr():
            os.write(2, b"inside")
            raise ValueError("no cluster")

    sys.stderr.write("before ")
    with pytest.raises(ValueError, match="no cluster"):
        fail_silently()
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"
