"""The pages of a PAGE_DATA record of the `draft-b` dialect, between memory and the bytes of the body.

Behind the entries, which are as in Xen's own format:

    +-----------------------------------------------+
    | with ZERO_MAP: a bit for each entry that has data, the first one lowest; up to a multiple of 8 bytes
    +-----------------------+-----------------------+
    | with a codec: u64 bytes of pages when decoded |
    | u64 bytes that follow                         |
    +-----------------------+-----------------------+
    | the pages that are not told to be zero, coded or as they are

A decoder allocates by the entries, never by what a length claims.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from saverestore.kernels.zero_pages import zero_pages
from saverestore.stream import xor_rle
from saverestore.stream.codecs import Codec, Coding, compress, decompress
from saverestore.stream.coding_choice import Coded, CodingChoice, Trial
from saverestore.stream.framing import CODEC_MASK, CODEC_SHIFT, RecordBody, RecordOption
from saverestore.stream.layout import (
    PAGE_SIZE,
    RECORD_ALIGN,
    RECORD_BODY_MAX,
    BoolArray,
    ByteOrder,
    Fields,
    PageType,
    U8Array,
    U32Array,
    U64Array,
    has_data,
)
from saverestore.stream.undecodable import Undecodable
from saverestore.stream.versions import VersionCache

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

LENGTHS = Fields("QQ")
WHAT = "the pages of a PAGE_DATA record"
NOTAB = np.uint8(PageType.NOTAB)


MOST_PIECES = 64
MOVED_PAGES = 256
"""At once, where zero pages are left out in place."""
"""Pages between zero pages are handed on where they are, unless there are more such runs than this in a record."""


class _Carried:
    """The pages of a record that are not all zero; brought together only when that is needed: in a copy, or in their
    own room if they may change."""

    def __init__(self, pages: U8Array, zero: BoolArray, nr_zero: int, *, may_change: bool) -> None:
        self._pages = pages
        self._zero = zero
        self._may_change = may_change
        self._together = None if nr_zero else pages
        self.nr_pages = len(zero) - nr_zero

    @property
    def nbytes(self) -> int:
        return self.nr_pages * PAGE_SIZE

    def together(self) -> U8Array:
        """All of them, shape (nr_pages, 4096), contiguous."""
        if self._together is None:
            self._together = self._moved() if self._may_change else self._pages[~self._zero]
        return self._together

    def _moved(self) -> U8Array:
        pages, at = self._pages, 0
        for begin in range(0, len(pages), MOVED_PAGES):
            part = slice(begin, begin + MOVED_PAGES)
            there = pages[part][~self._zero[part]]  # a copy, as it may go to where it is
            pages[at : at + len(there)] = there
            at += len(there)
        return pages[:at]

    def pieces(self) -> list[ReadableBuffer]:
        """All of them, in buffers."""
        if self._together is None:
            runs = [(begin, end) for begin, end, is_zero in _runs(self._zero) if not is_zero]
            if len(runs) <= MOST_PIECES:
                return [self._pages[begin:end].reshape(-1).data for begin, end in runs]
        return [self.together().reshape(-1).data]

    def sample(self, nr_wanted: int) -> U8Array:
        """A copy of so many of them, from all over the record; of all where there are not so many."""
        there = np.flatnonzero(~self._zero)
        return self._pages[there[:: max(1, len(there) // nr_wanted)][:nr_wanted]]


@dataclass(frozen=True)
class _Kept:
    """The pages that are kept as last versions: their pfns, and which of those that are carried they are."""

    pfns: U64Array
    of_carried: BoolArray


class PageEncoder:
    """Codes the pages of records, from any thread; what gets no smaller is left as it is.

    `coding`: of all records, or who chooses for each. `versions` is what XOR codes against: without it every page is
    as good as new. It takes a page for sent when it is coded: so a pfn may be in one record only among those being
    coded at the same time. Of a page that was sent in any other coding it has that version, or none.
    """

    def __init__(
        self, coding: Coding | CodingChoice, order: ByteOrder, versions: VersionCache | None = None
    ) -> None:
        self._coding = coding
        self._order = order
        is_xor = not isinstance(coding, Coding) or coding.codec is Codec.XOR
        self._versions = versions if is_xor else None
        self._lock = threading.Lock()
        self._coded: dict[str, Coded] = {}

    def coded(self) -> dict[str, Coded]:
        """What was coded so far, by the coding that the records have."""
        # Without the lock, which a signal at its end would leave locked: a copy is one step to other threads.
        return dict(self._coded)

    def encode(
        self,
        pfns: U64Array,
        types: U8Array,
        pages: U8Array,
        zero: BoolArray | None = None,
        *,
        may_change: bool = False,
    ) -> tuple[int, list[ReadableBuffer], int]:
        """(Options, what follows the entries, how many pages are zero.)

        `pages`: shape (number of entries with data, 4096), contiguous. The buffers may be `pages` themselves.
        `may_change`: nobody else needs them any more: no copy of 16 MiB is made then.
        """
        options = 0
        parts: list[ReadableBuffer] = []
        if zero is None:
            zero = zero_pages(pages.view(np.uint64))
        nr_zero = int(np.count_nonzero(zero))
        if nr_zero:
            options |= RecordOption.ZERO_MAP
            parts.append(_pack_map(zero))
        carried = _Carried(pages, zero, nr_zero, may_change=may_change)
        kept = self._kept(pfns, types, zero)
        if carried.nr_pages:
            coding, coded = self._code(carried, kept)
            if coded is not None:
                options |= coding.codec << CODEC_SHIFT
                parts += [LENGTHS.pack(carried.nbytes, len(coded), order=self._order), coded]
            else:
                parts += carried.pieces()
        return options, parts, nr_zero

    def _kept(self, pfns: U64Array, types: U8Array, zero: BoolArray) -> _Kept | None:
        """Which pages are to be kept; of all the others of this record no version is known from now on."""
        if self._versions is None:
            return None
        with_data = has_data(types)
        # Page tables are another thing in the domain that is restored; of the rest there is nothing to code against.
        plain = types[with_data] == NOTAB
        if not isinstance(self._coding, Coding) and not self._coding.keeps_versions:
            plain[:] = False
        is_kept = plain & ~zero
        self._versions.forget(pfns[~with_data])
        self._versions.forget(pfns[with_data][~is_kept])
        return _Kept(pfns[with_data][is_kept], plain[~zero])

    def _code(self, carried: _Carried, kept: _Kept | None) -> tuple[Coding, memoryview | bytes | None]:
        """The coding of the record, and the pages in it; None: as they are, which nothing would be gained by."""
        coding = self._coding
        if not isinstance(coding, Coding):
            coding = coding.choose(carried.sample, lambda: self._known_share(carried, kept))
        began = time.thread_time()
        known_bytes, deltas = self._replaced(coding, carried, kept)
        coded: memoryview | bytes | None = deltas
        if coding.codec not in (Codec.NONE, Codec.XOR):
            coded = compress(coding, carried.together().reshape(-1).data)
        out_bytes = carried.nbytes if coded is None else len(coded)
        if not isinstance(self._coding, Coding):
            seconds = time.thread_time() - began
            self._coding.note(Trial(coding, carried.nbytes, out_bytes, seconds, known_bytes))
        if coded is None or out_bytes + LENGTHS.size >= carried.nbytes:
            coding, coded, out_bytes = Coding(), None, carried.nbytes
        with self._lock:
            before = self._coded.get(str(coding), Coded())
            self._coded[str(coding)] = before + Coded(1, carried.nbytes, out_bytes)
        return coding, coded

    def _replaced(
        self, coding: Coding, carried: _Carried, kept: _Kept | None
    ) -> tuple[int, memoryview | None]:
        """Keep these versions: (bytes of pages that had one before, the deltas against them where wanted)."""
        if self._versions is None or kept is None or not len(kept.pfns):
            return 0, None
        pages = carried.together()
        bases, known = self._versions.replace(kept.pfns, pages[kept.of_carried])
        if coding.codec is not Codec.XOR or not len(bases):
            return bases.nbytes, None
        has_base = np.zeros(len(pages), dtype=bool)
        has_base[kept.of_carried] = known
        return bases.nbytes, xor_rle.encode(pages, bases, has_base, self._order)

    def _known_share(self, carried: _Carried, kept: _Kept | None) -> float:
        if self._versions is None or kept is None:
            return 0.0
        return self._versions.nr_known(kept.pfns) / carried.nr_pages


@dataclass(frozen=True)
class PagesToCome:
    """What a record says of its pages before they come. `codec`, `zero`: which are told to be all zero."""

    codec: Codec
    zero: BoolArray
    coded_bytes: int

    @property
    def nr_carried(self) -> int:
        """Pages that are carried, in whatever form."""
        return len(self.zero) - int(np.count_nonzero(self.zero))


def read_coding(body: RecordBody, nr_data: int, order: ByteOrder) -> PagesToCome:
    """Read what stands between the entries and the pages. `BadRecord` for lengths that are not the entries'."""
    header = body.header
    try:
        codec = Codec((header.options & CODEC_MASK) >> CODEC_SHIFT)
    except ValueError:
        number = (header.options & CODEC_MASK) >> CODEC_SHIFT
        raise header.bad(f"its pages are coded by codec {number}, which is not known here") from None
    if nr_data * PAGE_SIZE > RECORD_BODY_MAX:
        raise header.bad(
            f"{nr_data} pages, more than the {RECORD_BODY_MAX} bytes a body may have when decoded"
        )
    zero = np.zeros(nr_data, dtype=bool)
    if header.options & RecordOption.ZERO_MAP:
        zero = _read_map(body, nr_data)
    wanted = (nr_data - int(np.count_nonzero(zero))) * PAGE_SIZE
    if codec is Codec.NONE:
        if body.left != wanted:
            raise header.bad(f"{body.left} bytes for its pages, which are {wanted}")
        return PagesToCome(codec, zero, wanted)
    if body.left < LENGTHS.size:
        raise header.bad(f"coded pages in {body.left} bytes")
    length, coded_bytes = LENGTHS.unpack(body.read(LENGTHS.size, WHAT), order)
    if length != wanted:
        raise header.bad(f"{length} bytes of pages when decoded, but its entries have {wanted}")
    if coded_bytes != body.left or coded_bytes >= wanted:
        raise header.bad(f"{coded_bytes} coded bytes for {wanted}, of which {body.left} are in the record")
    return PagesToCome(codec, zero, coded_bytes)


