"""Builds `saverestore._kernels` of the C beside this file. Run by `setup.py` only, see `saverestore.kernels`."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
HEADERS = ("xxh3_pages.h", "xor_rle.h", "zero_pages.h", "copying.h")

ffibuilder = FFI()
ffibuilder.cdef(
    """
    void xxh3_128_pages(const uint8_t *pages, size_t page_size, size_t nr_pages, uint64_t *digests);

    void copy_in_chunks(uint8_t *to, const uint8_t *from, size_t nr_bytes);

    size_t find_zero_pages(const uint64_t *pages, size_t page_words, size_t nr_pages, uint8_t *zero);

    size_t xor_rle_encode(const uint8_t *pages, const uint8_t *bases, const uint8_t *has_base,
                          size_t nr_pages, int big_endian, uint8_t *out, size_t out_bytes);
    size_t xor_rle_scan(const uint8_t *coded, size_t coded_bytes, size_t nr_pages, int big_endian,
                        uint32_t *lengths);
    size_t xor_rle_decode(const uint8_t *coded, size_t coded_bytes, size_t nr_pages,
                          const uint32_t *lengths, uint8_t *pages);
    """
)
ffibuilder.set_source(
    "saverestore._kernels",
    "\n".join(f'#include "{header}"' for header in HEADERS),
    include_dirs=[str(HERE)],
    # Or a change of these alone would not be compiled.
    depends=[str(HERE / header) for header in HEADERS],
    extra_compile_args=["-O3", "-Wall", "-Wno-unused-function"],
)
