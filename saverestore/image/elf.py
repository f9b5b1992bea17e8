"""ELF64 core files: headers and notes, as bytes. Nothing here knows of images.

    0      64                    64 + 56 n
    │ ELF  │ notes and segments  │ section 0 │ …zeroes │ pages of the first segment │ of the second │ … │ notes │

The notes come last, as what is in them may be found in the pages.

More segments than e_phnum can count are counted in section 0 (PN_XNUM, System V gABI).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from saverestore.stream.layout import PAGE_SIZE, U64Array

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
NHDR = struct.Struct("<III")
PHDR = np.dtype(
    [
        ("type", "<u4"),
        ("flags", "<u4"),
        ("offset", "<u8"),
        ("vaddr", "<u8"),
        ("paddr", "<u8"),
        ("filesz", "<u8"),
        ("memsz", "<u8"),
        ("align", "<u8"),
    ]
)

IDENT = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64-bit, little-endian, version 1, System V
ET_CORE, EM_X86_64, EV_CURRENT = 4, 62, 1
PT_LOAD, PT_NOTE = 1, 4
FLAGS_RWX = 7
PN_XNUM = 0xFFFF
NOTE_ALIGN = 4

NT_PRSTATUS = 1
# elf_prstatus (linux/elfcore.h): signal, pids and times come before the registers; all but the pid is 0 here.
PRSTATUS_PID_OFFSET = 32
PRSTATUS_REGS_OFFSET = 112
PRSTATUS_BYTES = 336

PRSTATUS_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "rflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""Order of the registers in user_regs_struct (sys/user.h)."""


def note(name: str, type: int, description: bytes) -> bytes:
    """One note, padded."""
    named = name.encode("ascii") + b"\0"
    parts = (named, description)
    padded = b"".join(part + bytes(-len(part) % NOTE_ALIGN) for part in parts)
    return NHDR.pack(len(named), len(description), type) + padded


def prstatus(pid: int, registers: Mapping[str, int]) -> bytes:
    """The NT_PRSTATUS note of one thread; registers that are not named are 0."""
    body = bytearray(PRSTATUS_BYTES)
    struct.pack_into("<I", body, PRSTATUS_PID_OFFSET, pid)
    values = [registers.get(name, 0) for name in PRSTATUS_REGISTERS]
    struct.pack_into(f"<{len(values)}Q", body, PRSTATUS_REGS_OFFSET, *values)
    return note("CORE", NT_PRSTATUS, bytes(body))


def front_bytes(nr_segments: int) -> int:
    """Length of all that comes before the pages: a multiple of the page size."""
    length = EHDR.size + (1 + nr_segments) * PHDR.itemsize + SHDR.size
    return -(-length // PAGE_SIZE) * PAGE_SIZE


def front(segments: U64Array, notes_bytes: int) -> bytes:
    """All that comes before the pages.

    `segments`: shape (n, 3): address, length in memory and in the file, offset behind what is returned here. The
    notes, so many bytes, follow the last of them.
    """
    length = front_bytes(len(segments))
    pages_bytes = int(segments[:, 1].sum())
    nr_headers = 1 + len(segments)
    counts_elsewhere = nr_headers >= PN_XNUM
    section_at = EHDR.size + nr_headers * PHDR.itemsize
    header = EHDR.pack(
        *(IDENT, ET_CORE, EM_X86_64, EV_CURRENT, 0, EHDR.size, section_at if counts_elsewhere else 0, 0),
        *(EHDR.size, PHDR.itemsize, PN_XNUM if counts_elsewhere else nr_headers),
        *((SHDR.size, 1, 0) if counts_elsewhere else (0, 0, 0)),
    )
    table = np.zeros(nr_headers, dtype=PHDR)
    table[0] = (PT_NOTE, 0, length + pages_bytes, 0, 0, notes_bytes, 0, NOTE_ALIGN)
    loads = table[1:]
    loads["type"], loads["flags"], loads["align"] = PT_LOAD, FLAGS_RWX, PAGE_SIZE
    loads["vaddr"] = loads["paddr"] = segments[:, 0]
    loads["filesz"] = loads["memsz"] = segments[:, 1]
    loads["offset"] = segments[:, 2] + np.uint64(length)
    section = SHDR.pack(0, 0, 0, 0, 0, 0, 0, nr_headers, 0, 0) if counts_elsewhere else b""
    return (header + table.tobytes() + section).ljust(length, b"\0")
