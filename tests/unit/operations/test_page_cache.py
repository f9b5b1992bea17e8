"""Past the page cache: which saves are written so, and what a domain waits for that is to run again."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from fake_host import FakeHost, FakeToolstack

from saverestore.engine.progress import Silence
from saverestore.errors import DomainError, ErrorName, Remedy, UsageError
from saverestore.operations import prepare_save
from saverestore.operations.prepare_save import dry_run
from saverestore.operations.requests import FinalState, SaveRequest
from saverestore.operations.save import save_domain
from saverestore.stream.layout import PAGE_SIZE
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport.cache import Cache
from saverestore.transport.direct import DirectFileSink
from saverestore.transport.safety import is_in_memory

NR_PFNS = 4096


@pytest.fixture
def on_disk(tmp_path):
    """A folder on a disk."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        if is_in_memory(fd):
            pytest.skip(f"{tmp_path} is in memory: give --basetemp")
    finally:
        os.close(fd)
    return tmp_path


@pytest.fixture
def guest():
    domain = MemoryDomain.pvh(NR_PFNS)
    noise = np.random.default_rng(1).integers(0, 256, (NR_PFNS, PAGE_SIZE), dtype=np.uint8)
    noise[1000:1500] = 0
    domain.write(domain.populated(), noise[: len(domain.populated())])
    guest = MemorySave(domain)
    yield guest
    guest.close()


@pytest.fixture
def host(guest):
    return FakeHost(guest, FakeToolstack())


def image_without_provenance(path, host, **how):
    request = SaveRequest("web1", str(path), plain=True, **how)
    report = save_domain(request, Silence(), host=host)
    return report, path.read_bytes()


@pytest.mark.parametrize("compress", [None, 1])
def test_an_image_is_the_same_bytes_both_ways(on_disk, host, compress):
    _, page = image_without_provenance(
        on_disk / "page.img", host, cache=Cache.PAGE, compress=compress, final_state=FinalState.PAUSE
    )
    report, direct = image_without_provenance(on_disk / "direct.img", host, compress=compress)
    assert report.cache is Cache.DIRECT
    assert direct == page
    blocks = [(on_disk / name).stat().st_blocks for name in ("page.img", "direct.img")]
    assert abs(blocks[0] - blocks[1]) <= 64
    assert report.stored_bytes is not None and report.stored_bytes <= blocks[1] * 512


@pytest.fixture
def turned(monkeypatch, guest):
    """For each time that a sink turns to the page cache: whether the guest was suspended by then."""
    seen: list[bool] = []
    turn = DirectFileSink.use_page_cache

    def noted(sink):
        seen.append(guest.domain.suspended)
        turn(sink)

    monkeypatch.setattr(DirectFileSink, "use_page_cache", noted)
    return seen


@pytest.mark.parametrize("live", [False, True])
def test_a_domain_that_is_to_run_again_waits_for_the_page_cache_only(on_disk, host, turned, live):
    report, data = image_without_provenance(
        on_disk / "out.img", host, final_state=FinalState.RUN, live=live, dirty="log"
    )
    assert turned == [False]
    assert report.cache is Cache.DIRECT
    assert len(data) == (on_disk / "out.img").stat().st_size


@pytest.mark.parametrize(
    "how",
    [
        {"final_state": FinalState.DESTROY},
        {"final_state": FinalState.PAUSE},
        {"final_state": FinalState.RUN, "cache": Cache.DIRECT},
    ],
)
def test_all_others_are_written_directly_to_their_end(on_disk, host, turned, how):
    report, _ = image_without_provenance(on_disk / "out.img", host, **how)
    assert turned == []
    assert report.cache is Cache.DIRECT


@pytest.mark.parametrize("image", ["-", "fd:1", "tcp://localhost:1", "/dev/null", "/dev/shm/never.img"])
def test_direct_where_it_cannot_be_had_is_refused_before_the_domain_is_touched(host, guest, image):
    with pytest.raises(UsageError, match=r"direct I/O: .*; no changes were made$") as caught:
        save_domain(SaveRequest("web1", image, cache=Cache.DIRECT), Silence(), host=host)
    assert caught.value.name is ErrorName.FILE_UNSUITABLE
    assert [one.remedy for one in caught.value.remedies] == [Remedy.PAGE_CACHE]
    assert "suspend" not in guest.moments.calls and "read_pages" not in guest.moments.calls


def test_a_failure_on_the_way_leaves_nothing_and_a_running_domain(on_disk, host, guest):
    def fail() -> None:
        raise DomainError("its registers cannot be read")

    guest.moments.on("end_records", 0, fail)
    with pytest.raises(DomainError, match="registers"):
        save_domain(SaveRequest("web1", str(on_disk / "out.img")), Silence(), host=host)
    assert list(on_disk.iterdir()) == []
    assert not guest.domain.suspended


def test_a_dry_run_says_that_it_would_be_written_directly(on_disk, host, monkeypatch):
    monkeypatch.setattr(
        prepare_save, "_describe", lambda *_: None
    )  # the configuration, which this host has not
    for cache, is_direct in ((Cache.AUTO, True), (Cache.PAGE, False)):
        found = dry_run(SaveRequest("web1", str(on_disk / "out.img"), cache=cache), host=host)
        assert any("by direct I/O" in line for line in found.facts) == is_direct
    assert list(on_disk.iterdir()) == []
