"""Restores that end early: what was mapped is unmapped, whenever it happens."""

from __future__ import annotations

import os
import signal

import pytest
from memory_guests import CHANNELS, image_of
from stream_samples import source_of

from saverestore.engine.restore import restore
from saverestore.errors import Interrupted
from saverestore.interrupts import handled
from saverestore.stream.reader import LibxcReader
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, MemoryWindow, empty_like


class JustMapped(MemoryRestore):
    """A signal comes when a window has been mapped, and nobody has it in hand yet."""

    def write_pages(self, pfns, types):
        window = super().write_pages(pfns, types)
        os.kill(os.getpid(), signal.SIGINT)
        return window


class HalfUnmapped(MemoryWindow):
    """A signal comes while a window is being unmapped."""

    def close(self):
        os.kill(os.getpid(), signal.SIGINT)
        super().close()


@pytest.fixture(params=[1, 2], ids=["one-thread", "two-threads"])
def workers(request: pytest.FixtureRequest) -> int:
    return request.param


def interrupted(guest: MemoryRestore, image: bytes, workers: int) -> None:
    with source_of(image) as source, pytest.raises(Interrupted), handled():
        restore(LibxcReader(source), source, guest, CHANNELS, workers=workers)
    assert guest.buffers.nr_open == 0
    assert "complete" not in guest.moments.calls


def test_a_signal_when_pages_have_just_been_mapped_unmaps_them(workers: int):
    domain = MemoryDomain.pvh(100)
    interrupted(JustMapped(empty_like(domain)), image_of(MemorySave(domain)), workers)


def test_a_signal_while_pages_are_being_unmapped_leaves_none(workers: int):
    domain = MemoryDomain.pvh(100)
    image = image_of(MemorySave(domain))
    interrupted(MemoryRestore(empty_like(domain), window=HalfUnmapped), image, workers)
