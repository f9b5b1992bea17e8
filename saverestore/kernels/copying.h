/* Copying large batches of pages. */
#ifndef SAVERESTORE_COPYING_H
#define SAVERESTORE_COPYING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "zero_pages.h"

/*
 * As memcpy. That writes past the caches what is larger than most of one, several pages at a time by turns: whoever
 * works on the copy next has to fetch it from memory, and each page that has just been mapped costs translations anew.
 */
#define CHUNK_BYTES (256 << 10)

static void copy_in_chunks(uint8_t *to, const uint8_t *from, size_t nr_bytes)
{
    size_t at;

    for ( at = 0; at < nr_bytes; at += CHUNK_BYTES )
        memcpy(to + at, from + at, nr_bytes - at < CHUNK_BYTES ? nr_bytes - at : CHUNK_BYTES);
}

/*
 * Fills nr_pages pages: with zeroes where zero[i] says so, else with the next page of `from`, which has no others.
 */
static void spread_pages(uint8_t *to, const uint8_t *from, size_t page_size, size_t nr_pages, const uint8_t *zero)
{
    size_t i, run;

    for ( i = 0; i < nr_pages; i += run, to += run * page_size )
    {
        for ( run = 1; i + run < nr_pages && !zero[i + run] == !zero[i]; ++run )
            ;
        if ( zero[i] )
            memset(to, 0, run * page_size);
        else
        {
            copy_in_chunks(to, from, run * page_size);
            from += run * page_size;
        }
    }
}

/*
 * Copies nr_pages pages of page_words words, a multiple of BLOCK_WORDS. zero[i]: whether page i of the copy is all zero,
 * before and afterwards. A page that is, is read once, and not written at all where the copy was zero already.
 * Memory may change meanwhile: a page that became zero while it was copied need not be told to be.
 */
static void copy_pages(uint64_t *to, const uint64_t *from, size_t page_words, size_t nr_pages, uint8_t *zero)
{
    size_t i;

    for ( i = 0; i < nr_pages; ++i, to += page_words, from += page_words )
    {
        if ( !is_zero_page(from, page_words) )
        {
            memcpy(to, from, page_words * sizeof(*to));
            zero[i] = 0;
        }
        else if ( !zero[i] )
        {
            memset(to, 0, page_words * sizeof(*to));
            zero[i] = 1;
        }
    }
}

#endif