class CodedPages:
    """The pages of one record, decoded once all of it has been read and its checksum compared."""

    def __init__(self, body: RecordBody, coming: PagesToCome, types: U8Array, order: ByteOrder) -> None:
        """`types`: of the entries with data."""
        self._body = body
        self._coming = coming
        self._may_be_delta = types[~coming.zero] == NOTAB
        self._order = order
        self._done = 0
        self._has_ended = False
        self._data: memoryview | None = None
        self._lengths: U32Array | None = None

    @property
    def nr_left(self) -> int:
        """Pages that have not been read."""
        return len(self._coming.zero) - self._done

    def read(self, views: Sequence[WriteableBuffer], nr_pages: int) -> None:
        """Fill `views` with the next pages. What they hold before is the last version of these pages (XOR)."""
        if self._coming.codec is Codec.NONE:
            self._read_as_they_are(views, nr_pages)
            return
        try:
            pages = self._next(views, nr_pages)
        except Undecodable as error:
            raise self._bad(error) from error
        at = 0
        flat = pages.reshape(-1)
        for view in views:
            target = np.frombuffer(memoryview(view), dtype=np.uint8)
            target[:] = flat[at : at + len(target)]
            at += len(target)

    def _read_as_they_are(self, views: Sequence[WriteableBuffer], nr_pages: int) -> None:
        """Pages between zero pages come from the source straight into where they belong."""
        carried: list[memoryview] = []
        rest = deque(memoryview(view).cast("B") for view in views)
        for begin, end, is_zero in _runs(self._coming.zero[self._done : self._done + nr_pages]):
            left = (end - begin) * PAGE_SIZE
            while left:
                view = rest.popleft()
                part = view[:left]
                left -= len(part)
                if len(part) < len(view):
                    rest.appendleft(view[len(part) :])
                if is_zero:
                    np.frombuffer(part, dtype=np.uint8)[:] = 0
                else:
                    carried.append(part)
        self._body.readv(carried, WHAT)
        self._done += nr_pages
        if not self.nr_left:
            self._finish()

    def read_carried(self, buffer: memoryview) -> BoolArray:
        """Put what is carried of the pages left into the beginning of `buffer`: which of them are zero instead."""
        coming, zero = self._coming, self._coming.zero[self._done :]
        if coming.codec is Codec.XOR:
            raise ValueError("these pages are changes to others")
        left = (len(zero) - int(np.count_nonzero(zero))) * PAGE_SIZE
        with buffer[:left] as part:
            if coming.codec is Codec.NONE:
                self._body.readv([part] if left else [], WHAT)
                if not self._has_ended:
                    self._finish()
            elif left:
                part[:] = self._decoded()[-left:]
        self._done = len(coming.zero)
        return zero

    def _decoded(self) -> memoryview:
        """All that was coded. BadRecord for what no coding gives."""
        try:
            if self._data is None:
                self._load()
        except Undecodable as error:
            raise self._bad(error) from error
        assert self._data is not None
        return self._data

    def _bad(self, error: Undecodable) -> Exception:
        codec = self._coming.codec.name.lower()
        return self._body.header.bad(f"pages coded by {codec}: {error}")

    def _finish(self) -> None:
        self._has_ended = True
        self._body.finish()

    def skip(self) -> None:
        """Pass over what has not been read; the checksum is compared all the same."""
        if not self._has_ended:
            self._body.skip(self._body.left, WHAT)
            self._finish()
        self._done = len(self._coming.zero)

    def _next(self, views: Sequence[WriteableBuffer], nr_pages: int) -> U8Array:
        if self._data is None:
            self._load()
        zero = self._coming.zero[self._done : self._done + nr_pages]
        first = self._done - int(np.count_nonzero(self._coming.zero[: self._done]))
        nr_carried = nr_pages - int(np.count_nonzero(zero))
        self._done += nr_pages
        if self._coming.codec is not Codec.XOR:
            carried = self._carried(first, nr_carried)
            if nr_carried == nr_pages:
                return carried
            pages = np.zeros((nr_pages, PAGE_SIZE), dtype=np.uint8)
            pages[~zero] = carried
            return pages
        pages = _copy_of(views)
        pages[zero] = 0
        pages[~zero] = self._brought_up(pages[~zero], first)
        return pages

    def _load(self) -> None:
        coming = self._coming
        data = memoryview(self._body.read(coming.coded_bytes, WHAT))
        self._finish()
        if coming.codec is Codec.XOR:
            self._lengths = xor_rle.lengths_of(data, coming.nr_carried, self._order)
            if ((self._lengths != PAGE_SIZE) & ~self._may_be_delta).any():
                raise Undecodable("a page table as a delta: there is nothing that it could be against")
        else:
            data = memoryview(decompress(coming.codec, data, coming.nr_carried * PAGE_SIZE))
        self._data = data

    def _carried(self, first: int, nr_pages: int) -> U8Array:
        if self._data is None:
            raise ValueError("not loaded")
        part = self._data[first * PAGE_SIZE : (first + nr_pages) * PAGE_SIZE]
        return np.frombuffer(part, dtype=np.uint8).reshape(-1, PAGE_SIZE)

    def _brought_up(self, pages: U8Array, first: int) -> U8Array:
        if self._data is None or self._lengths is None:
            raise ValueError("not loaded")
        before = int(self._lengths[:first].sum(dtype=np.int64)) + first * xor_rle.LENGTH_BYTES
        if len(pages):
            xor_rle.decode(self._data[before:], self._lengths[first : first + len(pages)], pages)
        return pages


