"""Every byte of an image changed, every truncation, what follows it: nothing is accepted, nothing is left behind.

The images are whole ones as pysave writes them, xl's header first and a device model's state last, of a domain of one
page.
"""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from memory_guests import CHANNELS, MemoryDomain, opened
from stream_samples import PipeLikeSource, file_of, source_of

from saverestore.engine import restore as engine_restore
from saverestore.engine.save import save
from saverestore.engine.settings import SaveSettings
from saverestore.errors import ImageError
from saverestore.guest.common import hvm_params
from saverestore.stream import LibxcReader, LibxlReader, LibxlRecordType, LibxlWriter, XlHeader
from saverestore.stream.codecs import Coding
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.header_digest import HeaderDigestSink, HeaderDigestSource
from saverestore.stream.layout import PAGE_SIZE
from saverestore.stream.libxl import EmulatorId, EmulatorState
from saverestore.stream.survey import note_trailing_bytes, survey
from saverestore.stream.trailer import TrailerBuffer, TrailerSource, check_trailer
from saverestore.testing.guest import MemoryRestore, empty_like
from saverestore.transport import FdSink, FdSource, zstd_sink
from saverestore.transport.opening import decompressed
from saverestore.transport.zstd_sink import ZstdSink

TAIL = (
    (LibxlRecordType.EMULATOR_XENSTORE_DATA, EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"a\0b\0").pack()),
    (
        LibxlRecordType.EMULATOR_CONTEXT,
        EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, b"QEVM" + bytes(99)).pack(),
    ),
)
CONFIG = json.dumps({"c_info": {"name": "web1"}}).encode()


def tiny_domain():
    """One page of memory, which holds both rings."""
    domain = MemoryDomain.pvh(4, hole=range(1, 4))
    domain.state.hvm_params = {hvm_params.HVM_PARAM_STORE_PFN: 0, hvm_params.HVM_PARAM_CONSOLE_PFN: 0}
    return domain


def write_image(guest, sink, **settings):
    """As operations/save.py does."""
    outside = HeaderDigestSink(sink)
    XlHeader.write(outside, CONFIG)
    stream = LibxlWriter(outside)
    stream.libxc_context()
    behind = TrailerBuffer(sink.name)
    stream.continue_in(behind)
    for type, body in TAIL:
        stream.record(type, body)
    stream.end()
    given = {
        "digest": DigestAlgorithm.XXH3,
        "header_digest": outside.digest(),
        "provenance": {"tool": "pysave"},
        **settings,
    }
    return save(guest, sink, SaveSettings(**given), trailer=behind)


def made(domain, *, compress, meanwhile=nullcontext, **settings):
    fd = file_of(b"")
    with opened(domain) as guest, FdSink(fd, "image") as raw, meanwhile():
        if compress:
            with ZstdSink(raw, workers=1) as sink:
                write_image(guest, sink, **settings)
                sink.finish()
        else:
            write_image(guest, raw, **settings)
        return os.pread(fd, raw.offset, 0)


def verify(data, kind=source_of):
    """As pyimage does; raises what is wrong."""
    with decompressed(kind(data), workers=1) as source:
        found = survey(source)
        if found.error is None:
            note_trailing_bytes(found, source.skip_to_end())
        if found.error is not None:
            raise found.error
    return found


def restore(data, like, kind=source_of):
    """As libxl, its helper and operations/restore_libxl.py do: libxl takes what comes behind for what it is."""
    guest = MemoryRestore(empty_like(like))
    try:
        with decompressed(kind(data), workers=1) as source:
            outside = HeaderDigestSource(source)
            XlHeader.read(outside)
            stream = LibxlReader(outside)
            if stream.next().type is not LibxlRecordType.LIBXC_CONTEXT:
                raise ImageError("no libxc stream")
            reader = LibxcReader(source, header_digest=outside.digest())
            engine_restore.restore(reader, source, guest, CHANNELS)
            is_file = type(source) is FdSource
            if is_file:  # the helper looks ahead
                check_trailer(source, reader.following)
            # Anything else comes through a relay, which follows it.
            behind = TrailerSource(source, None if is_file else reader.following)
            stream.continue_in(behind)
            while stream.next().type is not LibxlRecordType.END:
                pass
            behind.check_end()
            if not source.at_end():
                raise ImageError("something follows")
            return reader.checked_digest
    finally:
        assert guest.buffers.nr_open == 0
        guest.domain.close()


FORMS = {
    "plain": {"compress": False},
    "compressed": {"compress": True},
    "draft-b": {"compress": False, "coding": Coding.parse("zstd")},
}


