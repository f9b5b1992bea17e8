/* Which pages are all zero. */
#ifndef SAVERESTORE_ZERO_PAGES_H
#define SAVERESTORE_ZERO_PAGES_H

#include <stddef.h>
#include <stdint.h>

/* Looked at together, and so in vector registers; the first that has anything in it tells. */
#define BLOCK_WORDS 32

/* Of page_words words, a multiple of BLOCK_WORDS. Memory may change meanwhile: what is told held for what was read. */
static int is_zero_page(const uint64_t *page, size_t page_words)
{
    uint64_t any = page[0] | page[page_words - 1]; /* tells most pages that are not */
    size_t block, word;

    for ( block = 0; block < page_words && !any; block += BLOCK_WORDS )
        for ( word = 0; word < BLOCK_WORDS; ++word )
            any |= page[block + word];

    return !any;
}

/* zero[i] = whether page i is all zero, of nr_pages pages. */
static size_t find_zero_pages(const uint64_t *pages, size_t page_words, size_t nr_pages, uint8_t *zero)
{
    size_t i, nr_zero = 0;

    for ( i = 0; i < nr_pages; ++i, pages += page_words )
        nr_zero += zero[i] = is_zero_page(pages, page_words);

    return nr_zero;
}

#endif
