"""Whole saves and restores in the dialect draft-b: every codec, every kind of domain, pages that change meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from memory_guests import CHANNELS, MAKERS, assert_same, image_of, opened, restored_from
from stream_samples import MemorySink, source_of

from saverestore.engine.policy import Limits
from saverestore.engine.restore import restore
from saverestore.engine.save import save
from saverestore.engine.sending import BATCH_PFNS
from saverestore.engine.settings import SaveSettings
from saverestore.errors import ImageError, Interrupted
from saverestore.stream.codecs import Codec, Coding
from saverestore.stream.layout import PageType
from saverestore.stream.reader import LibxcReader, PageData
from saverestore.stream.survey import survey
from saverestore.stream.writer import LibxcWriter
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemoryRestore, MemorySave, empty_like

KINDS = pytest.mark.parametrize("kind", MAKERS)
HOW = pytest.mark.parametrize("how", ["suspended", "log", "digest"])
CODECS = pytest.mark.parametrize("codec", ["none", "xor", "deflate", "zstd", "lz4"])


def settings_for(how: str, codec: str, **more) -> SaveSettings:
    live = {} if how == "suspended" else {"live": True, "dirty": how}
    return SaveSettings(coding=Coding.parse(codec), **live, **more)


def check_round_trip(guest: MemorySave, how: str, codec: str, **more) -> bytes:
    image = image_of(guest, settings_for(how, codec, **more))
    with source_of(image) as source:
        found = survey(source)
    assert found.is_whole, found.error
    assert found.image is not None
    assert found.image.version == 1
    restored = restored_from(image, guest.domain)
    assert_same(guest.domain, restored)
    restored.close()
    return image


def codecs_of(image: bytes) -> list[Codec]:
    """How the pages of each PAGE_DATA record are coded."""
    with source_of(image) as source:
        reader, found = LibxcReader(source), []
        while not reader.ended:
            record = reader.next()
            if isinstance(record, PageData):
                found.append(record.codec)
        return found


@KINDS
@HOW
@CODECS
def test_a_domain_at_rest_is_restored_as_it_was(kind, how, codec):
    with opened(MAKERS[kind]()) as guest:
        check_round_trip(guest, how, codec)


@KINDS
@pytest.mark.parametrize("how", ["log", "digest"])
@CODECS
def test_pages_written_at_any_moment_are_restored_as_they_were_at_suspend(kind, how, codec):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        random = np.random.default_rng(5)
        plain = domain.data_pfns()

        def scribble(name: str, total: int) -> None:
            if not domain.suspended:
                # A few words of many pages, and some pages to zero: that is what deltas and the map are for.
                pfns = random.choice(plain, 200, replace=False)
                at = int(random.integers(4090))
                domain.frames[domain.p2m[pfns], at : at + 6] ^= 0x5A
                if domain.dirty is not None:
                    domain.dirty[pfns] = True
                domain.write(random.choice(plain, 20, replace=False), 0)

        guest.moments.on_every(scribble)
        image = check_round_trip(guest, how, codec, workers=3, limits=Limits(few_pages=1, max_rounds=4))
        assert (Codec[codec.upper()] in codecs_of(image)) or codec == "none"


@KINDS
@pytest.mark.parametrize("nr_cached", [0, 1, 300])
def test_deltas_are_right_however_few_versions_are_kept(kind, nr_cached):
    with opened(MAKERS[kind]()) as guest:
        domain = guest.domain
        plain = domain.data_pfns()
        guest.moments.on_every(lambda *_: None if domain.suspended else domain.write(plain[::3], 3))
        check_round_trip(guest, "log", "xor", xor_cache_bytes=nr_cached * 4096, limits=Limits(few_pages=1))


@CODECS
def test_a_page_that_became_zero_is_cleared_again(codec):
    with opened(MAKERS["pvh"]()) as guest:
        domain = guest.domain
        pfns = domain.data_pfns()[:50]
        domain.write(pfns, 0x77)
        guest.moments.on("check_layout", 0, lambda: domain.write(pfns, 0))
        image = image_of(guest, settings_for("log", codec))
        restored = restored_from(image, domain)
        assert not restored.content(pfns).any()
        restored.close()


def test_a_zero_page_clears_what_a_fresh_domain_holds():
    with opened(MAKERS["pvh"]()) as guest:
        pfns = guest.domain.data_pfns()[:50]
        guest.domain.write(pfns, 0)
        image = image_of(guest, settings_for("suspended", "zstd"))
        fresh = empty_like(guest.domain)
        fresh.frames[:] = 0xEE
        with source_of(image) as source:
            restore(LibxcReader(source), source, MemoryRestore(fresh), CHANNELS)
        assert not fresh.content(pfns).any()
        fresh.close()


def test_what_is_summed_up_is_what_is_written_though_the_domain_writes_meanwhile(monkeypatch):
    """Between coding and writing, every page of the domain changes: the image must not notice."""
    with opened(MAKERS["pvh"]()) as guest:
        domain = guest.domain
        plain = domain.data_pfns()
        write_prepared = LibxcWriter.write_prepared
        threads = set()

        def late(self, prepared):
            threads.add(threading.current_thread())
            if not domain.suspended:
                domain.frames[domain.p2m[plain], 5] += 1
            write_prepared(self, prepared)

        monkeypatch.setattr(LibxcWriter, "write_prepared", late)
        guest.moments.on("suspend", 0, lambda: domain.write(plain, 9))
        check_round_trip(guest, "log", "none")
        assert threads == {threading.main_thread()}


def test_pages_are_coded_on_the_workers(monkeypatch):
    prepare_pages, threads = LibxcWriter.prepare_pages, set()

    def noted(self, *arguments, **more):
        threads.add(threading.current_thread().name)
        return prepare_pages(self, *arguments, **more)

    monkeypatch.setattr(LibxcWriter, "prepare_pages", noted)
    with opened(MAKERS["pv"]()) as guest:
        check_round_trip(guest, "log", "zstd")
    assert threads
    assert all(name.startswith("pages") for name in threads)


def test_deltas_make_later_rounds_small():
    sizes = {}
    for codec in ("none", "xor"):
        with opened(MAKERS["pvh"]()) as guest:
            domain = guest.domain
            plain = domain.data_pfns()[: 2 * BATCH_PFNS]
            random = np.random.default_rng(3)
            domain.frames[domain.p2m[plain]] = random.integers(0, 256, (len(plain), 4096), dtype=np.uint8)

            def touch(domain=domain, plain=plain) -> None:
                domain.frames[domain.p2m[plain], 100] ^= 1
                domain.dirty[plain] = True

            guest.moments.on("check_layout", 0, touch)
            sizes[codec] = len(check_round_trip(guest, "log", codec))
    assert sizes["none"] - sizes["xor"] > 0.98 * len(plain) * 4096


def test_a_page_given_back_and_taken_again_is_sent_whole():
    with opened(MAKERS["pvh"]()) as guest:
        domain = guest.domain
        pfn = domain.data_pfns()[100:101]
        frame = int(domain.p2m[pfn][0])

        def gone() -> None:
            domain.p2m[pfn] = np.uint64(2**64 - 1)
            domain.dirty[pfn] = True

        def back() -> None:
            domain.p2m[pfn] = frame
            domain.frames[frame, 7] ^= 1
            domain.dirty[pfn] = True

        guest.moments.on("check_layout", 0, gone)
        guest.moments.on("check_layout", 1, back)
        image = image_of(guest, settings_for("log", "xor", limits=Limits(few_pages=1)))
        fresh = MemoryRestore(empty_like(domain))
        write_pages = fresh.write_pages

        def releasing(pfns, types):
            # What a hypervisor may do with memory that was given back.
            fresh.domain.frames[fresh.domain.p2m[pfns[types == PageType.XTAB]]] = 0xDD
            return write_pages(pfns, types)

        fresh.write_pages = releasing
        with source_of(image) as source:
            restore(LibxcReader(source), source, fresh, CHANNELS)
        assert np.array_equal(fresh.domain.content(pfn), domain.content(pfn))
        assert (fresh.domain.content(pfn)[0, 7]) == domain.content(pfn)[0, 7]
        fresh.domain.close()


def test_damage_is_found_by_a_restore_before_the_pages_are_taken_for_good():
    with opened(MAKERS["pvh"]()) as guest:
        image = bytearray(image_of(guest, settings_for("suspended", "none")))
        image[len(image) // 2] ^= 4
        target = MemoryRestore(empty_like(guest.domain))
        with (
            source_of(bytes(image)) as source,
            pytest.raises(ImageError, match=r"PAGE_DATA record: damaged.*byte"),
        ):
            restore(LibxcReader(source), source, target, CHANNELS)
        assert target.buffers.nr_open == 0
        target.domain.close()


@CODECS
def test_a_save_that_is_interrupted_leaves_nothing_mapped(codec):
    with opened(MAKERS["pv"]()) as guest:
        guest.moments.fail("read_pages", 3, Interrupted("now"))
        with pytest.raises(Interrupted):
            save(guest, MemorySink(), settings_for("log", codec, batch_pfns=64))
        assert not guest.domain.suspended
        assert guest.domain.dirty is None


def test_a_page_that_cannot_be_coded_is_an_error_of_the_save(monkeypatch):
    def broken(self, *arguments, **more):
        raise MemoryError

    monkeypatch.setattr(LibxcWriter, "prepare_pages", broken)
    with opened(MemoryDomain.pvh(500)) as guest, pytest.raises(MemoryError):
        save(guest, MemorySink(), SaveSettings())
