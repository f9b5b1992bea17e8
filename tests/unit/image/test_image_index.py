"""The index of an image: what is read of it, what is kept, and what damage does."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from image_files import Sent, hvm_image, page
from memory_guests import MAKERS, image_of, opened
from stream_samples import NAMES, golden

from saverestore.engine.settings import SaveSettings
from saverestore.errors import ImageError, UsageError
from saverestore.image.access import AccessSource, open_image
from saverestore.image.index import index_image, types_of_places, with_data
from saverestore.image.pagemap import PageMap
from saverestore.image.pages import batches_of
from saverestore.stream.layout import RecordType
from saverestore.transport import EndOfStream, FdSource
from saverestore.transport.random_access import PlainFile


class CountingFile(PlainFile):
    """Knows how much was read of it."""

    nr_bytes = 0

    def read_at(self, offset: int, length: int) -> bytes:
        self.nr_bytes += length
        return super().read_at(offset, length)


def counting(path: Path) -> CountingFile:
    return CountingFile(FdSource.open(str(path)))


def test_pages_are_passed_over_and_one_page_costs_one_page(tmp_path):
    path = hvm_image(tmp_path / "a.img", [Sent([(p, 0, page(p)) for p in range(500)])])
    with counting(path) as access:
        index = index_image(access)
        assert access.nr_bytes < 500 * 8 + 2000
        access.nr_bytes = 0
        few = PageMap()
        few.put(np.array([77], dtype=np.uint64), index.pages.get(np.array([77], dtype=np.uint64)))
        (batch,) = batches_of(access, few)
        assert batch.pages.tobytes() == page(77)
        assert access.nr_bytes == 4096


def test_the_last_version_of_a_page_wins_and_one_that_went_is_gone(tmp_path):
    sent = [Sent([(1, 0, page(1)), (2, 0, page(2))]), Sent([(2, 15, None)]), Sent([(1, 0, page(3))])]
    with open_image(str(hvm_image(tmp_path / "a.img", sent))) as access:
        index = index_image(access)
        places = index.pages.get(np.array([1, 2, 3], dtype=np.uint64))
        assert with_data(places).tolist() == [True, False, False]
        assert types_of_places(places).tolist() == [0, 15, 0]
        (batch,) = batches_of(access, index.pages)
        assert batch.pages.tobytes() == page(3)


def sparse_image(path: Path, nr_records: int, a_record: int) -> None:
    """An image whose pages are holes of the file: large, and made at once."""
    writer_bytes = hvm_image(path, [], config=None, head=[]).read_bytes()
    begin, end = writer_bytes[:48], writer_bytes[48:]
    length = 8 + a_record * (8 + 4096)
    with path.open("wb") as file:
        file.write(begin)
        for number in range(nr_records):
            file.write(struct.pack("<IIII", RecordType.PAGE_DATA, length, a_record, 0))
            file.write(np.arange(number * a_record, (number + 1) * a_record, dtype=np.uint64).tobytes())
            file.seek(a_record * 4096, 1)
        file.write(end)


def test_the_index_of_8_gib_takes_less_than_64_mib(tmp_path):
    path = tmp_path / "a.img"
    sparse_image(path, 1024, 2048)
    assert path.stat().st_size > 8 << 30
    with open_image(str(path)) as access:
        tracemalloc.start()
        try:
            index = index_image(access)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(index.pages) == 1 << 21
    assert most < 64 << 20


@pytest.mark.parametrize("name", NAMES)
def test_golden_images_have_an_index(tmp_path, name):
    path = tmp_path / "a.img"
    path.write_bytes(golden(name))
    with open_image(str(path)) as access:
        index = index_image(access)
    assert index.layers[-1] == "libxc"
    assert index.records_of(RecordType.END)
    assert len(index.pages)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_a_live_save_wrote_is_the_domains_memory_when_it_was_suspended(tmp_path, kind):
    domain = MAKERS[kind]()
    with opened(domain) as guest:
        for number in range(3):
            change = domain.data_pfns()[number::7]
            guest.moments.on("log_dirty.take", number, lambda p=change, n=number: domain.write(p, 0x51 + n))
        (tmp_path / "a.img").write_bytes(image_of(guest, SaveSettings(live=True)))
        with open_image(str(tmp_path / "a.img")) as access:
            index = index_image(access)
            seen = []
            for batch in batches_of(access, index.pages):
                assert (batch.types == domain.types[batch.pfns]).all()
                assert (batch.pages == domain.content(batch.pfns)).all()
                seen += batch.pfns.tolist()
            assert sorted(seen) == [p for p in domain.populated().tolist() if domain.types[p] < 13]


def test_a_cut_image_has_no_index(tmp_path):
    path = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])])
    whole = path.read_bytes()
    for length in (0, 7, 100, whole.index(page(1)) + 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with open_image(str(path)) as access, pytest.raises(ImageError):
            index_image(access)


def test_pfns_all_over_the_place_are_refused_before_the_memory_is_gone(tmp_path):
    scattered = [(number << 40 | number, 15, None) for number in range(1, 600)]
    path = hvm_image(tmp_path / "a.img", [Sent(scattered)])
    with open_image(str(path)) as access, pytest.raises(ImageError, match="so far apart"):
        index_image(access)


def test_records_without_end_are_refused(tmp_path):
    path = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])])
    with open_image(str(path)) as access, pytest.raises(ImageError, match="records other than pages"):
        index_image(access, state_max_bytes=100)


@pytest.mark.parametrize("config", [b"[1]", b"{", b"\xff"])
def test_a_configuration_that_is_no_object_is_refused(tmp_path, config):
    path = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])], config={"x": "y" * 10})
    data = path.read_bytes()
    at = data.index(b'{"x"')
    end = data.index(b"\0", at)
    path.write_bytes(data[:at] + config.ljust(end - at) + data[end:])
    with open_image(str(path)) as access, pytest.raises(ImageError, match="configuration"):
        index_image(access)


def test_what_is_no_file_cannot_be_read_here_and_there(tmp_path):
    for name in ("-", "/dev/null", str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(UsageError):
            open_image(name)


def test_a_source_over_a_file_keeps_the_contract_of_sources(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(20)))
    with open_image(str(path)) as access:
        source = AccessSource(access)
        views = [bytearray(2), bytearray(3)]
        source.readv(views)
        assert views == [bytes([0, 1]), bytes([2, 3, 4])]
        source.skip(3)
        assert source.read(2) == bytes([8, 9])
        assert not source.at_end()
        with pytest.raises(EndOfStream) as caught:
            source.skip(11, "more")
        assert caught.value.missing_bytes == 1
        assert source.at_end()
