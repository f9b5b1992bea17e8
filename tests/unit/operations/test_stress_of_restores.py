"""Restores in which one thing fails at a random place, or a signal comes at a random line.

After each: the first cause is told, there is a whole domain that runs, or none; no thread, mapping or descriptor is
left. The seed is in the failure's notes.
"""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_toolstack import FakeMemory
from memory_guests import CHANNELS, assert_same
from stress import Fault, Lines, forget, nothing_is_left, patched, seeded

from saverestore.engine.progress import RestoreReport, Silence
from saverestore.engine.save import SaveSettings, save
from saverestore.errors import Interrupted
from saverestore.guest.memory import MemoryRestore, MemorySave, MemoryWindow, empty_like
from saverestore.guest.memory_domain import MemoryDomain
from saverestore.operations import restore, restore_here
from saverestore.operations.restore import RestoreRequest
from saverestore.stream import LibxlWriter, XlHeader
from saverestore.stream.codecs import Coding
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.header_digest import HeaderDigestSink
from saverestore.stream.page_coding import CodedPages
from saverestore.transport import FdSink, zstd_source
from saverestore.transport.zstd_sink import ZstdSink

BLOCKS, FAULTS, SIGNALS = 4, 40, 20
PFNS = 300
DOMID = 5

CONFIG = (
    '{"c_info": {"type": "%s", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},'
    ' "b_info": {"max_vcpus": 1, "max_memkb": 4096}}'
)
MAKERS = {"pvh": MemoryDomain.pvh, "pv": MemoryDomain.pv}
FORMS = ("plain", "zstd", "draft-b")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[tuple[str, str], tuple[Path, MemoryDomain]]:
    """An image of each kind and form, with the domain that it is of."""
    folder = tmp_path_factory.mktemp("images")
    found = {}
    for kind, make in MAKERS.items():
        for form in FORMS:
            path, domain = folder / f"{kind}-{form}.img", make(PFNS)
            with patched() as patch, FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as file:
                patch.setattr("saverestore.engine.save.BATCH_PFNS", 64)
                sink = ZstdSink(file) if form == "zstd" else file
                outside = HeaderDigestSink(sink)
                XlHeader.write(outside, (CONFIG % kind).encode())
                stream = LibxlWriter(outside)
                stream.libxc_context()
                settings = SaveSettings(
                    digest=DigestAlgorithm.XXH3,
                    before=outside.digest(),
                    coding=Coding.parse("zstd") if form == "draft-b" else None,
                )
                save(MemorySave(domain), sink, settings)
                stream.end()
                if isinstance(sink, ZstdSink):
                    sink.finish()
                    sink.close()
            found[kind, form] = (path, domain)
    return found


@dataclass
class Host:
    """What there is of domains: those alive, those that run."""

    guest: MemoryRestore
    alive: set[int] = field(default_factory=set)
    running: set[int] = field(default_factory=set)
    introduced: int = 0

    def create(self, *_: object) -> SimpleNamespace:
        self.alive.add(DOMID)
        return SimpleNamespace(domid=DOMID, channels=CHANNELS)

    def destroy(self, _handles: object, domid: int, _uuid: object) -> None:
        self.alive.discard(domid)

    def introduce(self, *_: object) -> None:
        self.introduced += 1

    def unpause(self, domid: int) -> None:
        self.running.add(domid)

    @contextmanager
    def instead_of_xen(self, patch: pytest.MonkeyPatch):
        @contextmanager
        def handles(**_: bool):
            xen = SimpleNamespace(domain=lambda _: SimpleNamespace(domid=DOMID), unpause=self.unpause)
            memory = FakeMemory()
            yield SimpleNamespace(xen=xen, memory=memory, store=None)

        patch.setattr(restore, "open_handles", handles)
        patch.setattr(restore.domains, "check_free", lambda *_: None)
        patch.setattr(restore.bare, "check_memory", lambda *_: None)
        patch.setattr(restore, "_check_cpu", lambda *_: None)
        patch.setattr(restore.choice, "for_restoring", lambda *_: (None, ""))
        patch.setattr(restore.bare, "check_host", lambda *_: None)
        patch.setattr(restore.bare, "create", self.create)
        patch.setattr(restore.bare, "destroy", self.destroy)
        patch.setattr(restore.bare, "introduce", self.introduce)
        patch.setattr(restore_here, "PvRestore", lambda *_, **__: self.guest)
        patch.setattr(restore_here, "HvmRestore", lambda *_, **__: self.guest)
        yield


