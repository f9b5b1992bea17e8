"""What fuzzing begins with: the golden images, and small things of each kind. Made anew each time, a few kB each."""

from __future__ import annotations

import sys
import uuid
import zlib
from contextlib import closing
from pathlib import Path

import lz4.frame
import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).parents[1] / "vectors"))

from memory_guests import image_of
from stream_samples import golden

from saverestore.engine.settings import SaveSettings
from saverestore.migrate import messages, protocol
from saverestore.stream import xor_rle
from saverestore.stream.codecs import Coding
from saverestore.stream.layout import ByteOrder
from saverestore.stream.records import RECORD_CLASSES
from saverestore.testing.domain import MemoryDomain
from saverestore.testing.guest import MemorySave
from tests.fuzz.targets import RECORD_TYPES

XEN_NAMES = ("pv-v3", "hvm-v3", "hvm-v2-xl")
DRAFT_B_NAMES = ("pv-draft-b", "hvm-draft-b-be", "hvm-draft-b-codecs")


def image() -> list[bytes]:
    return [golden(name) for name in XEN_NAMES]


def draft_b() -> list[bytes]:
    return [golden(name) for name in DRAFT_B_NAMES] + [
        _saved(codec) for codec in ("xor", "zstd", "lz4", "deflate")
    ]


def _saved(codec: str) -> bytes:
    """A domain of a few pages, saved live while it writes them."""
    with closing(MemoryDomain.pvh(32)) as domain:
        plain = domain.data_pfns()[:4]
        guest = MemorySave(domain)
        guest.moments.on("check_layout", 0, lambda: domain.write(plain, 9))
        return image_of(guest, SaveSettings(live=True, coding=Coding.parse(codec)))


def deltas() -> list[bytes]:
    old = np.zeros((2, 4096), dtype=np.uint8)
    new = old.copy()
    new[1, 5:700] = 7
    found = []
    for first, order in ((1, ByteOrder.LITTLE), (9, ByteOrder.BIG)):
        coded = xor_rle.encode(new, old, np.ones(2, dtype=bool), order)
        found.append(bytes([first]) + bytes(coded or b""))
    return [*found, b"\0\0\x10\0\0" + bytes(4096)]


def codecs() -> list[bytes]:
    page = b"a page, " * 512
    made = [
        zlib.compress(page),
        zstandard.ZstdCompressor().compress(page),
        lz4.frame.compress(page, store_size=True),
    ]
    return [bytes([number, 0]) + coded for number, coded in enumerate(made)]


RECORD_BODIES = {
    "X86_PV_INFO": b"\x08\x04" + bytes(6),
    "X86_PV_P2M_FRAMES": bytes(4) + b"\x03\0\0\0" + b"\x02" + bytes(7),
    "SHARED_INFO": bytes(4096),
    "X86_TSC_INFO": bytes(range(20)) + bytes(4),
    "HVM_CONTEXT": b"context",
    "HVM_PARAMS": b"\x01" + bytes(7) + bytes(range(16)),
    "CHECKPOINT_DIRTY_PFN_LIST": bytes(range(16)),
    "X86_CPUID_POLICY": bytes(24),
    "X86_MSR_POLICY": bytes(16),
    "IMAGE_DIGEST": b"\x01" + bytes(7) + bytes(range(16)),
    "FOLLOWING": bytes(range(24)),
    "ARM64_PLATFORM": bytes.fromhex(
        "030000000200000070d01f4100000000a0acb90300000000010000000000000000000400000000000080000000000000"
    ),
    "ARM64_VCPU": bytes.fromhex(
        "0100000001000000010000000000000000c6000108000000ffff0000000000000000000000000000"
    ),
    "ARM64_SHARED_INFO": bytes.fromhex("341204000000000001000000000000001089674500000000"),
    "PROVENANCE": b'{"tool":"pysave","options":{"live":true},"n":[1,2.5,null]}',
}


def records() -> list[bytes]:
    vcpu = bytes(8) + b"state"
    found = []
    for number, kind in enumerate(RECORD_TYPES):
        default = vcpu if "VCPU" in kind.name else b""
        found.append(bytes([number]) + RECORD_BODIES.get(RECORD_CLASSES[kind].type.name, default))
    return found


def conversation() -> list[bytes]:
    """What a source says in a whole migration; all that a destination may say; and what is asked later."""
    number = uuid.UUID(int=7)
    hello = messages.Hello(1, 1, "a" * 32, "b" * 32, "pymigrate/0.2.0", "host1")
    image = (protocol.pack_header(messages.MessageType.DATA, 9), b"the image")
    source = [
        hello,
        messages.Offer(number, '{"c_info":{}}', 65536, "host1", paused=True),
        messages.KeepAlive(),
    ]
    later = [messages.StreamEnd(9), messages.Grant(number), messages.Abort(number, "given up")]
    answers = [
        hello,
        messages.Accepted(number, ("there: web1",), clock_ms=1, measures=True),
        messages.Acknowledged(0),
        messages.Ready(number),
        messages.Running(number, "running", 7, 12),
        messages.Aborted(number, "disk full", "disk_full"),
        messages.Lost(number, "switched off"),
        messages.Busy(number, "READY"),
    ]
    refused = [
        hello,
        messages.Refused(number, ("usage",), (2,), ("no such thing",)),
        messages.Unknown(number),
    ]
    return [
        b"".join([*map(protocol.pack, source), *image, *map(protocol.pack, later)]),
        b"".join(map(protocol.pack, answers)),
        b"".join(map(protocol.pack, refused)),
    ]


SEEDS = {
    "image": image,
    "draft-b": draft_b,
    "deltas": deltas,
    "codecs": codecs,
    "records": records,
    "conversation": conversation,
}