@pytest.fixture(scope="module", params=FORMS)
def image(request):
    """A whole image, its domain, and a frame size that makes several frames of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstd_sink, "FRAME_BYTES", 2048)
        domain = tiny_domain()
        yield made(domain, **FORMS[request.param]), tiny_domain()


def test_the_image_itself_is_whole_and_is_restored(image):
    data, domain = image
    assert verify(data).checked_digest is DigestAlgorithm.XXH3
    for kind in (source_of, PipeLikeSource):
        assert restore(data, domain, kind) is DigestAlgorithm.XXH3


@pytest.mark.parametrize("read", [verify, restore], ids=["verify", "restore"])
def test_every_changed_byte_is_found(image, read):
    data, domain = image
    more = (domain,) if read is restore else ()
    accepted = []
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8 if read is restore else 0xFF
        try:
            read(bytes(changed), *more)
        except ImageError:
            continue
        accepted.append(place)
    assert accepted == []


@pytest.mark.parametrize("read", [verify, restore], ids=["verify", "restore"])
def test_every_truncation_is_found(image, read):
    data, domain = image
    more = (domain,) if read is restore else ()
    accepted = []
    for length in range(len(data)):
        try:
            read(data[:length], *more)
        except ImageError:
            continue
        accepted.append(length)
    assert accepted == []


@pytest.mark.parametrize("kind", [source_of, PipeLikeSource])
@pytest.mark.parametrize(
    "behind", [b"\0", b"garbage", b"\x28\xb5\x2f\xfd", b"\x57\x2a\x4d\x18\x08\0\0\0pysavezd"]
)
def test_nothing_may_follow_it(image, behind, kind):
    data, domain = image
    with pytest.raises(ImageError):
        verify(data + behind, kind)
    with pytest.raises(ImageError):
        restore(data + behind, domain, kind)


def test_no_thread_survives_a_damaged_image(image):
    data, domain = image
    with pytest.raises(ImageError):
        restore(data[:-1], domain)
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("zstd", "unpack", "digest", "pages"))]


@pytest.mark.parametrize("kind", ["pvh", "pv"])
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize(
    "live", [{}, {"live": True, "dirty": "log"}, {"live": True, "dirty": "digest"}], ids=str
)
def test_a_domain_that_writes_all_the_time_has_an_image_whose_digest_holds(kind, compress, live):
    domain = MemoryDomain.pvh(4500) if kind == "pvh" else MemoryDomain.pv(4500)
    plain = domain.data_pfns()
    random = np.random.default_rng(5)
    stop = threading.Event()

    def scribble():
        while not stop.wait(0.0002):
            domain.frames[domain.p2m[random.choice(plain, 100)], 8:16] += 1

    @contextmanager
    def scribbling():
        """Not even a suspended domain's memory stands still."""
        thread = threading.Thread(target=scribble)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    data = made(domain, compress=compress, meanwhile=scribbling, **live)
    assert verify(data).checked_digest is DigestAlgorithm.XXH3


def test_zero_pages_are_counted():
    domain = MemoryDomain.pvh(3000)
    zeroed = domain.data_pfns()[10:1000]
    domain.frames[domain.p2m[zeroed]] = 0
    for settings in ({}, {"digest": None}, {"live": True, "dirty": "digest"}):
        domain_again = MemoryDomain.pvh(3000)
        domain_again.frames[domain_again.p2m[zeroed]] = 0
        with opened(domain_again) as guest, FdSink(file_of(b""), "image") as sink:
            report = write_image(guest, sink, **settings)
        assert report.zero_pages == len(zeroed)
    domain.close()


@pytest.mark.parametrize("form", [*FORMS, "deltas"])
def test_memory_while_saving_does_not_grow_with_the_domain(form):
    domain = MemoryDomain.pvh(25_600)  # 100 MiB
    deltas = {"compress": False, "live": True, "coding": Coding.parse("xor")}
    settings = dict(FORMS.get(form, deltas))
    compress = settings.pop("compress")
    domain.frames[:, 100:] = np.random.default_rng(1).integers(0, 256, PAGE_SIZE - 100, dtype=np.uint8)
    tracemalloc.start()
    try:
        data_fd = file_of(b"")
        with opened(domain) as guest, FdSink(data_fd, "image", close_fd=False) as raw:
            guest.moments.on("check_layout", 0, lambda: domain.write(domain.data_pfns()[::2], 7))
            if compress:
                with ZstdSink(raw, workers=2) as sink:
                    write_image(guest, sink, **settings)
                    sink.finish()
            else:
                write_image(guest, raw, **settings)
        assert tracemalloc.get_traced_memory()[1] < (64 + 2 * 16) << 20
    finally:
        tracemalloc.stop()
        os.close(data_fd)
