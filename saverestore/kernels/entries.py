"""Entries of PAGE_DATA records, taken apart: the usual ones in one pass, where numpy takes fifteen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from saverestore.kernels import compiled

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]

HIGHEST = (1 << 64) - 1


@dataclass(frozen=True)
class EntryForm:
    """How an entry is made up: a pfn in the low bits, a type in the highest ones, and nothing between them.

    `known`, `with_data`: a bit for each type: whether there is such a one, whether its entries have a page of data.
    """

    pfn_mask: int
    type_shift: int
    known: int
    with_data: int


def split_in_numpy(entries: U64, form: EntryForm, max_pfn: int | None) -> tuple[U64, U8, int] | None:
    """As `split`, for where the compiled kernel is missing."""
    pfns: U64 = entries & np.uint64(form.pfn_mask)
    types: U8 = (entries >> np.uint64(form.type_shift)).astype(np.uint8)
    known, with_data = (np.uint64(bits) >> types & np.uint64(1) for bits in (form.known, form.with_data))
    joined = pfns | types.astype(np.uint64) << np.uint64(form.type_shift)
    good = (
        np.array_equal(joined, entries)
        and known.all()
        and (max_pfn is None or not (pfns > np.uint64(max_pfn)).any())
        and (pfns[1:] > pfns[:-1]).all()
    )
    return (pfns, types, int(np.count_nonzero(with_data))) if good else None


def split(entries: U64, form: EntryForm, max_pfn: int | None) -> tuple[U64, U8, int] | None:
    """Pfns, types, and how many have data; entries of shape (n,), contiguous.

    None when they are not as they usually are: one has other bits set, an unknown type, a pfn above `max_pfn` (where
    there is one), or one that is not higher than that of the entry before it.
    """
    kernels = compiled()
    if kernels is None:
        return split_in_numpy(entries, form, max_pfn)
    pfns = np.empty(len(entries), dtype=np.uint64)
    types = np.empty(len(entries), dtype=np.uint8)
    ffi = kernels.ffi
    nr_data = kernels.lib.split_entries(
        ffi.from_buffer("uint64_t[]", entries),
        len(entries),
        form.pfn_mask,
        form.type_shift,
        HIGHEST if max_pfn is None else max_pfn,
        form.known,
        form.with_data,
        ffi.from_buffer("uint64_t[]", pfns),
        ffi.from_buffer("uint8_t[]", types),
    )
    return None if nr_data < 0 else (pfns, types, int(nr_data))
