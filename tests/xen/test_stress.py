"""Saves on real Xen that are given up at random moments, dozens of them, one after the other on the same guest.

Nothing is injected into the commands: signals, a reader that goes away, a disk that is too small, a domain that is
paused under the save. What was drawn is in the failure's notes; PYSAVE_STRESS_SEED draws it again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from launcher import Popen
from test_faults import next_save_is_whole
from xen_lab import Guest, domid_of, must, no_partial_files, run, state_of

RUNS = 24
LONGEST_SAVE_S = 6.0
"""Signals come until then: under emulation a save of the lab's guest takes some seconds, and some are done before."""

pytestmark = pytest.mark.slow
kinds = pytest.mark.parametrize("guest", [("pv", 1), ("pvh", 1)], indirect=True, ids=["pv", "pvh"])

DONE, IO, INTERRUPTED = 0, 5, 130


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("PYSAVE_STRESS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    print(f"PYSAVE_STRESS_SEED={seed}")
    return random.Random(seed)


def options(chance: random.Random) -> list[str]:
    """Some way of saving; the domain goes on in any case."""
    live = chance.choice(
        [[], ["--live"], ["--live", "--dirty", "digest"], ["--live", "--downtime-ms", "500"]]
    )
    more = chance.choice([[], ["--compress", "zstd"], ["--format", "draft-b"], ["--digest", "none"]])
    return ["-c", *live, *more]


def a_signal(guest: Guest, images: Path, chance: random.Random) -> tuple[int, str]:
    """SIGINT or SIGTERM after a random time; a second one at once, in some."""
    after_s, number = chance.uniform(0.3, LONGEST_SAVE_S), chance.choice([signal.SIGINT, signal.SIGTERM])
    command = ["pysave", *options(chance), guest.name, str(images / "a.img")]
    save = Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        _, said = save.communicate(timeout=after_s)
    except subprocess.TimeoutExpired:
        save.send_signal(number)
        if chance.random() < 0.3:
            save.send_signal(number)
        _, said = save.communicate(timeout=300)
    # The last: it came while Python was still loading the command.
    assert save.returncode in (DONE, INTERRUPTED, -number), said
    return save.returncode, f"{command} {number.name} after {after_s:.2f} s: {said}"


def a_reader_that_goes(guest: Guest, images: Path, chance: random.Random) -> tuple[int, str]:
    """The pipe is closed at a random byte, which may lie behind the last."""
    most = chance.choice([0, 1, chance.randrange(1 << 20), chance.randrange(guest.memory_mib << 20), 1 << 40])
    command = ["pysave", *options(chance), guest.name, "-"]
    read_end, write_end = os.pipe()
    save = Popen(command, stdout=write_end, stderr=subprocess.PIPE, text=True, errors="replace")
    os.close(write_end)
    left = most
    while left and (got := len(os.read(read_end, min(left, 1 << 20)))):
        left -= got
    os.close(read_end)
    _, said = save.communicate(timeout=300)
    assert save.returncode in (DONE, IO), said
    return save.returncode, f"{command} {most} bytes read: {said}"


def a_disk_that_is_too_small(guest: Guest, images: Path, chance: random.Random) -> tuple[int, str]:
    """A file system of random size, of which somebody takes a part once room has been looked for."""
    small = images / "small"
    small.mkdir()
    size_mib = guest.memory_mib + chance.randrange(4, 64)
    must("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "none", str(small))
    command = ["pysave", *options(chance), guest.name, str(small / "a.img")]
    try:
        save = Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        assert save.stderr is not None
        said = save.stderr.readline()  # its first step, which comes after room was looked for
        # There may be less room left than is to be taken.
        with (small / "other").open("wb") as other, contextlib.suppress(OSError):
            os.posix_fallocate(other.fileno(), 0, chance.randrange(1, guest.memory_mib) << 20)
        _, rest = save.communicate(timeout=300)
        assert save.returncode in (DONE, IO), said + rest
        names = {path.name for path in small.iterdir()} - {"other"}
        assert names == ({"a.img"} if save.returncode == DONE else set()), said + rest
        return save.returncode, f"{command} on {size_mib} MiB: {said}{rest}"
    finally:
        must("umount", str(small))
        small.rmdir()


FAULTS: list[Callable[[Guest, Path, random.Random], tuple[int, str]]] = [
    a_signal,
    a_signal,
    a_reader_that_goes,
    a_disk_that_is_too_small,
]


@kinds
def test_dozens_of_saves_that_are_given_up_harm_nothing(guest: Guest, images: Path, chance: random.Random):
    before, domid = guest.state(), guest.domid
    codes = []
    for number in range(RUNS):
        fault = chance.choice(FAULTS)
        told = ""
        try:
            code, told = fault(guest, images, chance)
            codes.append(code)
            assert "Traceback" not in told
            assert domid_of(guest.name) == domid
            assert not set(state_of(guest.name)) & set("psd"), "the guest does not run"
            no_partial_files(images)
            assert (images / "a.img").exists() == (fault is a_signal and code == DONE)
            (images / "a.img").unlink(missing_ok=True)
            assert "cap" not in run("xenstore-list", f"/local/domain/{domid}/pysave").stdout.split()
        except BaseException as error:
            error.add_note(f"run {number}, {fault.__name__}: {told}")
            raise
        if number % 6 == 5:
            guest.goes_on(before)
    assert set(codes) - {DONE}, "every save was done before anything happened to it"
    guest.goes_on(before)
    next_save_is_whole(guest, images)