MOMENTS = ("take", "static_data_done", "write_pages", "complete")
"""Stages that are calls to the guest."""

PLACES = {
    "read": (os, "readv", True),
    "decompress": (zstd_source, "Job", False),
    "decode": (CodedPages, "_load", False),
    "populate": (MemoryDomain, "populate", False),
    "write": (MemoryWindow, "commit", False),
    "create": (restore.bare, "create", False),
    "introduce": (restore.bare, "introduce", False),
}
"""Other stages: where they are, and whether only the system could fail there."""


def put(fault: Fault, stage: str, host: Host, patch: pytest.MonkeyPatch) -> None:
    """Have the stage fail."""
    if stage in MOMENTS:

        def at(name: str, _: int) -> None:
            if name == stage:
                fault.reached()

        host.guest.moments.on_every(at)
        return
    where, name, _ = PLACES[stage]
    if stage == "decompress":  # on a worker, where each part has work of its own
        job = zstd_source.Job
        patch.setattr(where, name, lambda work, *more, **named: job(fault.before(work), *more, **named))
        return
    patch.setattr(where, name, fault.before(getattr(where, name)))


def assert_left_right(host: Host, saved: MemoryDomain, error: BaseException | None) -> None:
    """There is the whole domain, running; or none."""
    forget(error)
    assert host.guest.buffers.nr_open == 0, "pages are still mapped"
    if error is None:
        assert host.alive == host.running == {DOMID}
        assert host.introduced == 1
        assert_same(saved, host.guest.domain)
    else:
        assert host.alive == set(), "a domain was left behind"
        assert host.running == set(), "half a domain ran"
    host.guest.domain.close()


def any_of(chance: random.Random, images: dict) -> tuple[Path, MemoryDomain, Host]:
    path, saved = images[chance.choice(sorted(images))]
    return path, saved, Host(MemoryRestore(empty_like(saved)))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_one_fault_at_a_random_place(images, block):
    for seed in range(block * FAULTS, (block + 1) * FAULTS):
        with seeded(seed) as chance, nothing_is_left():
            path, saved, host = any_of(chance, images)
            stage = chance.choice([*MOMENTS, *PLACES])
            fault = Fault(chance, of_the_system=stage in PLACES and PLACES[stage][2])
            raised = None
            with patched() as patch, host.instead_of_xen(patch):
                put(fault, stage, host, patch)
                try:
                    restore.restore_domain(RestoreRequest(str(path), watch=False), Silence(), RestoreReport())
                except BaseException as error:
                    raised = error
            told = f"{stage}, {fault.error!r}: {raised!r} {getattr(raised, '__notes__', [])}"
            assert fault.raised == (raised is not None), told
            if raised is not None:
                assert fault.is_the_reason_of(raised), told
            assert_left_right(host, saved, raised)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_signal_at_a_random_line(images, block):
    for seed in range(1000 + block * SIGNALS, 1000 + (block + 1) * SIGNALS):
        folder = images["pv", "plain"][0].parent
        with seeded(seed) as chance, nothing_is_left(but_for=folder):
            state, lines = chance.getstate(), Lines()
            for attempt in ("counted", "signalled"):
                chance.setstate(state)
                path, saved, host = any_of(chance, images)
                if attempt == "signalled":
                    lines = Lines(chance.randrange(lines.count))
                raised = None
                with patched() as patch, host.instead_of_xen(patch):
                    try:
                        with lines.watched():
                            restore.restore_domain(
                                RestoreRequest(str(path), watch=False), Silence(), RestoreReport()
                            )
                    except Interrupted as error:
                        raised = error
                if attempt == "counted":
                    assert raised is None
                try:
                    assert_left_right(host, saved, raised)
                except BaseException as error:
                    error.add_note(f"signal at {lines.where}, {path.name}, {raised!r}")
                    raise
