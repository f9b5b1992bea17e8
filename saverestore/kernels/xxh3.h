/*
 * XXH3-128 by libxxhash's inlined code, compiled twice: as the compiler's target has it, with vector instructions
 * (xxh3_vector.c), and without (xxh3_scalar.c). Both give the same digests. The first is twice as fast on processors;
 * the second several times as fast where vector multiplications are emulated.
 */
#ifndef SAVERESTORE_XXH3_H
#define SAVERESTORE_XXH3_H

#include <stddef.h>
#include <stdint.h>

struct XXH3_state_s;

#define XXH3_BUILD(build) \
    /* digests[2 * i], digests[2 * i + 1]: low and high half of the digest of page i. */ \
    void xxh3_pages_##build(const uint8_t *pages, size_t page_size, size_t nr_pages, uint64_t *digests); \
    /* A digest of bytes that come one after the other. NULL: no memory. */ \
    struct XXH3_state_s *xxh3_new_##build(void); \
    void xxh3_update_##build(struct XXH3_state_s *state, const uint8_t *data, size_t nr_bytes); \
    /* The digest of all so far, as xxhash prints it: the high half first, big-endian. */ \
    void xxh3_digest_##build(const struct XXH3_state_s *state, uint8_t digest[16]); \
    void xxh3_free_##build(struct XXH3_state_s *state);

XXH3_BUILD(vector)
XXH3_BUILD(scalar)

#endif
