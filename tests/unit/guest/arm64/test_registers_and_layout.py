"""The list of registers, and what follows from it: encodings, slots of a data page, what the stubs are made of."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from saverestore import arm64_registers as registers
from saverestore.arm64_registers import Kind
from saverestore.guest.arm64 import build, layout


def test_no_two_registers_have_an_encoding_or_a_name_in_common():
    assert len(registers.BY_ENCODING) == len(registers.ALL) == len(registers.BY_NAME)


@pytest.mark.parametrize(
    ("name", "assembler_name", "encoding"),
    [
        # op0 op1 CRn CRm op2 by the Arm ARM, typed here a second time on purpose
        ("vbar_el1", "S3_0_C12_C0_0", 0x0100_C600),
        ("tpidr_el0", "S3_3_C13_C0_2", 0x0100_DE82),
        ("cntvct_el0", "S3_3_C14_C0_2", 0x0100_DF02),
        ("mdscr_el1", "S2_0_C0_C2_2", 0x0100_8012),
        ("icc_pmr_el1", "S3_0_C4_C6_0", 0x0100_C230),
    ],
)
def test_a_system_register_is_encoded_as_in_its_instruction(name, assembler_name, encoding):
    register = registers.BY_NAME[name]
    assert (register.assembler_name, register.encoding) == (assembler_name, encoding)


def test_an_encoding_that_is_in_no_list_is_told_by_what_it_says():
    assert registers.name_of(0x0200_001F) == "q31"
    assert registers.name_of(0x0400_0ABC) == "private register 0xabc"
    assert registers.name_of(0x77_000001) == "register 0x77000001"


@pytest.mark.parametrize("gic", [2, 3])
def test_slots_of_a_data_page_do_not_overlap_and_stay_within_their_part(gic):
    taken: set[int] = set(range(layout.SLOTS_AT))
    for register, at in [*layout.SLOTS.items(), *layout.FOUND_SLOTS.items()]:
        place = range(at, at + register.width)
        assert taken.isdisjoint(place), register.name
        taken.update(place)
        assert at % register.width == 0
    assert max(layout.SLOTS.values()) + 16 <= layout.FOUND_AT
    assert max(taken) < layout.PAGE_SIZE
    assert set(registers.hidden_registers(gic)) <= set(layout.SLOTS)


def test_control_words_lie_before_the_slots_and_are_aligned():
    words = {name: at for name, at in vars(layout.Control).items() if isinstance(at, int)}
    assert max(words.values()) + 8 <= layout.SLOTS_AT
    assert all(at % 8 == 0 for name, at in words.items() if name != "PORT")


def test_memory_of_a_domain_is_in_one_bank_until_it_does_not_fit():
    assert layout.Layout.of_domain(0x48000, 33024).banks == ((0x40000, 0x8000),)
    large = layout.Layout.of_domain(0x200000 + 0x40000, 0x100000)
    assert large.banks == ((0x40000, 0xC0000), (0x200000, 0x40000))
    assert large.end == 0x240000


def test_a_domain_without_memory_where_arm64_has_it_has_no_banks():
    assert layout.Layout.of_domain(0x39004, 4).banks == ()


def test_the_last_frame_follows_from_the_most_memory():
    assert layout.last_gfn(0x8000) == 0x48000
    assert layout.last_gfn(0xC0000 + 5) == 0x200000 + 5


def test_scratch_pages_lie_between_the_magic_pages_and_memory():
    pages = layout.scratch_gfns(layout.MAX_VCPUS)
    assert pages[0] > 0x39000 + 3  # libxc's: console, xenstore, memaccess, vuart
    assert pages[-1] < layout.BANKS[0][0]
    assert layout.data_gfn(3) == pages[5]


def test_private_registers_of_the_gic_are_the_vcpus_own_in_version_3_and_banked_in_version_2():
    assert layout.private_frame(3, 2) == 0x0307_0000
    assert layout.private_frame(2, 0) == layout.private_frame(2, 1) == 0x0300_1000


ASSEMBLER = shutil.which("aarch64-linux-gnu-as")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> dict[str, bytes]:
    if ASSEMBLER is None:
        pytest.skip("needs aarch64-linux-gnu-as (Debian: binutils-aarch64-linux-gnu)")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.S").write_text(build.assembly())
    subprocess.run([ASSEMBLER, "-o", folder / "stub.o", folder / "stub.S"], check=True)
    copy = ["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".rodata.pysave_stubs"]
    subprocess.run([*copy, folder / "stub.o", folder / "code"], check=True)
    listed = subprocess.run(
        ["aarch64-linux-gnu-nm", folder / "stub.o"], capture_output=True, check=True
    ).stdout
    at = {
        name: int(address, 16) for address, name in re.findall(r"(\w+) R pysave_stub_(\w+)", listed.decode())
    }
    code = (folder / "code").read_bytes()
    return {name: code[at[name] : at[f"{name}_end"]] for name in build.PIECES}


def words_of(code: bytes) -> list[int]:
    return [int.from_bytes(code[at : at + 4], "little") for at in range(0, len(code), 4)]


def test_each_stub_fits_a_page_and_the_vectors_are_sixteen_equal_entries(pieces):
    assert all(0 < len(code) <= layout.PAGE_SIZE for code in pieces.values())
    entries = {pieces["vectors"][at : at + 32] for at in range(0, 2048, 128)}
    assert len(entries) == 1
    assert 15 * 128 < len(pieces["vectors"]) <= 2048


@pytest.mark.parametrize("gic", [2, 3])
def test_every_hidden_register_is_read_by_the_save_stub_and_written_by_the_load_stub(gic, pieces):
    read, write = 0xD530_0000, 0xD510_0000  # MRS and MSR with op0 of 2 or 3; Rt is x4
    saved, loaded = words_of(pieces[f"save_v{gic}"]), words_of(pieces[f"load_v{gic}"])
    for register in registers.hidden_registers(gic):
        if register.kind is not Kind.SYSTEM:
            continue
        operand = (register.number & 0x7FFF) << 5 | 4
        assert read | operand in saved, f"{register.name} is not read"
        if register.group.name not in ("COMPARED",) and register.name != "cntvct_el0":
            assert write | operand in loaded, f"{register.name} is not written"
        if register.group.name == "COMPARED":
            assert read | operand in loaded, f"{register.name} is not compared"


def test_a_stub_reads_what_an_exception_would_change_before_it_takes_the_exceptions(pieces):
    for name in ("save_v2", "save_v3", "event"):
        words = words_of(pieces[name])
        own_vectors = words.index(0xD518C004)  # msr vbar_el1, x4
        first = [0xD530_0000 | (r.number & 0x7FFF) << 5 | 4 for r in registers.FIRST]
        assert all(words.index(word) < own_vectors for word in first)
