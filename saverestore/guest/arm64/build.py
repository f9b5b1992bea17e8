"""Builds `saverestore._arm64_stubs` of stub.S, when the compiler makes code for arm64. Run by `setup.py` only.

The lists of registers are put before the assembly as macros, so that offsets and encodings are typed nowhere else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cffi import FFI

# Whoever builds a package need not have it on the path.
sys.path.insert(0, str(Path(__file__).parents[3]))

from saverestore.arm64_registers import Kind, Register
from saverestore.guest.arm64.layout import FOUND_SLOTS, SLOTS, Control, Flag

SOURCE = Path(__file__).with_name("stub.S")
PIECES = ("save_v3", "save_v2", "load_v3", "load_v2", "event", "vectors")


def _operand(register: Register) -> str:
    if register.kind is Kind.SYSTEM:
        return register.assembler_name
    return register.name if register.kind is Kind.VECTOR else f"{register.number:#x}"


def assembly_lists() -> str:
    """The macros and symbols that stub.S relies on."""
    groups: dict[str, dict[Register, int]] = {}
    for register, slot in SLOTS.items():
        groups.setdefault(register.group.name, {})[register] = slot
    groups["FOUND"] = FOUND_SLOTS
    lines = []
    for name, slots in groups.items():
        lines.append(f".macro {name} do, operation=")
        lines += [f"\\do {slot:#x}, {_operand(register)}" for register, slot in slots.items()]
        lines.append(".endm")
    lines += [f".equ SLOT_{register.name}, {slot:#x}" for register, slot in SLOTS.items()]
    lines += [
        f".equ CONTROL_{name}, {value:#x}" for name, value in vars(Control).items() if isinstance(value, int)
    ]
    lines += [f".equ FLAG_{flag.name}, {flag.value.bit_length() - 1}" for flag in Flag]
    return "\n".join(lines) + "\n"


def assembly() -> str:
    """All that goes to the assembler."""
    return assembly_lists() + SOURCE.read_text()


def c_source() -> str:
    """A C file with the assembly in it, and a function that hands out its pieces."""
    lines = "\n".join(json.dumps(line + "\n") for line in assembly().splitlines())
    declared = "\n".join(
        f"extern const unsigned char pysave_stub_{p}[], pysave_stub_{p}_end[];" for p in PIECES
    )
    cases = "\n".join(f'    {{ "{p}", pysave_stub_{p}, pysave_stub_{p}_end }},' for p in PIECES)
    return f"""
#include <string.h>
__asm__(
{lines}
);
{declared}

static const struct {{ const char *name; const unsigned char *start, *end; }} pieces[] = {{
{cases}
}};

static const unsigned char *stub_piece(const char *name, size_t *size)
{{
    for ( size_t i = 0; i < sizeof(pieces) / sizeof(*pieces); i++ )
        if ( !strcmp(name, pieces[i].name) )
        {{
            *size = pieces[i].end - pieces[i].start;
            return pieces[i].start;
        }}
    return NULL;
}}
"""


ffibuilder = FFI()
ffibuilder.cdef("const unsigned char *stub_piece(const char *name, size_t *size);")
ffibuilder.set_source("saverestore._arm64_stubs", c_source(), depends=[str(SOURCE)])
