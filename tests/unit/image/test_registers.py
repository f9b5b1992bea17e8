"""Layouts of registers, held against Xen's headers where a compiler and they are; and contexts that are none."""

from __future__ import annotations

import shutil
import struct
import subprocess

import numpy as np
import pytest
from image_files import Sent, hvm_context, hvm_image, page

from saverestore.errors import ImageError
from saverestore.image.access import open_image
from saverestore.image.index import index_image
from saverestore.image.registers import (
    HVM_CPU,
    HVM_TYPE_NAMES,
    PAD,
    PV_CONTEXT,
    SEGMENTS,
    Vcpu,
    hvm_records,
    opaque_parts,
    values_of,
    vcpus_of,
)
from saverestore.stream.records import HvmContext

PV_FIELDS = {
    "fpu": "fpu_ctxt",
    "traps": "trap_ctxt",
    **{name: f"user_regs.{name}" for name in PV_CONTEXT.names},
    **{f"gdt_frame{i}": f"gdt_frames[{i}]" for i in range(16)},
    **{f"cr{i}": f"ctrlreg[{i}]" for i in range(8)},
    **{f"dr{i}": f"debugreg[{i}]" for i in range(8)},
}
OF_THE_CONTEXT = (
    *(
        "flags",
        "ldt_base",
        "ldt_ents",
        "gdt_ents",
        "kernel_ss",
        "kernel_sp",
        "event_callback_eip",
        "vm_assist",
    ),
    *("failsafe_callback_eip", "syscall_callback_eip", "fs_base", "gs_base_kernel", "gs_base_user"),
)
PV_FIELDS |= {name: name for name in OF_THE_CONTEXT} | {"fpu": "fpu_ctxt", "traps": "trap_ctxt"}
HVM_FIELDS = {name: name for name in HVM_CPU.names} | {name: f"{name}_sel" for name in SEGMENTS}
HVM_FIELDS |= {"fpu": "fpu_regs"}


def compiled_offsets(tmp_path, struct_name: str, fields: dict[str, str], dtype: np.dtype) -> list[str]:
    """Names of fields that are elsewhere, or of another size, than the compiler puts them."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    names = [name for name in dtype.names if not name.startswith(PAD)]
    lines = [
        f'printf("{name} %zu %zu\\n", offsetof({struct_name}, {fields[name]}), sizeof(x.{fields[name]}));'
        for name in names
    ]
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <xen/xen.h>\n"
        "#include <xen/hvm/save.h>\n"
        f"int main(void) {{ {struct_name} x; {' '.join(lines)}\n"
        f'printf("all 0 %zu\\n", sizeof(x)); return 0; }}\n'
    )
    program = tmp_path / "layout"
    done = subprocess.run(
        ["cc", str(source), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if "No such file" in done.stderr:
        pytest.skip("needs Xen's headers: libxen-dev")
    assert done.returncode == 0, done.stderr
    told = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    wrong = [
        name
        for name, offset, size in zip(told[:-3:3], told[1:-3:3], told[2:-3:3], strict=True)
        if (dtype.fields[name][1], dtype[name].itemsize) != (int(offset), int(size))
    ]
    assert len(told) // 3 - 1 == len(names)
    return wrong if int(told[-1]) == dtype.itemsize else [*wrong, "the whole"]


def test_a_pv_context_is_laid_out_as_the_compiler_says(tmp_path):
    assert compiled_offsets(tmp_path, "struct vcpu_guest_context", PV_FIELDS, PV_CONTEXT) == []


def test_an_hvm_vcpu_is_laid_out_as_the_compiler_says(tmp_path):
    assert compiled_offsets(tmp_path, "struct hvm_hw_cpu", HVM_FIELDS, HVM_CPU) == []


@pytest.mark.parametrize("layout", [PV_CONTEXT, HVM_CPU])
def test_every_byte_of_a_context_is_a_register_a_part_or_padding(layout):
    taken = np.zeros(layout.itemsize, dtype=int)
    for dtype, offset, *_ in layout.fields.values():
        taken[offset : offset + dtype.itemsize] += 1
    assert (taken == 1).all()
    assert "fpu" in opaque_parts(layout)
    assert "fpu" not in values_of(layout, bytes(layout.itemsize))
    assert values_of(layout, bytes(layout.itemsize - 1)) is None


def test_an_hvm_context_is_taken_apart_and_names_its_records():
    records = hvm_records(hvm_context({"rip": 0x1234}, {"rip": 0x5678}))
    assert [(r.name, r.instance) for r in records] == [("HEADER", 0), ("CPU", 0), ("CPU", 1)]
    assert values_of(HVM_CPU, records[2].body)["rip"] == 0x5678
    assert len(set(HVM_TYPE_NAMES.values())) == len(HVM_TYPE_NAMES) == 20


@pytest.mark.parametrize(
    "context",
    [b"", b"context of an HVM domain", struct.pack("<HHI", 2, 0, 9) + bytes(8), struct.pack("<HHI", 2, 0, 0)],
)
def test_what_is_no_chain_of_records_is_an_error(context):
    with pytest.raises(ImageError, match="HVM_CONTEXT"):
        hvm_records(context)


def test_the_gs_base_of_a_pv_vcpu_is_that_of_the_mode_it_is_in():
    bases = {"gs_base_kernel": 1, "gs_base_user": 2}
    assert Vcpu(0, True, bases | {"flags": 4}).gs_base == 1
    assert Vcpu(0, True, bases | {"flags": 0}).gs_base == 2


@pytest.mark.parametrize(
    ("context", "text"),
    [(b"no chain at all", "HVM_CONTEXT"), (hvm_context({"rip": 1}, cut=8), "vcpu 0: 1024 bytes")],
)
def test_registers_that_are_not_understood_are_told_in_words(tmp_path, context, text):
    path = hvm_image(tmp_path / "a.img", [Sent([(1, 0, page(1))])], tail=[HvmContext(context)])
    with open_image(str(path)) as access:
        vcpus, unknown = vcpus_of(index_image(access))
    assert vcpus == []
    assert len(unknown) == 1
    assert text in unknown[0]
