"""Core files, as other programs read them: readelf, gdb and drgn where they are."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from image_files import Sent, hvm_context, hvm_image, page
from memory_guests import MAKERS, image_of, opened

from saverestore.cli import pyimage
from saverestore.image import elf
from saverestore.image.core import segments_of
from saverestore.stream.records import HvmContext

TEXT = b"OSRELEASE=6.1.0-test\nBUILD-ID=00\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff82610000\n"
CONTEXT = hvm_context(
    {"rip": 0xFFFFFFFF81000123, "rax": 7, "cs": 0x10, "gs_base": 0x1111},
    {"rip": 0xFFFFFFFF81000456, "rbx": 9, "rsp": 0x2222},
)


def vmcoreinfo_page(text: bytes = TEXT, length: int | None = None) -> bytes:
    head = struct.pack("<III12s", 11, len(text) if length is None else length, 0, b"VMCOREINFO")
    return (head + text).ljust(4096, b"\0")[:4096]


def readelf(*arguments: str | Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf: binutils")
    done = subprocess.run(["readelf", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def image(tmp_path):
    pages = [(p, 0, page(0x1000 + p)) for p in range(4)]
    pages += [(8, 0, bytes(4096)), (9, 0, vmcoreinfo_page()), (0x30, 0, page(0x30)), (0x40, 15, None)]
    return hvm_image(tmp_path / "a.img", [Sent(pages)], tail=[HvmContext(CONTEXT)])


@pytest.fixture
def core(image, tmp_path):
    assert pyimage.main(["core", str(image), "-o", str(tmp_path / "core")]) == 0
    return tmp_path / "core"


def test_readelf_takes_it_and_sees_segments_threads_and_vmcoreinfo(core):
    text = readelf("-lhn", core)
    assert "CORE (Core file)" in text
    assert "Advanced Micro Devices X86-64" in text
    loads = re.findall(r"LOAD +(0x\w+) (0x\w+) (0x\w+)\s+(0x\w+) (0x\w+) +RWE +0x1000", text)
    wanted = [(0, 4), (8, 2), (0x30, 1)]
    at = int(loads[0][0], 16)
    for numbers, (pfn, count) in zip(loads, wanted, strict=True):
        size = count * 4096
        assert [int(number, 16) for number in numbers] == [at, pfn << 12, pfn << 12, size, size]
        at += size
    assert text.count("NT_PRSTATUS") == 2
    assert "VMCOREINFO" in text


def test_it_is_sparse_private_and_says_what_it_holds(core, image, capsys):
    assert core.stat().st_mode & 0o777 == 0o600
    assert core.stat().st_blocks * 512 < core.stat().st_size
    assert pyimage.main(["core", str(image), "-o", str(core), "--overwrite"]) == 0
    assert capsys.readouterr().err == (
        f"pyimage: {core}: 2 vCPUs, 7 pages (28.0 KiB) in 3 segments, vmcoreinfo of Linux 6.1.0-test\n"
    )


def test_gdb_sees_the_registers_and_reads_physical_memory(core):
    if shutil.which("gdb") is None:
        pytest.skip("needs gdb")
    commands = [
        "info threads",
        "x/gx 0x2008",
        "x/gx 0x30ff8",
        "x/gx 0x8000",
        "info registers rip rax cs gs_base",
    ]
    commands += ["thread 2", "info registers rip rbx rsp", "x/gx 0x5000"]
    arguments = [part for command in commands for part in ("-ex", command)]
    done = subprocess.run(
        ["gdb", "-nx", "-batch", "-ex", f"core-file {core}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    out = done.stdout
    assert re.search(r"0x2008:\s+0x0*1002", out)
    assert re.search(r"0x30ff8:\s+0x0*30", out)
    assert re.search(r"0x8000:\s+0x0*0\n", out)
    assert re.search(r"rip +0xffffffff81000123", out)
    assert re.search(r"rax +0x7 ", out)
    assert re.search(r"cs +0x10 ", out)
    assert re.search(r"gs_base +0x1111 ", out)
    assert re.search(r"rip +0xffffffff81000456", out)
    assert re.search(r"rsp +0x2222 ", out)
    assert "Cannot access memory at address 0x5000" in done.stderr


def test_drgn_reads_physical_memory_and_vmcoreinfo(core):
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(core)
    assert program.read_u64(0x2008, physical=True) == 0x1002
    assert program.read_u64(0x30FF8, physical=True) == 0x30
    with pytest.raises(drgn.FaultError):
        program.read_u64(0x5000, physical=True)
    assert program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL


@pytest.mark.parametrize("kind", MAKERS)
def test_a_domain_of_each_kind_becomes_a_core(tmp_path, kind, capsys):
    domain = MAKERS[kind]()
    domain.state.hvm_context = CONTEXT
    with opened(domain) as guest:
        (tmp_path / "a.img").write_bytes(image_of(guest))
        assert pyimage.main(["core", str(tmp_path / "a.img"), "-o", str(tmp_path / "core")]) == 0
        text = readelf("-lhn", tmp_path / "core")
        assert text.count("NT_PRSTATUS") == 2
        assert text.count(" LOAD ") == (2 if kind == "pvh" else 1)
        assert "no vmcoreinfo found" in capsys.readouterr().err
        offset = int(re.search(r"LOAD +(0x\w+)", text)[1], 16)
        with (tmp_path / "core").open("rb") as file:
            file.seek(offset)
            assert file.read(100 * 4096) == domain.content(np.arange(100, dtype=np.uint64)).tobytes()


def test_more_segments_than_the_header_can_count_are_counted_by_section_0(tmp_path):
    pfns = np.arange(0, 140000, 2, dtype=np.uint64)
    core = tmp_path / "core"
    segments = segments_of(pfns)
    notes = elf.prstatus(1, {"rip": 5})
    front = elf.front(segments, len(notes))
    assert len(front) == elf.front_bytes(len(segments))
    assert len(front) % 4096 == 0
    with core.open("wb") as file:
        file.write(front)
        file.seek(len(pfns) * 4096, 1)
        file.write(notes)
    text = readelf("-lhnW", core)
    assert re.search(r"Number of program headers: +65535 \(70001\)", text)
    assert text.count(" LOAD ") == 70000
    assert text.count("NT_PRSTATUS") == 1
    assert re.search(r"LOAD +0x\w+ 0x0*222de000 0x0*222de000 0x001000 0x001000 RWE 0x1000", text)


@pytest.mark.parametrize(
    "candidate",
    [
        vmcoreinfo_page(b"OSRELEASE=6.1\n"),
        vmcoreinfo_page(length=0),
        vmcoreinfo_page(length=1 << 31),
        vmcoreinfo_page(TEXT, length=4096),
    ],
)
def test_what_only_looks_like_vmcoreinfo_is_none(tmp_path, candidate, capsys):
    path = hvm_image(
        tmp_path / "a.img", [Sent([(5, 0, candidate), (7, 0, page(1))])], tail=[HvmContext(CONTEXT)]
    )
    assert pyimage.main(["core", str(path), "-o", str(tmp_path / "core")]) == 0
    assert "no vmcoreinfo found" in capsys.readouterr().err


def test_vmcoreinfo_may_go_on_in_the_next_page(tmp_path, capsys):
    text = TEXT + b"#" * (4090 - len(TEXT) - 5) + b"end=1"
    pages = [(5, 0, vmcoreinfo_page(text)), (6, 0, text[4096 - 24 :].ljust(4096, b"\0"))]
    path = hvm_image(tmp_path / "a.img", [Sent(pages)], tail=[HvmContext(CONTEXT)])
    assert pyimage.main(["core", str(path), "-o", str(tmp_path / "core")]) == 0
    assert "Linux 6.1.0-test" in capsys.readouterr().err
    assert text in (tmp_path / "core").read_bytes()


def test_a_core_is_made_without_registers_that_are_not_understood(tmp_path, capsys):
    path = hvm_image(tmp_path / "a.img", [Sent([(5, 0, page(1))])], tail=[HvmContext(b"whatever")])
    assert pyimage.main(["core", str(path), "-o", str(tmp_path / "core")]) == 0
    err = capsys.readouterr().err
    assert "pyimage: these registers are missing: HVM_CONTEXT" in err
    assert "0 vCPUs, 1 page " in err
