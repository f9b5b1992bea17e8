"""A vCPU's registers between Xen, a data page and the image; and the journal that puts them back."""

from __future__ import annotations

import dataclasses
import json
import uuid

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saverestore.arm64_registers import BY_NAME, COMPARED, hidden_registers
from saverestore.errors import DomainError, ImageError, TransportError
from saverestore.guest.arm64 import journal as journals
from saverestore.guest.arm64 import layout, vcpu
from saverestore.guest.arm64.journal import Journal
from saverestore.stream.records import Arm64Vcpu

UUID = uuid.UUID("d29bd8ec-a490-455e-ae19-9949c59b62a1")
U64 = st.integers(0, 2**64 - 1)
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def contexts(draw):
    special = {f.name: draw(U64) for f in dataclasses.fields(vcpu.Context) if f.name not in ("x", "online")}
    x = draw(st.lists(U64, min_size=31, max_size=31))
    return vcpu.Context(x=tuple(x), **special, online=draw(st.booleans()))


def some_context(**changed) -> vcpu.Context:
    special = {f.name: 0x1000 + n for n, f in enumerate(dataclasses.fields(vcpu.Context))}
    return vcpu.Context(**{**special, "x": tuple(range(100, 131)), "online": True, **changed})


@st.composite
def hidden_values(draw, gic):
    """Of all hidden registers; drawn as one string of bytes, which is quick."""
    data = draw(st.binary(min_size=2048, max_size=2048))
    return {
        r: int.from_bytes(data[8 * n : 8 * n + r.width], "little")
        for n, r in enumerate(hidden_registers(gic))
    }


@pytest.mark.parametrize("gic", [2, 3])
def test_hidden_registers_come_back_out_of_a_data_page(gic):
    @QUICK
    @given(hidden_values(gic))
    def check(values):
        page = np.zeros(4096, dtype=np.uint8)
        vcpu.write_slots(page, values)
        assert vcpu.read_slots(page, gic) == values

    check()


@QUICK
@given(contexts(), st.sampled_from([2, 3]), st.data())
def test_a_vcpu_comes_back_out_of_its_record(context, gic, data):
    hidden = data.draw(hidden_values(gic)) if context.online else {}
    record = vcpu.record_of(3, context, hidden)
    again = Arm64Vcpu.unpack(record.pack(), 0)
    assert vcpu.unpack_record(again, gic) == (context, hidden)


def full_record(gic: int = 3) -> Arm64Vcpu:
    return vcpu.record_of(0, some_context(), dict.fromkeys(hidden_registers(gic), 1))


def test_a_record_that_lacks_a_register_is_refused_by_its_name():
    record = full_record()
    fewer = tuple(pair for pair in record.registers if pair[0] != BY_NAME["mair_el1"].encoding)
    with pytest.raises(ImageError, match="lacks mair_el1 of vCPU 0"):
        vcpu.unpack_record(dataclasses.replace(record, registers=fewer), 3)


def test_a_record_of_another_gic_is_refused():
    with pytest.raises(ImageError, match="lacks icc_sre_el1"):
        vcpu.unpack_record(full_record(gic=2), 3)


def test_a_register_that_this_version_does_not_know_is_refused_rather_than_forgotten():
    record = full_record()
    more = (*record.registers, (0x0100_C108, 5))  # apiakeylo_el1
    with pytest.raises(ImageError, match="cannot restore: system register 0xc108"):
        vcpu.unpack_record(dataclasses.replace(record, registers=more), 3)


def test_a_stub_begins_with_the_mmu_off_at_the_physical_address_of_its_page():
    begun = vcpu.into_stub(some_context(sctlr_el1=0x30D0_198D), 2, 3, 1, run=True)
    assert begun.pc == layout.SCRATCH_GFN << 12
    assert begun.x[:4] == (layout.data_gfn(2) << 12, 0x0307_0000, 1, 2)
    assert begun.sctlr_el1 & vcpu.MMU_AND_CACHES == 0
    assert begun.in_stub
    assert begun.online


def test_a_vcpu_that_is_not_to_run_the_stub_is_taken_down():
    assert not vcpu.into_stub(some_context(), 1, 3, 0, run=False).online


def test_a_guest_with_its_mmu_on_is_never_taken_for_one_in_a_stub():
    assert not some_context(pc=layout.SCRATCH_GFN << 12, sctlr_el1=1).in_stub
    assert not some_context(pc=0x4000_0000, sctlr_el1=0).in_stub


def test_a_vcpu_info_is_handed_to_xen_as_frame_and_offset():
    page = np.zeros(4096, dtype=np.uint8)
    vcpu.write_vcpu_info(page, 0x4567_8910)
    at = layout.Control.VCPU_INFO
    assert page[at : at + 16].tobytes().hex() == "7856040000000000" + "10090000" + "00000000"


