/* Entries of PAGE_DATA records, as most of them are. */
#ifndef SAVERESTORE_ENTRIES_H
#define SAVERESTORE_ENTRIES_H

#include <stddef.h>
#include <stdint.h>

/*
 * Splits entries into pfns (the bits of pfn_mask) and types (those from type_shift on). Returns how many have a type
 * that is in types_with_data, a bit for each; or -1 when they are not simply good: when one has other bits set, or a
 * type that is not in types_known, or a pfn above max_pfn, or one that is not higher than the pfn before it.
 */
static int64_t split_entries(const uint64_t *entries, size_t nr_entries, uint64_t pfn_mask, unsigned int type_shift,
                             uint64_t max_pfn, uint32_t types_known, uint32_t types_with_data,
                             uint64_t *pfns, uint8_t *types)
{
    const uint64_t other_bits = ~(pfn_mask | ~UINT64_C(0) << type_shift);
    uint64_t bad = 0, last = 0;
    int64_t nr_data = 0;
    size_t i;

    for ( i = 0; i < nr_entries; ++i )
    {
        uint64_t pfn = entries[i] & pfn_mask;
        unsigned int type = entries[i] >> type_shift;

        bad |= entries[i] & other_bits;
        bad |= ~types_known >> type & 1;
        bad |= pfn > max_pfn;
        bad |= i > 0 && pfn <= last;
        nr_data += types_with_data >> type & 1;
        last = pfn;
        pfns[i] = pfn;
        types[i] = type;
    }

    return bad ? -1 : nr_data;
}

#endif
