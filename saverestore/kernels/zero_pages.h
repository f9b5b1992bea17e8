/* Which pages are all zero. */
#ifndef SAVERESTORE_ZERO_PAGES_H
#define SAVERESTORE_ZERO_PAGES_H

#include <stddef.h>
#include <stdint.h>

/* Looked at together, and so in vector registers; the first that has anything in it tells. */
#define BLOCK_WORDS 32

/*
 * zero[i] = whether page i is all zero, of nr_pages pages of page_words words, a multiple of BLOCK_WORDS.
 * Memory may change meanwhile: each word is read once, and what is told held for what was read.
 */
static size_t find_zero_pages(const uint64_t *pages, size_t page_words, size_t nr_pages, uint8_t *zero)
{
    size_t i, block, word, nr_zero = 0;

    for ( i = 0; i < nr_pages; ++i, pages += page_words )
    {
        uint64_t any = pages[0] | pages[page_words - 1]; /* tells most pages that are not */

        for ( block = 0; block < page_words && !any; block += BLOCK_WORDS )
            for ( word = 0; word < BLOCK_WORDS; ++word )
                any |= pages[block + word];

        zero[i] = !any;
        nr_zero += !any;
    }

    return nr_zero;
}

#endif
