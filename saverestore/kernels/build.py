"""Builds `saverestore._kernels` of the C beside this file. Run by `setup.py` only, see `saverestore.kernels`."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
HEADERS = ("xxh3.h", "xor_rle.h", "zero_pages.h", "copying.h", "entries.h")
SOURCES = ("xxh3_vector.c", "xxh3_scalar.c")

XXH3 = """
    void xxh3_pages_{build}(const uint8_t *pages, size_t page_size, size_t nr_pages, uint64_t *digests);
    struct XXH3_state_s *xxh3_new_{build}(void);
    void xxh3_update_{build}(struct XXH3_state_s *state, const uint8_t *data, size_t nr_bytes);
    void xxh3_digest_{build}(const struct XXH3_state_s *state, uint8_t *digest);
    void xxh3_free_{build}(struct XXH3_state_s *state);
"""

ffibuilder = FFI()
ffibuilder.cdef(
    """
    struct XXH3_state_s;

    void spread_pages(uint8_t *to, const uint8_t *from, size_t page_size, size_t nr_pages, const uint8_t *zero);

    int64_t split_entries(const uint64_t *entries, size_t nr_entries, uint64_t pfn_mask, unsigned int type_shift,
                          uint64_t max_pfn, uint32_t types_known, uint32_t types_with_data,
                          uint64_t *pfns, uint8_t *types);

    void copy_pages(uint64_t *to, const uint64_t *from, size_t page_words, size_t nr_pages, uint8_t *zero);
    void gather_pages(uint64_t *to, const uint64_t *from, const uint64_t *which, size_t page_words, size_t nr_pages,
                      uint8_t *zero);

    size_t find_zero_pages(const uint64_t *pages, size_t page_words, size_t nr_pages, uint8_t *zero);

    size_t xor_rle_encode(const uint8_t *pages, const uint8_t *bases, const uint8_t *has_base,
                          size_t nr_pages, int big_endian, uint8_t *out, size_t out_bytes);
    size_t xor_rle_scan(const uint8_t *coded, size_t coded_bytes, size_t nr_pages, int big_endian,
                        uint32_t *lengths);
    size_t xor_rle_decode(const uint8_t *coded, size_t coded_bytes, size_t nr_pages,
                          const uint32_t *lengths, uint8_t *pages);
    """
    + XXH3.format(build="vector")
    + XXH3.format(build="scalar")
)
ffibuilder.set_source(
    "saverestore._kernels",
    "\n".join(f'#include "{header}"' for header in HEADERS),
    include_dirs=[str(HERE)],
    sources=[f"saverestore/kernels/{source}" for source in SOURCES],
    # Or a change of these alone would not be compiled.
    depends=[str(HERE / header) for header in (*HEADERS, "xxh3_build.h")],
    extra_compile_args=["-O3", "-Wall", "-Wno-unused-function"],
)