def _copy_of(views: Sequence[WriteableBuffer]) -> U8Array:
    """What these buffers hold, together. Apart, so that no traceback keeps a view of a domain's memory."""
    return np.concatenate([np.frombuffer(memoryview(view), dtype=np.uint8) for view in views]).reshape(
        -1, PAGE_SIZE
    )


def _runs(zero: BoolArray) -> list[tuple[int, int, bool]]:
    """Begin, end and value of each run of equal ones."""
    if not len(zero):
        return []
    edges = [0, *(np.flatnonzero(zero[1:] != zero[:-1]) + 1).tolist(), len(zero)]
    return [(begin, end, bool(zero[begin])) for begin, end in pairwise(edges)]


def _pack_map(zero: BoolArray) -> bytes:
    bits = np.packbits(zero, bitorder="little").tobytes()
    return bits + bytes(-len(bits) % RECORD_ALIGN)


def _read_map(body: RecordBody, nr_data: int) -> BoolArray:
    length = -(-nr_data // (8 * RECORD_ALIGN)) * RECORD_ALIGN
    if body.left < length:
        raise body.header.bad(f"{body.left} bytes where a map of {nr_data} pages takes {length}")
    bits = np.unpackbits(np.frombuffer(body.read(length, WHAT), dtype=np.uint8), bitorder="little").view(bool)
    if bits[nr_data:].any():
        raise body.header.bad(f"its map of zero pages is longer than the {nr_data} that have data")
    return bits[:nr_data]
