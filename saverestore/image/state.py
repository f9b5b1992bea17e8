"""All of an image that is not pages, as named values that can be compared."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saverestore.errors import ImageError
from saverestore.image.index import ImageIndex
from saverestore.image.registers import (
    HVM_CPU,
    HVM_CPU_TYPE,
    PV_CONTEXT,
    hvm_records,
    opaque_parts,
    values_of,
)
from saverestore.stream.records import (
    Disks,
    Following,
    HvmContext,
    HvmParams,
    ImageDigest,
    Provenance,
    Record,
    X86CpuidPolicy,
    X86MsrPolicy,
    X86PvInfo,
    X86PvP2mFrames,
    X86PvVcpuBasic,
    X86PvVcpuMsrs,
    X86TscInfo,
)

# Entries of policies (xen_cpuid_leaf_t, xen_msr_entry_t: arch-x86/xen.h) and of VCPU_MSRS (xen_domctl_vcpu_msr).
CPUID_LEAF = struct.Struct("<IIIIII")
MSR_ENTRY = struct.Struct("<IIQ")
NO_SUBLEAF = 0xFFFF_FFFF


@dataclass
class Parts:
    """Values by name: ints, text, JSON, or bytes that nobody here understands.

    `registers`: by vCPU ("vcpu 0"); `records`: the rest of the domain's state; `about`: what is said of the image.
    """

    registers: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def parts_of(index: ImageIndex) -> Parts:
    """Take an image's state apart."""
    parts = Parts()
    parts.about["layers"] = " > ".join(index.layers)
    if index.image is not None and index.domain is not None:
        parts.about["format version"] = index.image.version
        parts.about["Xen"] = f"{index.domain.xen_major}.{index.domain.xen_minor}"
        parts.records["domain type"] = index.domain.type.name
    for (name, vcpu), record in index.records.items():
        _add(parts, name, vcpu, record)
    for (name, number), body in index.emulators.items():
        parts.records[f"{name} {number}"] = body
    return parts


def _add(parts: Parts, name: str, vcpu: int, record: Record) -> None:
    if isinstance(record, X86PvVcpuBasic):
        parts.registers[f"vcpu {vcpu}"] = dict(_registers(PV_CONTEXT, record.context))
    elif isinstance(record, HvmContext):
        _add_hvm(parts, record.context)
    elif isinstance(record, Provenance | Disks):
        parts.about |= {f"{name}.{key}": value for key, value in record.fields.items()}
    elif isinstance(record, Following):
        parts.about[name] = f"{record.length_bytes} bytes, {record.xxh3.hex()}"
    elif isinstance(record, ImageDigest):
        parts.about[name] = f"algorithm {record.algorithm}, {record.digest.hex()}"
    else:
        values = list(_values(name, record))
        named = dict(values)
        if len(named) < len(values):  # an entry twice: no domain has that, and one would hide the other
            named = {name: record.pack()}
        whose = f"vcpu {vcpu} " if hasattr(record, "vcpu") else ""
        parts.records |= {f"{whose}{key}": value for key, value in named.items()}


def _registers(layout: np.dtype[np.void], data: bytes) -> Iterator[tuple[str, Any]]:
    values = values_of(layout, data)
    if values is None:
        yield "context", data
        return
    yield from values.items()
    for name, where in opaque_parts(layout).items():
        yield name, data[where]


def _add_hvm(parts: Parts, context: bytes) -> None:
    try:
        records = hvm_records(context)
    except ImageError:
        parts.records["HVM_CONTEXT"] = context
        return
    for record in records:
        if record.type == HVM_CPU_TYPE:
            parts.registers[f"vcpu {record.instance}"] = dict(_registers(HVM_CPU, record.body))
        else:
            parts.records[f"HVM_CONTEXT {record.name} {record.instance}"] = record.body


def _values(name: str, record: Record) -> Iterator[tuple[str, Any]]:
    """The values in a record, by names that begin with its own."""
    if isinstance(record, HvmParams):
        for number, value in record.params:
            yield f"{name} {number}", value
    elif isinstance(record, X86CpuidPolicy):
        for leaf, subleaf, *values in CPUID_LEAF.iter_unpack(record.leaves):
            which = f"{leaf:#x}" if subleaf == NO_SUBLEAF else f"{leaf:#x}.{subleaf}"
            for register, value in zip(("eax", "ebx", "ecx", "edx"), values, strict=True):
                yield f"{name} {which} {register}", value
    elif isinstance(record, X86MsrPolicy):
        yield from _msrs(name, record.entries)
    elif isinstance(record, X86PvVcpuMsrs) and len(record.context) % MSR_ENTRY.size == 0:
        yield from _msrs(name, record.context)
    elif isinstance(record, X86TscInfo):
        for key in ("mode", "khz", "nsec", "incarnation"):
            yield f"{name} {key}", getattr(record, key)
    elif isinstance(record, X86PvInfo):
        yield f"{name} guest width", record.guest_width
    elif isinstance(record, X86PvP2mFrames):
        yield f"{name} last pfn", record.last_pfn
        yield f"{name} frames", record.frames.tobytes()
    elif body := record.pack():
        yield name, body


def _msrs(name: str, entries: bytes) -> Iterator[tuple[str, Any]]:
    for number, flags, value in MSR_ENTRY.iter_unpack(entries):
        yield f"{name} {number:#x}", f"{value:#x}, flags {flags:#x}" if flags else value
