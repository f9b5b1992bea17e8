"""What C code is told about, held against the compiler that built the binding."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

try:
    import pyxc
except ImportError as error:
    pytest.skip(f"needs the compiled binding: {error}", allow_module_level=True)

from pyxc._xen import ffi, lib
from saverestore.guest.x86 import layout

CDEFS = Path(__file__).parents[3] / "pyxc" / "cdef"
CDEF = "".join((CDEFS / f"{name}.h").read_text() for name in ("xen", pyxc.ARCHITECTURE))
WITHOUT_COMMENTS = re.sub(r"/\*.*?\*/", "", CDEF, flags=re.DOTALL)

STRUCTS = re.findall(r"^struct (\w+) \{", WITHOUT_COMMENTS, flags=re.MULTILINE)
CONSTANTS = re.findall(r"^#define (\w+) \.\.\.", WITHOUT_COMMENTS, flags=re.MULTILINE)
FUNCTIONS = sorted({*re.findall(r"(\w+)\([^;{}]*\);", WITHOUT_COMMENTS)} - {"pyxc_log_message"})


def test_the_declarations_were_found():
    assert "pyxc_pv_layout" in STRUCTS
    assert "XS_PERM_READ" in CONSTANTS
    assert "xc_domain_pause" in FUNCTIONS


@pytest.mark.parametrize("name", STRUCTS)
def test_every_struct_has_the_size_that_the_compiler_gives_it(name):
    """cffi notices a field of the wrong width only when the struct is first used: here."""
    assert ffi.sizeof(f"struct {name}") > 0
    assert ffi.new(f"struct {name} *") != ffi.NULL


@pytest.mark.parametrize("name", CONSTANTS)
def test_every_constant_is_there(name):
    assert isinstance(getattr(lib, name), int)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_there(name):
    assert callable(getattr(lib, name))


@pytest.fixture(scope="module")
def pv():
    out = ffi.new("struct pyxc_pv_layout *")
    lib.pyxc_pv_layout_x86_64(out)
    return out


def offset(dtype: np.dtype, name: str) -> int:
    assert dtype.fields is not None
    return dtype.fields[name][1]


def test_shared_info_is_laid_out_as_the_compiler_says(pv):
    assert offset(layout.SHARED_INFO, "vcpu_info") == pv.shinfo_vcpu_info
    assert layout.VCPU_INFO.itemsize == pv.shinfo_vcpu_info_stride
    assert layout.VCPU_INFO.itemsize * layout.NR_LEGACY_VCPUS == pv.shinfo_vcpu_info_size
    assert offset(layout.VCPU_INFO, "evtchn_pending_sel") == pv.vcpu_info_pending_sel
    for name in ("evtchn_pending", "evtchn_mask"):
        assert offset(layout.SHARED_INFO, name) == getattr(pv, f"shinfo_{name}")
        assert layout.SHARED_INFO[name].itemsize == pv.shinfo_evtchn_size
    assert offset(layout.SHARED_INFO, "arch") == pv.shinfo_arch
    assert pv.shared_info_size <= layout.SHARED_INFO.itemsize == 4096


def test_the_arch_part_of_shared_info_is_laid_out_as_the_compiler_says(pv):
    arch = layout.ARCH_SHARED_INFO
    names = {"frame_list_list": "fll"}
    for name in arch.names:
        assert offset(arch, name) == getattr(pv, f"arch_{names.get(name, name)}") - pv.shinfo_arch, name
    assert arch.itemsize == pv.shinfo_arch_size


def test_a_vcpu_context_is_laid_out_as_the_compiler_says(pv):
    for name in layout.VCPU_CONTEXT.names:
        assert offset(layout.VCPU_CONTEXT, name) == getattr(pv, f"ctx_{name}"), name
    assert layout.VCPU_CONTEXT.itemsize == pv.ctx_size == lib.pyxc_vcpu_context_size()
    assert pv.ctx_nr_gdt_frames == layout.NR_GDT_FRAMES


def test_start_info_is_laid_out_as_the_compiler_says(pv):
    for name in layout.START_INFO.names:
        assert offset(layout.START_INFO, name) == getattr(pv, f"si_{name}"), name


def test_every_number_of_the_compiler_was_compared(pv):
    """A field that is added to the C struct must be added above, too."""
    names = {name for name, _ in ffi.typeof("struct pyxc_pv_layout").fields}
    compared = set(re.findall(r"pv\.(\w+)", Path(__file__).read_text()))
    compared |= {f"shinfo_{name}" for name in ("evtchn_pending", "evtchn_mask")}
    compared |= {f"ctx_{name}" for name in layout.VCPU_CONTEXT.names}
    compared |= {f"si_{name}" for name in layout.START_INFO.names}
    compared |= {f"arch_{name}" for name in layout.ARCH_SHARED_INFO.names} | {"arch_fll"}
    assert names - compared == set()


def test_policies_have_entries_of_the_size_that_the_stream_says():
    from saverestore.stream.records import CPUID_LEAF_BYTES, MSR_ENTRY_BYTES

    assert lib.pyxc_cpuid_leaf_size() == CPUID_LEAF_BYTES
    assert lib.pyxc_msr_entry_size() == MSR_ENTRY_BYTES


def test_the_release_it_was_built_for_is_known():
    assert re.fullmatch(r"\d+\.\d+", ffi.string(lib.pyxc_built_for()).decode())
