"""`pyimage convert` as a user runs it."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash
from image_files import Sent, hvm_image, page
from memory_guests import MAKERS, assert_same, image_of, opened, restored_from
from stream_samples import NAMES, golden, source_of

from saverestore.cli import pyimage
from saverestore.engine.policy import Limits
from saverestore.engine.settings import SaveSettings
from saverestore.image.convert_pages import BATCH_PAGES, cut_entries
from saverestore.stream.codecs import Codec, CodecUnavailable, Coding
from saverestore.stream.digest_algorithms import DigestAlgorithm
from saverestore.stream.libxl import EmulatorId, EmulatorState, LibxlRecordType
from saverestore.stream.reader import PageData
from saverestore.stream.records import ImageDigest
from saverestore.stream.walk import walk
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from saverestore.transport.fd import FdSink
from saverestore.transport.random_access import SeekableZstdFile, open_random_access

ROOT = Path(__file__).parents[3]


@pytest.fixture
def image(tmp_path):
    sent = [Sent([(p, 0, page(p + 1)) for p in range(3000)]), Sent([(1, 15, None), (2, 0, page(0))])]
    return hvm_image(tmp_path / "a.img", sent)


def convert(*arguments):
    return pyimage.main(["convert", *map(str, arguments)])


def info(capsys, path):
    pyimage.main(["info", "--json", str(path)])
    return json.loads(capsys.readouterr().out)


def test_there_and_back_is_the_same_bytes(tmp_path, capsys):
    image = hvm_image(
        tmp_path / "a.img", [Sent([(p, 0, page(p)) for p in range(2000)]), Sent([(7, 15, None)])]
    )
    packed, back = tmp_path / "a.zst", tmp_path / "b.img"
    assert convert(image, "-o", packed, "--compress", "zstd:3") == 0
    assert packed.stat().st_size < image.stat().st_size / 10
    assert convert(packed, "-o", back) == 0
    assert back.read_bytes() == image.read_bytes()
    assert "2000 pages, 7.8 MiB" in capsys.readouterr().err


@pytest.mark.parametrize("kind", MAKERS)
def test_a_live_save_of_each_kind_keeps_its_bytes_there_and_back(tmp_path, kind):
    domain = MAKERS[kind]()
    with opened(domain) as guest:
        guest.moments.on("log_dirty.take", 0, lambda: domain.write(domain.data_pfns()[::3], 0x51))
        (tmp_path / "a.img").write_bytes(image_of(guest, SaveSettings(live=True)))
    assert convert(tmp_path / "a.img", "-o", tmp_path / "a.zst", "--compress", "zstd") == 0
    assert convert(tmp_path / "a.zst", "-o", tmp_path / "b.img") == 0
    assert (tmp_path / "b.img").read_bytes() == (tmp_path / "a.img").read_bytes()
    assert pyimage.main(["diff", str(tmp_path / "a.img"), str(tmp_path / "a.zst")]) == 0


def test_what_is_compressed_can_be_read_here_and_there(image, tmp_path, capfdbinary):
    packed = tmp_path / "a.zst"
    assert convert(image, "-o", packed, "--compress", "zstd") == 0
    access = open_random_access(str(packed))
    assert isinstance(access, SeekableZstdFile)
    access.close()
    capfdbinary.readouterr()
    assert pyimage.main(["cat", "--pfn", "2999", str(packed)]) == 0
    assert capfdbinary.readouterr().out == page(3000)
    for command, name in (("dump", "memory"), ("core", "core"), ("map", "map.svg")):
        for source in (image, packed):
            assert pyimage.main([command, str(source), "-o", str(tmp_path / f"{source.name}.{name}")]) == 0
        if command != "map":  # which has the image's name in it
            a, b = (tmp_path / f"{source.name}.{name}" for source in (image, packed))
            assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_image_becomes_version_3_of_the_same_domain(tmp_path, capsys, name):
    image, out = tmp_path / "a.img", tmp_path / "b.img"
    image.write_bytes(golden(name))
    assert convert(image, "-o", out) == 0
    capsys.readouterr()
    before, after = info(capsys, image), info(capsys, out)
    assert (after["version"], after["whole"]) == (3, True)
    assert after["pages"] == before["pages"]
    assert after["layers"] == before["layers"]
    assert pyimage.main(["diff", str(image), str(out)]) == 0
    if before["version"] == 2:
        assert after["records"].keys() - before["records"].keys() == {"STATIC_DATA_END"}
    assert (out.read_bytes() == image.read_bytes()) is (before["version"] == 3 and before["digest"] is None)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("codec", ["zstd", "deflate:1", "none"])
def test_to_draft_b_and_back_is_the_same_bytes(tmp_path, capsys, kind, codec):
    first, coded, back = (tmp_path / name for name in ("first.img", "coded.img", "back.img"))
    domain = MAKERS[kind]()
    with opened(domain) as guest:
        guest.moments.on("log_dirty.take", 0, lambda: domain.write(domain.data_pfns()[::3], 0x51))
        settings = SaveSettings(live=True, digest=DigestAlgorithm.XXH3)
        first.write_bytes(image_of(guest, settings))
    assert convert(first, "-o", coded, "--to", "draft-b", "--codec", codec) == 0
    capsys.readouterr()
    found = info(capsys, coded)
    assert (found["version"], found["whole"], found["digest"]["compared"]) == (1, True, True)
    assert (coded.stat().st_size < first.stat().st_size) is (codec != "none")
    assert convert(coded, "-o", back) == 0
    assert back.read_bytes() == first.read_bytes()


def test_coded_pages_are_not_read_here_and_there_and_what_to_do_is_told(image, tmp_path, capsys):
    assert convert(image, "-o", tmp_path / "b.img", "--to", "draft-b") == 0
    capsys.readouterr()
    assert pyimage.main(["cat", "--pfn", "3", str(tmp_path / "b.img")]) == 2
    assert "pyimage convert" in capsys.readouterr().err


def saved_by_xor(kind: str, provenance: dict | None = None) -> tuple[MemoryDomain, bytes]:
    """A live save of pages that change a little, become zero, are given back and come again; the domain is open."""
    domain = MAKERS[kind]()
    pfns = domain.data_pfns()

    def change(nth: int) -> None:
        for pfn in pfns[nth::70].tolist():
            domain.write_entry(pfn, 9, nth + 77)
        domain.write(pfns[nth * 10 : nth * 10 + 5], 0)
        (domain.balloon_in if nth % 2 else domain.balloon_out)(pfns[-40:-20])

    guest = MemorySave(domain)
    for nth in range(4):
        guest.moments.on("log_dirty.take", nth, lambda nth=nth: change(nth))
    settings = SaveSettings(
        live=True,
        coding=Coding.parse("xor"),
        limits=Limits(few_pages=1),
        digest=DigestAlgorithm.XXH3,
        provenance=provenance,
    )
    return domain, image_of(guest, settings)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("form", [["--to", "xen"], ["--to", "draft-b"], ["--compress", "zstd"]], ids=" ".join)
def test_pages_coded_by_xor_become_what_a_restore_makes_of_them(tmp_path, capsys, kind, form):
    note = {"options": {"format": "draft-b, xor"}} if kind == "pv" else None
    domain, image = saved_by_xor(kind, note)
    (tmp_path / "a.img").write_bytes(image)
    codecs = []
    with source_of(image) as source:
        for event in walk(source):
            codecs += [event.codec] if isinstance(event, PageData) else []
    assert Codec.XOR in codecs
    for command in ("cat", "--pfn", "5"), ("dump", "-o", str(tmp_path / "m")):
        assert pyimage.main([*command, str(tmp_path / "a.img")]) == 2
        assert "pyimage convert" in capsys.readouterr().err
    assert convert(tmp_path / "a.img", "-o", tmp_path / "b.img", *form) == 0
    assert convert(tmp_path / "b.img", "-o", tmp_path / "c.img") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.img", "b.img", "c.img"]
    assert_same(domain, restored_from((tmp_path / "c.img").read_bytes(), domain))
    assert pyimage.main(["dump", str(tmp_path / "c.img"), "-o", str(tmp_path / "m")]) == 0
    domain.close()


def test_pages_coded_by_xor_where_the_note_tells_otherwise_are_refused(tmp_path, capsys):
    domain, image = saved_by_xor("pvh", {"options": {"format": "draft-b, zstd:1"}})
    domain.close()
    (tmp_path / "a.img").write_bytes(image)
    assert convert(tmp_path / "a.img", "-o", tmp_path / "b.img") == 4
    assert "pages coded by xor, but the note of its save names another codec" in capsys.readouterr().err
    assert not (tmp_path / "b.img").exists()


def test_no_room_for_last_versions_is_told_as_such(tmp_path, capsys, monkeypatch):
    domain, image = saved_by_xor("pvh")
    domain.close()
    (tmp_path / "a.img").write_bytes(image)
    with Path("/dev/full").open("r+b", 0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: full)
        assert convert(tmp_path / "a.img", "-o", tmp_path / "b.img") == 5
    assert f"a temporary file in {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "b.img").exists()


def test_codecs_belong_to_draft_b_and_xor_to_live_saves(image, tmp_path, capsys):
    out = tmp_path / "b.img"
    assert convert(image, "-o", out, "--codec", "zstd") == 2
    assert convert(image, "-o", out, "--to", "draft-b", "--codec", "xor") == 2
    assert convert(image, "-o", out, "--to", "draft-b", "--codec", "nonsense") == 2
    assert not out.exists()


def test_plain_leaves_our_own_records_out(image, tmp_path, capsys):
    assert convert(image, "-o", tmp_path / "b.img", "--plain") == 0
    assert "left out" not in capsys.readouterr().err
    assert info(capsys, tmp_path / "b.img")["provenance"] is None
    assert info(capsys, image)["provenance"] is not None


def with_records_before_end(image, *records: tuple[int, bytes]):
    """Put records into a bare libxc stream, directly before END."""
    data = image.read_bytes()
    parts = [struct.pack("<II", type, len(body)) + body + bytes(-len(body) % 8) for type, body in records]
    image.write_bytes(data[:-8] + b"".join(parts) + data[-8:])


def test_what_cannot_be_carried_over_is_told(tmp_path, capsys):
    image = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])], config=None)
    data = image.read_bytes()
    with_records_before_end(image, (0x8000_1234, b"whatever"))
    with_digest = image.read_bytes()
    digest = ImageDigest(1, xxhash.xxh3_128_digest(with_digest[:-8])).pack()
    with_records_before_end(image, (0x8000_5001, digest))
    assert convert(image, "-o", tmp_path / "b.img") == 0
    err = capsys.readouterr().err
    assert "left out: an optional record of the unknown type 0x80001234" in err
    assert "left out: the digest, which the image does not announce" in err
    assert (tmp_path / "b.img").read_bytes() == data


@pytest.mark.parametrize("digest", ["xxh3", "sha256"])
def test_a_digest_is_made_of_what_is_written_and_kept_there_and_back(image, tmp_path, capsys, digest):
    first, packed, back = tmp_path / "first.img", tmp_path / "a.zst", tmp_path / "back.img"
    assert convert(image, "-o", first, "--digest", digest) == 0
    assert convert(first, "-o", packed, "--compress", "zstd") == 0
    assert convert(packed, "-o", back) == 0
    assert back.read_bytes() == first.read_bytes()
    for path in (first, packed):
        capsys.readouterr()
        found = info(capsys, path)
        assert found["whole"]
        assert found["digest"]["compared"]
        assert found["provenance"]["integrity"]["digest"] == digest
        assert found["provenance"]["integrity"]["before"]["bytes"] > 0
        assert found["records"]["FOLLOWING"]["count"] == 1
    assert convert(back, "-o", tmp_path / "none.img", "--digest", "none") == 0
    assert convert(image, "-o", tmp_path / "as-it-was.img") == 0
    assert (tmp_path / "none.img").read_bytes() == (tmp_path / "as-it-was.img").read_bytes()
    assert convert(back, "-o", tmp_path / "plain.img", "--plain") == 0
    capsys.readouterr()
    assert info(capsys, tmp_path / "plain.img")["provenance"] is None


def with_device_model(image: Path, state: bytes) -> None:
    """Put a device model's state before libxl's END."""
    body = EmulatorState(EmulatorId.QEMU_UPSTREAM, 0, state).pack()
    data = image.read_bytes()
    record = struct.pack("<II", LibxlRecordType.EMULATOR_CONTEXT, len(body)) + body + bytes(-len(body) % 8)
    image.write_bytes(data[:-8] + record + data[-8:])


@pytest.mark.parametrize("to", [["--to", "xen"], ["--to", "draft-b"], ["--compress", "zstd"]], ids=" ".join)
def test_the_digest_covers_a_device_models_state_in_every_form(image, tmp_path, capsys, to):
    with_device_model(image, b"QEVM" * 500)
    out = tmp_path / "out.img"
    assert convert(image, "-o", out, "--digest", "xxh3", *to) == 0
    capsys.readouterr()
    assert info(capsys, out)["records"]["FOLLOWING"]["count"] == 1
    if "zstd" not in to:
        out.write_bytes(out.read_bytes().replace(b"QEVMQEVM", b"QEVMQEMV", 1))
        for command in (["verify", str(out)], ["convert", str(out), "-o", str(tmp_path / "b.img")]):
            assert pyimage.main(command) == 4
            assert "damaged behind the libxc stream" in "".join(capsys.readouterr())
        assert not (tmp_path / "b.img").exists()


def test_a_digest_that_knows_only_the_stream_stays_so(tmp_path, capsys):
    image = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])], head=[], config=None)
    assert convert(image, "-o", tmp_path / "bare.img", "--digest", "xxh3") == 0
    # As libxl makes it, with our helper inside.
    layered = hvm_image(tmp_path / "b.img", [Sent([(1, 0, page(1))])])
    head = layered.read_bytes()[: layered.read_bytes().index(b"\xff" * 8)]
    data = head + (tmp_path / "bare.img").read_bytes() + bytes(8)
    layered.write_bytes(data)
    assert convert(layered, "-o", tmp_path / "c.img") == 0
    assert (tmp_path / "c.img").read_bytes() == data


def test_an_image_without_a_note_gets_one_with_its_digest(tmp_path, capsys):
    image = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])], head=[], config=None)
    assert convert(image, "-o", tmp_path / "b.img", "--digest", "xxh3") == 0
    capsys.readouterr()
    found = info(capsys, tmp_path / "b.img")
    assert found["provenance"] == {"integrity": {"digest": "xxh3"}}
    assert found["digest"]["compared"]
    assert convert(tmp_path / "b.img", "-o", tmp_path / "c.img", "--digest", "none") == 0
    assert (tmp_path / "c.img").read_bytes() == image.read_bytes()


def test_an_image_whose_digest_does_not_hold_is_not_converted(image, tmp_path, capsys):
    assert convert(image, "-o", tmp_path / "b.img", "--digest", "xxh3") == 0
    data = bytearray((tmp_path / "b.img").read_bytes())
    data[data.index(page(77)) + 9] ^= 1
    (tmp_path / "b.img").write_bytes(data)
    assert convert(tmp_path / "b.img", "-o", tmp_path / "c.img") == 4
    assert "is damaged: its XXH3-128 digest" in capsys.readouterr().err
    assert not (tmp_path / "c.img").exists()


def test_plain_and_a_digest_exclude_each_other(image, tmp_path, capsys):
    assert convert(image, "-o", tmp_path / "b.img", "--plain", "--digest", "xxh3") == 2
    assert "--plain" in capsys.readouterr().err


def test_large_records_are_cut_so_that_memory_is_bounded(image, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("saverestore.image.convert_pages.BATCH_PAGES", 2048)
    assert convert(image, "-o", tmp_path / "b.img") == 0
    capsys.readouterr()
    assert info(capsys, image)["records"]["PAGE_DATA"]["count"] == 2
    assert info(capsys, tmp_path / "b.img")["records"]["PAGE_DATA"]["count"] == 3
    assert pyimage.main(["diff", str(image), str(tmp_path / "b.img")]) == 0


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
def test_cuts_go_on_where_the_last_ended_and_none_is_too_large(share):
    there = np.random.default_rng(3).random(100_000) < share
    cuts = list(cut_entries(there))
    assert [begin for begin, _ in cuts[1:]] == [end for _, end in cuts[:-1]]
    assert (cuts[0][0], cuts[-1][1]) == (0, len(there))
    for begin, end in cuts:
        assert 0 < end - begin <= 8 * BATCH_PAGES
        assert there[begin:end].sum() <= BATCH_PAGES


@pytest.mark.parametrize("how", ["none", "zstd"])
def test_the_sink_is_told_that_all_was_given(image, tmp_path, monkeypatch, how):
    finished = []
    monkeypatch.setattr(FdSink, "finish", lambda sink: finished.append(sink.offset))
    assert convert(image, "-o", tmp_path / "b.img", "--compress", how) == 0
    assert set(finished) == {(tmp_path / "b.img").stat().st_size}


def test_pipes_on_both_sides(tmp_path):
    image = hvm_image(tmp_path / "a.img", [Sent([(p, 0, page(p)) for p in range(50)])])
    command = f"{sys.executable} -m saverestore.cli.pyimage convert"
    line = f"set -o pipefail; {command} --compress zstd -o - - < {image} | {command} -o - - | cmp - {image}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "standard output: 50 pages" in done.stderr


@pytest.mark.parametrize("how", ["zstd:0", "zstd:20", "zstd:", "gzip", "zstd:1.5", ""])
def test_only_known_compressions_are_taken(image, tmp_path, capsys, how):
    with pytest.raises(SystemExit) as caught:
        convert(image, "-o", tmp_path / "b.img", "--compress", how)
    assert caught.value.code == 2
    assert "zstd:19" in capsys.readouterr().err


@pytest.mark.parametrize("compress", ["none", "zstd"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:-5], lambda data: data + b"x", lambda data: data[:2_000_000]]
)
def test_a_damaged_image_leaves_nothing(image, tmp_path, capsys, damage, compress):
    image.write_bytes(damage(image.read_bytes()))
    assert convert(image, "-o", tmp_path / "b.img", "--compress", compress) == 4
    assert list(tmp_path.iterdir()) == [image]


@pytest.mark.parametrize("failure", ["damage", "no library", "interrupt"])
def test_workers_that_code_records_end_with_whatever_goes_wrong(image, tmp_path, monkeypatch, failure):
    def fails(*_: object) -> bytes:
        raise CodecUnavailable("zstd needs a package")

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    if failure == "damage":
        image.write_bytes(image.read_bytes()[:9_000_000])
    elif failure == "no library":
        monkeypatch.setattr("saverestore.stream.page_coding.compress", fails)
    else:
        monkeypatch.setattr("saverestore.stream.writer.LibxcWriter.write_prepared", interrupted)
    code = {"damage": 4, "no library": 4, "interrupt": 130}[failure]
    assert convert(image, "-o", tmp_path / "b.img", "--to", "draft-b") == code
    assert list(tmp_path.iterdir()) == [image]
    assert [one.name for one in threading.enumerate() if one.name.startswith("coding")] == []


def test_a_compressed_image_that_is_cut_leaves_nothing(image, tmp_path, capsys):
    packed = tmp_path / "a.zst"
    assert convert(image, "-o", packed, "--compress", "zstd") == 0
    packed.write_bytes(packed.read_bytes()[:-3000])
    assert convert(packed, "-o", tmp_path / "b.img") == 4
    assert sorted(tmp_path.iterdir()) == [image, packed]


@pytest.mark.parametrize("compress", ["none", "zstd"])
def test_an_interrupt_leaves_nothing(image, tmp_path, monkeypatch, capsys, compress):
    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("saverestore.image.convert_pages.cut_entries", interrupt)
    assert convert(image, "-o", tmp_path / "b.img", "--compress", compress) == 130
    assert list(tmp_path.iterdir()) == [image]


def test_an_image_is_not_converted_into_itself(image, capsys):
    whole = image.read_bytes()
    assert convert(image, "-o", image, "--overwrite") == 2
    assert image.read_bytes() == whole
