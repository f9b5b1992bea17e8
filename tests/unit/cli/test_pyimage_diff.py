"""`pyimage diff` as a user runs it."""

from __future__ import annotations

import copy
import json
import struct

import pytest
from image_files import CONFIG, Sent, hvm_context, hvm_image, page
from memory_guests import MAKERS, image_of, opened

from saverestore.cli import pyimage
from saverestore.engine.settings import SaveSettings
from saverestore.guest.x86 import layout
from saverestore.stream.records import HvmContext, HvmParams, Provenance, X86MsrPolicy, X86TscInfo

PAGES = [(p, 0, page(p + 1)) for p in range(20)]


def diff(capsys, *arguments):
    code = pyimage.main(["diff", *map(str, arguments)])
    return code, capsys.readouterr()


def as_json(capsys, a, b):
    code, captured = diff(capsys, "--json", a, b)
    found = json.loads(captured.out)
    assert found["same"] is (code == 0)
    return found


@pytest.fixture
def a(tmp_path):
    return hvm_image(tmp_path / "a.img", [Sent(PAGES)], tail=tail())


def tail(rip=0x1000, tsc=5, param=7, lapic=b"l" * 8, cpus=1):
    context = hvm_context(*({"rip": rip + i, "rax": 1} for i in range(cpus)))
    context = context[:-8] + struct.pack("<HHI", 6, 0, len(lapic)) + lapic + context[-8:]
    return [X86TscInfo(0, 100, tsc, 0), HvmParams(((1, param),)), HvmContext(context)]


def test_an_image_is_the_same_as_itself(a, capsys):
    code, captured = diff(capsys, a, a)
    assert code == 0
    assert "20 the same (80.0 KiB)" in captured.out
    assert captured.out.endswith("verdict         the same domain in the same state\n")


def test_order_of_records_and_versions_sent_before_make_no_difference(a, tmp_path, capsys):
    sent = [Sent([(0, 0, page(99)), (30, 0, page(1))]), Sent([*PAGES[10:], (30, 15, None)]), Sent(PAGES[:10])]
    b = hvm_image(tmp_path / "b.img", sent, tail=tail())
    assert diff(capsys, a, b)[0] == diff(capsys, b, a)[0] == 0


def test_pages_that_differ_are_counted_by_kind_with_their_ranges(a, tmp_path, capsys):
    pages = [
        *PAGES[:5],
        (5, 0, page(77)),
        (6, 0, page(78)),
        (8, 1, page(9)),
        *PAGES[9:],
        (40, 0, page(1)),
        (41, 14, None),
    ]
    b = hvm_image(tmp_path / "b.img", [Sent(pages)], tail=tail())
    found = as_json(capsys, a, b)["pages"]
    assert found["same"] == 16
    assert found["changed"] == {
        "nr_pages": 3,
        "by_type": {"NOTAB": 2, "NOTAB → L1TAB": 1},
        "pfns": [[5, 6], [8, 8]],
    }
    assert found["only_a"] == {"nr_pages": 1, "by_type": {"NOTAB": 1}, "pfns": [[7, 7]]}
    assert found["only_b"] == {"nr_pages": 1, "by_type": {"NOTAB": 1}, "pfns": [[40, 40]]}
    code, captured = diff(capsys, a, b)
    assert code == 1
    for text in (
        "changed       3 (12.0 KiB)",
        "NOTAB 2, NOTAB → L1TAB 1",
        "0x5-0x6  0x8",
        "only in A",
        "different",
    ):
        assert text in captured.out
    assert captured.err == ""


def test_ranges_across_the_steps_of_the_index_are_one(tmp_path, capsys):
    pages = [(p, 0, page(1)) for p in range(32766, 32770)]
    a = hvm_image(tmp_path / "a.img", [Sent(pages)])
    b = hvm_image(tmp_path / "b.img", [Sent([(p, 0, page(2)) for p, _, _ in pages])])
    assert as_json(capsys, a, b)["pages"]["changed"]["pfns"] == [[32766, 32769]]


def test_many_ranges_are_cut_for_people_and_not_for_programs(tmp_path, capsys):
    a = hvm_image(tmp_path / "a.img", [Sent([(2 * p, 0, page(1)) for p in range(40)])])
    b = hvm_image(tmp_path / "b.img", [Sent([(1000, 0, page(1))])])
    assert "and 28 more ranges; --json has all" in diff(capsys, a, b)[1].out
    assert len(as_json(capsys, a, b)["pages"]["only_a"]["pfns"]) == 40


