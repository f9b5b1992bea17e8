/* A digest for each page. */
#ifndef SAVERESTORE_XXH3_PAGES_H
#define SAVERESTORE_XXH3_PAGES_H

#define XXH_INLINE_ALL
#include <stdint.h>
#include <xxhash.h>

/* digests[2 * i], digests[2 * i + 1]: low and high half of XXH3-128 of page i. */
static void xxh3_128_pages(const uint8_t *pages, size_t page_size, size_t nr_pages, uint64_t *digests)
{
    size_t i;

    for ( i = 0; i < nr_pages; ++i )
    {
        XXH128_hash_t hash = XXH3_128bits(pages + i * page_size, page_size);

        digests[2 * i] = hash.low64;
        digests[2 * i + 1] = hash.high64;
    }
}

#endif
