"""Standard output as the place of an image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

PROGRAM = """
import os, sys
synced = []
real = os.fsync
os.fsync = lambda fd: (synced.append(fd), real(fd))
from saverestore.transport.descriptor import Descriptor
output = Descriptor()
output.sink.write(b"image")
print(output.free_bytes() is None, file=sys.stderr)
output.sync()
output.publish()
print(synced, file=sys.stderr)
"""


def run(stdout: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return done.stderr.splitlines()


def test_a_file_that_the_shell_opened_is_brought_to_the_disk_and_its_room_is_known(tmp_path):
    with (tmp_path / "out.img").open("wb") as file:
        assert run(file.fileno()) == ["False", "[1]"]
    assert (tmp_path / "out.img").read_bytes() == b"image"


def test_of_a_pipe_neither_can_be_asked():
    read_end, write_end = os.pipe()
    assert run(write_end) == ["True", "[1]"]
    os.close(write_end)
    assert os.read(read_end, 100) == b"image"
    os.close(read_end)