def test_registers_are_named_and_other_state_is_taken_apart_as_far_as_it_is_known(a, tmp_path, capsys):
    changed = tail(rip=0x2000, tsc=6, param=8, lapic=b"lLlLlLlL", cpus=2)
    b = hvm_image(tmp_path / "b.img", [Sent(PAGES)], tail=[*changed])
    found = as_json(capsys, a, b)
    assert found["registers"]["vcpu 0"] == [{"path": "rip", "a": 0x1000, "b": 0x2000}]
    assert {"path": "rip", "b": 0x2001} in found["registers"]["vcpu 1"]
    assert found["records"] == [
        {"path": "X86_TSC_INFO nsec", "a": 5, "b": 6},
        {"path": "HVM_PARAMS 1", "a": 7, "b": 8},
        {"path": "HVM_CONTEXT LAPIC_REGS 0", "a": "8 bytes", "b": "8 bytes, 4 of them different"},
    ]
    out = diff(capsys, a, b)[1].out
    assert "  rip  0x1000 → 0x2000" in out


def test_configuration_is_compared_by_path(a, tmp_path, capsys):
    config = copy.deepcopy(CONFIG)
    config["c_info"]["name"] = "web2\x1b[31m"
    config["b_info"]["cpuid"] = [1, {"x": True}]
    del config["b_info"]["max_memkb"]
    b = hvm_image(tmp_path / "b.img", [Sent(PAGES)], config=config, tail=tail())
    assert as_json(capsys, a, b)["configuration"] == [
        {"path": "c_info.name", "a": "web1", "b": "web2\x1b[31m"},
        {"path": "b_info.max_memkb", "a": 131072},
        {"path": "b_info.cpuid", "b": [1, {"x": True}]},
    ]
    out = diff(capsys, a, b)[1].out
    assert "b_info.max_memkb  0x20000 → absent" in out
    assert r"web1 → web2\x1b[31m" in out
    assert "\x1b" not in out


def test_a_value_that_is_called_absent_is_not_the_same_as_none(a, tmp_path, capsys):
    config = copy.deepcopy(CONFIG)
    config["b_info"]["kernel"] = "absent"
    b = hvm_image(tmp_path / "b.img", [Sent(PAGES)], config=config, tail=tail())
    assert as_json(capsys, a, b)["configuration"] == [{"path": "b_info.kernel", "b": "absent"}]
    assert as_json(capsys, b, a)["configuration"] == [{"path": "b_info.kernel", "a": "absent"}]


def test_what_is_only_said_about_an_image_is_shown_and_does_not_count(a, tmp_path, capsys):
    b = hvm_image(
        *(tmp_path / "b.img", [Sent(PAGES)]),
        head=[Provenance({"tool": "pysave", "host": "there"})],
        tail=tail(),
        version=2,
    )
    code, captured = diff(capsys, a, b)
    assert code == 0
    assert "format version   3 → 2" in captured.out
    assert "PROVENANCE.host  here → there" in captured.out


def test_an_entry_that_is_there_twice_hides_nothing(tmp_path, capsys):
    entries = [X86MsrPolicy(struct.pack("<IIQIIQ", 1, 0, value, 1, 0, 5)) for value in (3, 4)]
    a, b = (
        hvm_image(tmp_path / f"{i}.img", [Sent(PAGES)], head=[entry], tail=tail())
        for i, entry in enumerate(entries)
    )
    assert as_json(capsys, a, b)["records"][0]["b"] == "32 bytes, 1 of them different"


@pytest.mark.parametrize("kind", MAKERS)
def test_two_saves_of_a_domain_differ_in_what_it_did_between_them(tmp_path, capsys, kind):
    domain = MAKERS[kind]()
    names = [tmp_path / "a.img", tmp_path / "b.img", tmp_path / "c.img"]
    with opened(domain) as guest:
        names[0].write_bytes(image_of(guest, SaveSettings(live=True)))
        guest.resume()
        written = domain.data_pfns()[100:110]
        domain.write(written, 0x77)
        if domain.is_pv:
            raw = bytearray(domain.state.contexts[1])
            raw[layout.VCPU_CONTEXT.fields["rdx"][1]] ^= 1
            domain.state.contexts[1] = bytes(raw)
        names[1].write_bytes(image_of(guest))
        guest.resume()
        names[2].write_bytes(image_of(guest))
    found = as_json(capsys, names[0], names[1])
    pfns = [p for first, last in found["pages"]["changed"]["pfns"] for p in range(first, last + 1)]
    assert pfns == written.tolist()
    assert found["pages"]["only_a"]["nr_pages"] == found["pages"]["only_b"]["nr_pages"] == 0
    if domain.is_pv:
        assert list(found["registers"]) == ["vcpu 1"]
        assert [change["path"] for change in found["registers"]["vcpu 1"]] == ["rdx"]
    assert diff(capsys, names[1], names[2])[0] == 0


def test_a_damaged_or_absent_image_is_neither_the_same_nor_different(a, tmp_path, capsys):
    assert diff(capsys, a, tmp_path / "absent")[0] == 2
    b = tmp_path / "b.img"
    b.write_bytes(a.read_bytes()[:-20])
    code, captured = diff(capsys, a, b)
    assert code == 4
    assert str(b) in captured.err
    assert captured.out == ""
