/* Copying large batches of pages. */
#ifndef SAVERESTORE_COPYING_H
#define SAVERESTORE_COPYING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

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
 * Copies of more than this are written past the caches. They would not be found there any more by whoever reads them
 * next, and a processor that writes through its cache reads first what it is about to overwrite.
 */
#define MOST_CACHED_BYTES (4 << 20)
#define LINE_BYTES 64

#ifdef __SSE2__
/* As memcpy, past the caches, of whole lines to where a line begins; stream_end() must follow. */
static void stream_copy(void *to, const void *from, size_t nr_bytes)
{
    __m128i *out = to;
    const __m128i *in = from;

    for ( ; nr_bytes; nr_bytes -= 4 * sizeof(*in), in += 4, out += 4 )
    {
        __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
        __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);

        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
}

/* What was streamed is there for other processors, too. */
static void stream_end(void)
{
    _mm_sfence();
}
#else
#define stream_copy memcpy
#define stream_end() ((void)0)
#endif

/* Whether pages are copied there past the caches. */
static int is_streamed(const void *to, size_t page_bytes, size_t nr_pages)
{
    return nr_pages > MOST_CACHED_BYTES / page_bytes && !((uintptr_t)to % LINE_BYTES);
}

/* One page, see copy_pages. */
static void copy_page(uint64_t *to, const uint64_t *from, size_t page_words, int streamed, uint8_t *zero)
{
    if ( !is_zero_page(from, page_words) )
    {
        if ( streamed )
            stream_copy(to, from, page_words * sizeof(*to));
        else
            memcpy(to, from, page_words * sizeof(*to));
        *zero = 0;
    }
    else if ( !*zero )
    {
        memset(to, 0, page_words * sizeof(*to));
        *zero = 1;
    }
}

/*
 * Copies nr_pages pages of page_words words, a multiple of BLOCK_WORDS. zero[i]: whether page i of the copy is all zero,
 * before and afterwards. A page that is, is read once, and not written at all where the copy was zero already.
 * Memory may change meanwhile: a page that became zero while it was copied need not be told to be.
 */
static void copy_pages(uint64_t *to, const uint64_t *from, size_t page_words, size_t nr_pages, uint8_t *zero)
{
    int streamed = is_streamed(to, page_words * sizeof(*to), nr_pages);
    size_t i;

    for ( i = 0; i < nr_pages; ++i, to += page_words, from += page_words )
        copy_page(to, from, page_words, streamed, &zero[i]);
    stream_end();
}

/* Of a page to come: the processor reads ahead by itself within a page, and not into another one. */
#define FETCHED_LINES 4

/* As copy_pages, of the pages from[which[0]], from[which[1]] … */
static void gather_pages(uint64_t *to, const uint64_t *from, const uint64_t *which, size_t page_words, size_t nr_pages,
                         uint8_t *zero)
{
    int streamed = is_streamed(to, page_words * sizeof(*to), nr_pages);
    size_t i, line;

    for ( i = 0; i < nr_pages; ++i, to += page_words )
    {
        if ( i + 1 < nr_pages )
        {
            const uint64_t *next = from + which[i + 1] * page_words;

            for ( line = 0; line < FETCHED_LINES; ++line )
                __builtin_prefetch(next + line * (LINE_BYTES / sizeof(*next)));
            __builtin_prefetch(next + page_words - 1); /* is_zero_page looks there, too */
        }
        copy_page(to, from + which[i] * page_words, page_words, streamed, &zero[i]);
    }
    stream_end();
}

#endif
