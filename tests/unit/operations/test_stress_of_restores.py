"""Restores in which one thing fails at a random place, or a signal comes at a random line.

After each: the first cause is told, there is a whole domain that runs, or none; no thread, mapping or descriptor is
left. The seed is in the failure's notes.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import RestoringHost, image_in
from memory_guests import assert_same
from stress import Fault, Lines, forget, nothing_is_left, patched, seeded

from saverestore.engine.progress import RestoreReport, Silence
from saverestore.errors import Interrupted
from saverestore.operations.requests import RestoreRequest
from saverestore.operations.restore import restore_domain
from saverestore.stream.page_coding import CodedPages
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemoryWindow, empty_like
from saverestore.transport import zstd_source

BLOCKS, FAULTS, SIGNALS = 4, 40, 20
PFNS = 300

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
            image_in(folder, domain, form, path.name)
            found[kind, form] = (path, domain)
    return found


MOMENTS = ("take", "static_data_done", "write_pages", "complete")
"""Stages that are calls to the guest."""

PLACES = {
    "read": (os, "readv", True),
    "decompress": (zstd_source, "Job", False),
    "decode": (CodedPages, "_load", False),
    "populate": (MemoryDomain, "populate", False),
    "write": (MemoryWindow, "commit", False),
    "create": (RestoringHost, "create", False),
    "connect": (RestoringHost, "connect", False),
}
"""Other stages: where they are, and whether only the system could fail there."""


def put(fault: Fault, stage: str, host: RestoringHost, patch: pytest.MonkeyPatch) -> None:
    """Have the stage fail."""
    if stage in MOMENTS:

        def at(name: str, _: int) -> None:
            if name == stage:
                fault.reached()

        host.restored.moments.on_every(at)
        return
    where, name, _ = PLACES[stage]
    if stage == "decompress":  # on a worker, where each part has work of its own
        job = zstd_source.Job
        patch.setattr(where, name, lambda work, *more, **named: job(fault.before(work), *more, **named))
        return
    patch.setattr(where, name, fault.before(getattr(where, name)))


def assert_left_right(host: RestoringHost, saved: MemoryDomain, error: BaseException | None) -> None:
    """There is the whole domain, running; or none."""
    forget(error)
    assert host.restored.buffers.nr_open == 0, "pages are still mapped"
    if error is None:
        assert host.alive == host.running == {host.DOMID}
        assert host.introduced == 1
        assert_same(saved, host.restored.domain)
    else:
        assert host.alive == set(), "a domain was left behind"
        assert host.running == set(), "half a domain ran"
    host.restored.domain.close()


def any_of(chance: random.Random, images: dict) -> tuple[Path, MemoryDomain, RestoringHost]:
    path, saved = images[chance.choice(sorted(images))]
    return path, saved, RestoringHost(MemoryRestore(empty_like(saved)))


@pytest.mark.parametrize("block", range(BLOCKS))
def test_one_fault_at_a_random_place(images, block):
    for seed in range(block * FAULTS, (block + 1) * FAULTS):
        with seeded(seed) as chance, nothing_is_left():
            path, saved, host = any_of(chance, images)
            stage = chance.choice([*MOMENTS, *PLACES])
            fault = Fault(chance, of_the_system=stage in PLACES and PLACES[stage][2])
            raised = None
            with patched() as patch:
                put(fault, stage, host, patch)
                try:
                    restore_domain(
                        RestoreRequest(str(path), watch=False), Silence(), RestoreReport(), host=host
                    )
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
                try:
                    with lines.watched():
                        restore_domain(
                            RestoreRequest(str(path), watch=False), Silence(), RestoreReport(), host=host
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
