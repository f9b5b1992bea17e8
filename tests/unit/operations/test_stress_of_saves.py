"""Saves in which one thing fails at a random place, or a signal comes at a random line: hundreds of them.

After each: the first cause is told, the domain is as it was, there is no image or a whole one, and no thread, mapping
or descriptor is left. The seed is in the failure's notes.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost
from stress import Fault, Lines, forget, nothing_is_left, patched, seeded

from saverestore.engine import dirty
from saverestore.engine.policy import Limits, OnStall
from saverestore.engine.progress import SaveReport, Silence
from saverestore.errors import Interrupted, fact_of
from saverestore.guest.ports import PageBatch
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.stream import digest_written
from saverestore.stream.codecs import Coding
from saverestore.stream.survey import survey
from saverestore.stream.writer import LibxcWriter
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.toolstack.condition import Condition, Found
from saverestore.transport.opening import open_image
from saverestore.transport.zstd_sink import ZstdSink

BLOCKS, FAULTS, SIGNALS = 4, 50, 25
PFNS = 300


@dataclass
class Setup:
    """A domain, how it is to be saved, and what it writes itself meanwhile."""

    guest: MemorySave
    request: SaveRequest
    folder: Path
    host: FakeHost
    written: list[np.ndarray]

    @property
    def image(self) -> Path:
        return Path(self.request.image)


def setup(chance: random.Random, folder: Path) -> Setup:
    kind = chance.choice([MemoryDomain.pvh, MemoryDomain.pv])
    guest = MemorySave(kind(PFNS), log_dirty=chance.random() < 0.8)
    live = chance.random() < 0.7
    form = chance.choice(["plain", "plain", "zstd", "draft-b"])
    codecs = ["zstd", "deflate", "none", *(["xor"] if live else [])]
    limits = Limits(
        few_pages=5,
        max_rounds=6,
        on_stall=OnStall.THROTTLE if live and chance.random() < 0.5 else OnStall.STOP,
    )
    request = SaveRequest(
        "web1",
        str(folder / "out.img"),
        final_state=chance.choice(list(FinalState)),
        live=live,
        dirty=chance.choice(["auto", "digest"]),
        limits=limits,
        digest=chance.choice(["xxh3", "sha256", "none"]),
        compress=1 if form == "zstd" else None,
        coding=Coding.parse(chance.choice(codecs)) if form == "draft-b" else None,
        overwrite=chance.random() < 0.3,
    )
    found = Setup(guest, request, folder, FakeHost(guest, batch_pfns=64), [])
    plain = guest.domain.data_pfns()

    def write() -> None:
        if not guest.domain.suspended:
            found.written.append(plain[: 100 * guest.domain.cpu_percent // 100])
            guest.domain.write(found.written[-1], len(found.written))

    for number in range(6):
        guest.moments.on("check_layout", number, write)
    condition = chance.choice([None, None, None, *CONDITIONS])
    guest.moments.on("resume", 0, lambda: setattr(found.host, "found", condition))
    return found


CONDITIONS = [
    Found(Condition.CRASHED, "has crashed"),
    Found(Condition.STOPPED, "is rebooting"),
    Found(Condition.GONE, "is gone"),
    Found(Condition.DYING, "is being destroyed"),
    Found(Condition.PAUSED, "is paused"),
]
"""What else a domain may be found as when a save has failed."""


def assert_account_is_true(setup: Setup, error: BaseException, report: SaveReport) -> None:
    """What error and report say of the domain is what it is."""
    told = fact_of(error)
    if "web1 (domain 7)" not in told:  # it failed before the domain was looked at, or touched
        return
    wanted = setup.host.found or Found(Condition.RUNNING, "is running")
    assert told.count(wanted.what) == 1, told
    states = {wanted.condition.name}
    if wanted.condition is Condition.RUNNING:
        states.add("UNTOUCHED")
    assert report.domain_state.name in states


MOMENTS = (
    "open_log_dirty",
    "static_records",
    "memory_records",
    "types_of",
    "read_pages",
    "check_layout",
    "log_dirty.take",
    "throttle.limit",
    "suspend",
    "suspended",
    "end_records",
)
"""Stages that are calls to the guest."""

PLACES = {
    "copy": (PageBatch, "copy_data", False),
    "page digests": (dirty, "page_digests", False),
    "digest": (digest_written.WrittenDigest, "_take", False),
    "code": (LibxcWriter, "prepare_pages", False),
    "compress": (ZstdSink, "_compress", False),
    "record": (LibxcWriter, "record", False),
    "write": (os, "writev", True),
    "fsync": (os, "fsync", True),
    "link": (os, "link", True),
    "statfs": (os, "fstatvfs", True),
    "stat": (Path, "lstat", True),
    "rename": (Path, "rename", True),
}
"""Other stages: where they are, and whether only the system could fail there."""


def put(fault: Fault, stage: str, setup: Setup, patch: pytest.MonkeyPatch) -> None:
    """Have the stage fail."""
    if stage in MOMENTS:

        def at(name: str, _: int) -> None:
            if name == stage:
                fault.reached()

        setup.guest.moments.on_every(at)
        return
    where, name, _ = PLACES[stage]
    patch.setattr(where, name, fault.before(getattr(where, name)))


def assert_left_right(setup: Setup, before: np.ndarray, error: BaseException | None) -> None:
    """The domain is what it was, or what was asked for, and there is no image or a whole one."""
    guest, domain, request = setup.guest, setup.guest.domain, setup.request
    forget(error)
    assert guest.buffers.nr_open == 0, "pages are still mapped"
    assert domain.dirty is None, "log-dirty is on"
    assert domain.cpu_percent == 100, "the domain is slowed down"
    names = [path.name for path in setup.folder.iterdir()]
    if error is None:
        assert names == [setup.image.name]
        assert domain.suspended == (request.final_state is FinalState.DESTROY)
        assert setup.host.toolstack.destroyed == (request.final_state is FinalState.DESTROY)
        with open_image(request.image) as source:
            assert survey(source).error is None
    else:
        assert names == []
        assert not domain.suspended, "the domain stands still"
        assert setup.host.toolstack.destroyed == 0
        expected = before.copy()
        for number, pfns in enumerate(setup.written, 1):
            expected[domain.p2m[pfns]] = number
        assert np.array_equal(domain.frames, expected), "the domain's memory is not what it was"
    assert setup.host.toolstack.closed == setup.host.opened_toolstacks
    domain.close()


@pytest.mark.parametrize("block", range(BLOCKS))
def test_one_fault_at_a_random_place(tmp_path, block):
    for seed in range(block * FAULTS, (block + 1) * FAULTS):
        with seeded(seed) as chance, nothing_is_left():
            folder = tmp_path / str(seed)
            folder.mkdir()
            found = setup(chance, folder)
            before = found.guest.domain.frames.copy()
            stage = chance.choice([*MOMENTS, *PLACES, *PLACES])
            fault = Fault(chance, of_the_system=stage in PLACES and PLACES[stage][2])
            raised, report = None, SaveReport()
            with patched() as patch:
                put(fault, stage, found, patch)
                try:
                    save_domain(found.request, Silence(), report, host=found.host)
                except BaseException as error:
                    raised = error
            told = f"{stage}, {fault.error!r}: {raised!r} {getattr(raised, '__notes__', [])}"
            if fault.raised and raised is None:
                # What a save can do without: a folder that cannot be synced, a file system without links or room.
                assert stage in ("fsync", "link", "statfs", "stat"), told
            if raised is not None:
                assert fault.is_the_reason_of(raised), told
                assert "web1" in fact_of(raised) or not found.guest.moments.calls, told
                assert_account_is_true(found, raised, report)
            assert_left_right(found, before, raised)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_signal_at_a_random_line(tmp_path, block):
    for seed in range(1000 + block * SIGNALS, 1000 + (block + 1) * SIGNALS):
        with seeded(seed) as chance, nothing_is_left():
            counted = Lines()
            state = chance.getstate()
            lines = counted
            raised = None
            for attempt in ("counted", "signalled"):
                chance.setstate(state)
                folder = tmp_path / f"{seed}-{attempt}"
                folder.mkdir()
                found = setup(chance, folder)
                before = found.guest.domain.frames.copy()
                if attempt == "signalled":
                    lines = Lines(chance.randrange(counted.count))
                try:
                    with lines.watched():
                        save_domain(found.request, Silence(), host=found.host)
                except Interrupted as error:
                    raised = error
                if attempt == "counted":
                    assert raised is None
                    assert_left_right(found, before, None)
            try:
                assert_left_right(found, before, raised)
            except BaseException as error:
                error.add_note(f"signal at {lines.where}, {found.request}, {raised!r}")
                raise
