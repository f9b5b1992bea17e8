"""`SaveRequest.bwlimit`: whatever an image is written to, no more bytes a second reach it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack

from saverestore.engine.progress import SaveReport, Silence
from saverestore.operations import commit
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport.paced import PacedSink

MIB = 1 << 20
NOISY_PAGES = 512


@pytest.fixture
def guest():
    """A guest of 16 MiB, of which two are noise."""
    domain = MemoryDomain.pvh(4096)
    noise = np.random.default_rng(1).integers(0, 256, (NOISY_PAGES, PAGE_SIZE), dtype=np.uint8)
    pfns = domain.data_pfns()
    domain.write(pfns, 0)
    domain.write(pfns[:NOISY_PAGES], noise)
    made = MemorySave(domain)
    yield made
    made.close()


@pytest.mark.parametrize("compress", [None, 1])
def test_a_file_is_written_no_faster_and_zero_pages_and_what_compression_saves_are_free(
    tmp_path, guest, compress
):
    request = SaveRequest("web1", str(tmp_path / "a.img"), FinalState.RUN, compress=compress, bwlimit=4 * MIB)
    report, begun = SaveReport(), time.monotonic()
    save_domain(request, Silence(), report, host=FakeHost(guest, FakeToolstack()))
    assert report.stored_bytes < 3 * MIB
    assert 0.4 < time.monotonic() - begun < 3


class Connection:
    """One that the kernel can or cannot pace."""

    peer = "there"

    def __init__(self, *, is_tcp: bool) -> None:
        self.outgoing = SimpleNamespace(name="there", stored_bytes=0)
        self.rates: list[int] = []
        self._is_tcp = is_tcp

    def pace(self, rate: int) -> bool:
        self.rates.append(rate)
        return self._is_tcp


@pytest.mark.parametrize(("is_tcp", "rate"), [(True, MIB), (False, MIB), (True, None)])
def test_a_connection_is_paced_by_the_kernel_where_that_can_and_here_where_it_cannot(
    monkeypatch, is_tcp, rate
):
    connection = Connection(is_tcp=is_tcp)

    @contextmanager
    def receiver_at(_address):
        yield SimpleNamespace(connection=connection)

    monkeypatch.setattr(commit, "receiver_at", receiver_at)
    with commit.commit_of(SaveRequest("web1", "unix:/nowhere", bwlimit=rate)) as opened:
        assert isinstance(opened.sink, PacedSink) is (not is_tcp)
    assert connection.rates == ([] if rate is None else [rate])
