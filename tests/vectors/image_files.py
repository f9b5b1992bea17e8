"""Images as files, and a reader that is too simple to be wrong: what the tests of `image` are held against."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from saverestore.image.registers import HVM_CPU, HVM_DESCRIPTOR
from saverestore.stream import DomainType, LibxcReader, LibxcWriter, LibxlWriter, PageData, XlHeader
from saverestore.stream.layout import entries_of, has_data
from saverestore.stream.records import End, HvmContext, HvmParams, Provenance, Record, StaticDataEnd
from saverestore.transport import FdSink, FdSource

CONFIG: dict[str, Any] = {
    "c_info": {"type": "pvh", "name": "web1", "uuid": "00000000-0000-4000-8000-000000000001"},
    "b_info": {"max_vcpus": 2, "target_memkb": 65536, "max_memkb": 131072},
}


def page(fill: int) -> bytes:
    """A page that is told from others by its words."""
    return np.full(512, fill, dtype=np.uint64).tobytes()


@dataclass
class Sent:
    """One PAGE_DATA record: pfn, type and content (None: no data) of each entry."""

    entries: list[tuple[int, int, bytes | None]] = field(default_factory=list)


def hvm_image(
    path: Path,
    sent: Sequence[Sent],
    *,
    config: dict[str, Any] | None = CONFIG,
    tail: Sequence[Record] = (HvmParams(((1, 0xFEFFC),)), HvmContext(b"context")),
    head: Sequence[Record] = (Provenance({"tool": "pysave", "host": "here"}),),
    version: int = 3,
) -> Path:
    """Write an image of a PVH domain with these records of pages."""
    path.unlink(missing_ok=True)
    with FdSink(os.open(path, os.O_WRONLY | os.O_CREAT), str(path)) as sink:
        outer = None
        if config is not None:
            XlHeader.write(sink, json.dumps(config).encode())
            outer = LibxlWriter(sink)
            outer.libxc_context()
        writer = LibxcWriter(sink, DomainType.X86_HVM, (4, 17), version)
        for record in head:
            writer.record(record)
        if version >= 3:
            writer.record(StaticDataEnd())
        for one in sent:
            pfns, types, pages = zip(*one.entries, strict=True)
            entries = entries_of(np.array(pfns, dtype=np.uint64), np.array(types))
            writer.page_data(entries, [data for data in pages if data is not None])
        for record in tail:
            writer.record(record)
        writer.end()
        if outer is not None:
            outer.end()
    return path


def read_naively(path: Path) -> dict[int, tuple[int, bytes | None]]:
    """Type and content of each pfn of a bare libxc stream, by reading all of it from front to back."""
    found: dict[int, tuple[int, bytes | None]] = {}
    with FdSource.open(str(path)) as source:
        reader = LibxcReader(source)
        while not isinstance(record := reader.next(), End):
            if not isinstance(record, PageData) or reader.verifying:
                continue
            for pfn, type, there in zip(
                record.pfns.tolist(), record.types.tolist(), has_data(record.types).tolist(), strict=True
            ):
                content = bytearray(4096 if there else 0)
                if there:
                    reader.read_some_pages([content])
                found[pfn] = (type, bytes(content) if there else None)
    return found


def hvm_context(*vcpus: dict[str, int], cut: int = 0) -> bytes:
    """An HVM context with these vCPUs' registers; `cut`: bytes that each record of a vCPU lacks."""
    parts = [HVM_DESCRIPTOR.pack(1, 0, 24), bytes(24)]
    for number, values in enumerate(vcpus):
        cpu = np.zeros(1, dtype=HVM_CPU)
        for name, value in values.items():
            cpu[name] = value
        body = cpu.tobytes()[: HVM_CPU.itemsize - cut]
        parts += [HVM_DESCRIPTOR.pack(2, number, len(body)), body]
    return b"".join([*parts, HVM_DESCRIPTOR.pack(0, 0, 0)])