def compared(**changed: int):
    values = dict.fromkeys(COMPARED, 0)
    return values | {BY_NAME[name]: value for name, value in changed.items()}


@pytest.mark.parametrize(
    ("register", "value", "what"),
    [
        ("id_aa64pfr0_el1", 1 << 32, "SVE"),
        ("id_aa64isar1_el1", 1 << 4, "pointer authentication"),
        ("id_aa64isar1_el1", 1 << 8, "pointer authentication"),
        ("id_aa64isar1_el1", 1 << 24, "pointer authentication"),
        ("id_aa64isar1_el1", 1 << 28, "pointer authentication"),
    ],
)
def test_a_vcpu_with_state_that_nothing_reads_is_refused(register, value, what):
    with pytest.raises(DomainError, match=f"vCPU 1 has {what}.* is running"):
        vcpu.check_can_be_carried(1, compared(**{register: value}))


def test_a_vcpu_without_such_state_is_carried():
    vcpu.check_can_be_carried(0, compared(id_aa64pfr0_el1=0x2222, id_aa64isar1_el1=1 << 12))


def test_a_32_bit_guest_is_refused():
    with pytest.raises(DomainError, match="AArch32"):
        vcpu.check_is_64_bit(0, some_context(cpsr=0x1D3))
    vcpu.check_is_64_bit(0, some_context(cpsr=0x3C5))


def test_what_differs_on_another_processor_is_told_register_by_register():
    told = vcpu.differences(compared(midr_el1=0x411FD070), compared(midr_el1=0x410FD034))
    assert told == ["midr_el1 is 0x410fd034 here, was 0x411fd070"]


# ---- the journal -----------------------------------------------------------------------------------------


def a_journal(**changed) -> Journal:
    values = {
        "domid": 3,
        "uuid": UUID,
        "contexts": (some_context(), some_context(pc=5, online=False)),
        "shared_info_gfn": 0x41234,
        "shared_info": bytes(range(256)) * 16,
    }
    return Journal(**{**values, **changed})


def test_a_journal_is_read_as_it_was_written(tmp_path):
    journals.write(a_journal(), tmp_path)
    assert journals.read(3, UUID, tmp_path) == a_journal()
    cleared = np.array([[1 << 30, 2**64 - 1]], dtype=np.uint64)
    journals.write(a_journal().with_cleared(cleared), tmp_path)
    again = journals.read(3, UUID, tmp_path)
    assert again is not None
    assert dataclasses.replace(again, cleared=None) == a_journal()
    assert (again.cleared == cleared).all()


def test_a_journal_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("os.fsync", lambda fd: seen.append(sorted(p.suffix for p in tmp_path.iterdir())))
    journals.write(a_journal(), tmp_path)
    assert seen == [[".new"], [".journal"]]


def test_a_domain_without_a_journal_has_none_and_one_can_be_removed_twice(tmp_path):
    assert journals.read(3, UUID, tmp_path) is None
    journals.write(a_journal(), tmp_path)
    assert journals.read(4, UUID, tmp_path) is None
    journals.remove(3, UUID, tmp_path)
    journals.remove(3, UUID, tmp_path)
    assert journals.read(3, UUID, tmp_path) is None


def test_a_journal_of_an_earlier_boot_is_not_believed(tmp_path, monkeypatch):
    """A domain of the same number and UUID after the host's crash is not in the state that it speaks of."""
    for settled in (False, True):
        with monkeypatch.context() as later:
            journals.write(a_journal(), tmp_path)
            if settled:
                journals.settle(3, UUID, tmp_path)
            assert journals.is_there(3, UUID, tmp_path)
            assert journals.is_settled(3, UUID, tmp_path) is settled
            other = tmp_path / "boot_id"
            other.write_text("another\n")
            later.setattr(journals, "BOOT_ID", other)
            assert journals.read(3, UUID, tmp_path) is None
            assert not journals.is_there(3, UUID, tmp_path)
            assert not journals.is_settled(3, UUID, tmp_path)


def test_a_damaged_journal_is_there(tmp_path):
    journals.path_of(3, UUID, tmp_path).write_text("{")
    assert journals.is_there(3, UUID, tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"format": 2', '"format": 1'),
        lambda text: text.replace('"pc"', '"qc"', 1),
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "shared_info": "!"}),
    ],
)
def test_a_damaged_journal_is_refused_and_nothing_is_done(tmp_path, damage):
    journals.write(a_journal(), tmp_path)
    path = journals.path_of(3, UUID, tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(DomainError, match=r"cannot be read: .*; no changes were made"):
        journals.read(3, UUID, tmp_path)


def test_a_journal_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    with pytest.raises(TransportError, match="journal cannot be written"):
        journals.write(a_journal(), tmp_path / "missing")
