/* One build of what xxh3.h declares: NAMED(name) is what a function is called in it. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "xxh3.h"

void NAMED(xxh3_pages)(const uint8_t *pages, size_t page_size, size_t nr_pages, uint64_t *digests)
{
    size_t i;

    for ( i = 0; i < nr_pages; ++i )
    {
        XXH128_hash_t hash = XXH3_128bits(pages + i * page_size, page_size);

        digests[2 * i] = hash.low64;
        digests[2 * i + 1] = hash.high64;
    }
}

struct XXH3_state_s *NAMED(xxh3_new)(void)
{
    XXH3_state_t *state = XXH3_createState();

    if ( state )
        XXH3_128bits_reset(state);

    return state;
}

void NAMED(xxh3_update)(struct XXH3_state_s *state, const uint8_t *data, size_t nr_bytes)
{
    XXH3_128bits_update(state, data, nr_bytes);
}

void NAMED(xxh3_digest)(const struct XXH3_state_s *state, uint8_t digest[16])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    memcpy(digest, canonical.digest, sizeof(canonical.digest));
}

void NAMED(xxh3_free)(struct XXH3_state_s *state)
{
    XXH3_freeState(state);
}
