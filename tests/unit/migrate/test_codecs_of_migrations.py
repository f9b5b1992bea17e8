"""Migrations whose pages are coded: in a fixed coding, and for hosts that do not know of any."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("pyxc", reason="pyxc is not compiled", exc_type=ImportError)

from table_host import Pair

from saverestore.engine.auto_coding import AutoCoding
from saverestore.migrate import destination
from saverestore.migrate.codecs import CodecOptions, coding_for
from saverestore.stream.codecs import Coding
from saverestore.transport.link_rate import LinkRate


@pytest.fixture
def pair(tmp_path) -> Pair:
    pair = Pair(tmp_path)
    pfns = pair.a.memory.data_pfns()
    pages = np.zeros((len(pfns), 4096), dtype=np.uint8)
    pages[1::2] = np.arange(4096) % 7 + 1
    pages[:, 8] = 1
    pair.a.memory.write(pfns, pages)
    return pair


def migrate(pair: Pair, codec: str | None):
    migrated = pair.migrate(codecs=CodecOptions(None if codec is None else Coding.parse(codec)))
    pair.join()
    assert (pair.a.table(), pair.b.table()) == ({}, {"web1": "running"})
    pfns = pair.a.memory.data_pfns()
    assert (pair.b.restored.domain.read(pfns) == pair.a.memory.read(pfns)).all()
    return migrated.report


@pytest.mark.parametrize("codec", ["zstd", "zstd:3", "lz4", "deflate", "xor"])
def test_a_domain_moves_in_each_coding_and_the_report_says_what_it_gained(pair, codec):
    report = migrate(pair, codec)
    name = str(Coding.parse(codec))
    if codec == "xor":
        assert set(report.coded) <= {"none", "xor"}
    else:
        assert set(report.coded) == {name}
        assert 0 < report.coded[name].out_bytes < report.coded[name].in_bytes / 2
    total = sum(one.in_bytes for one in report.coded.values())
    assert total == (report.pages_sent - report.zero_pages) * 4096
    assert {name for one in report.rounds for name in one.coded} == set(report.coded)


def test_without_a_codec_the_image_is_in_xens_own_format(pair):
    report = migrate(pair, "none")
    assert report.coded == {}


def test_a_destination_that_names_no_codec_gets_pages_as_they_are(pair, monkeypatch, caplog):
    monkeypatch.setattr(destination, "with_codecs", lambda message: message)
    assert migrate(pair, "zstd").coded == {}
    assert "b cannot decode zstd: pages are sent as they are" in caplog.text


def test_by_default_a_domain_moves_in_whatever_coding_suits(pair):
    report = migrate(pair, None)
    assert sum(one.batches for one in report.coded.values()) > 0


def test_a_destination_that_names_no_codec_is_not_offered_a_choice():
    assert coding_for(CodecOptions(), (), "b", LinkRate(lambda: None)) is None
    auto = coding_for(CodecOptions(), ("none", "zstd"), "b", LinkRate(lambda: None))
    assert isinstance(auto, AutoCoding)
