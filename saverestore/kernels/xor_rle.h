/*
 * Remus's page deltas, as docs/stream-format.md has them: for each page a length of 4 bytes, then so many bytes:
 * 4096 are the page itself; one zero byte says that it is as it was; anything else is runs of words that are
 * taken from here or left as they were. Nothing here trusts a length.
 */
#ifndef SAVERESTORE_XOR_RLE_H
#define SAVERESTORE_XOR_RLE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XOR_RLE_PAGE_BYTES 4096u
#define XOR_RLE_WORD_BYTES 4u
#define XOR_RLE_PAGE_WORDS (XOR_RLE_PAGE_BYTES / XOR_RLE_WORD_BYTES)
#define XOR_RLE_LENGTH_BYTES 4u

#define XOR_RLE_SKIP 0x80u  /* set in a run's header: these words are as they were */
#define XOR_RLE_RUN_MAX 0x7fu
#define XOR_RLE_UNCHANGED 0u

/* All words changed is the longest: nine headers more than the page. */
#define XOR_RLE_WORST_BYTES (XOR_RLE_PAGE_BYTES + 9)

static uint32_t xor_rle_word(const uint8_t *page, size_t i)
{
    uint32_t word;

    memcpy(&word, page + i * XOR_RLE_WORD_BYTES, sizeof(word));
    return word;
}

static uint32_t xor_rle_get_length(const uint8_t *at, int big_endian)
{
    if ( big_endian )
        return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    return (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
}

static void xor_rle_put_length(uint8_t *at, uint32_t length, int big_endian)
{
    unsigned int i;

    for ( i = 0; i < XOR_RLE_LENGTH_BYTES; ++i )
        at[big_endian ? XOR_RLE_LENGTH_BYTES - 1 - i : i] = (uint8_t)(length >> (8 * i));
}

/* The runs of one page into `out`, XOR_RLE_WORST_BYTES long: how many bytes that are. */
static size_t xor_rle_runs(const uint8_t *page, const uint8_t *base, uint8_t *out)
{
    size_t done = 0, length = 0;

    if ( memcmp(page, base, XOR_RLE_PAGE_BYTES) == 0 )
    {
        out[0] = XOR_RLE_UNCHANGED;
        return 1;
    }
    while ( done < XOR_RLE_PAGE_WORDS )
    {
        int changed = xor_rle_word(page, done) != xor_rle_word(base, done);
        size_t end = done + 1;

        while ( end < XOR_RLE_PAGE_WORDS && end - done < XOR_RLE_RUN_MAX &&
                (xor_rle_word(page, end) != xor_rle_word(base, end)) == changed )
            ++end;
        out[length++] = (uint8_t)((end - done) | (changed ? 0 : XOR_RLE_SKIP));
        if ( changed )
        {
            size_t bytes = (end - done) * XOR_RLE_WORD_BYTES;

            memcpy(out + length, page + done * XOR_RLE_WORD_BYTES, bytes);
            length += bytes;
        }
        done = end;
    }
    return length;
}

/*
 * Code `nr_pages` pages into `out`. has_base[i]: page i has a version before it, which is the next of `bases`.
 * Returns how many bytes that are, or 0 when they are more than `out_bytes`.
 */
static size_t xor_rle_encode(const uint8_t *pages, const uint8_t *bases, const uint8_t *has_base,
                             size_t nr_pages, int big_endian, uint8_t *out, size_t out_bytes)
{
    uint8_t runs[XOR_RLE_WORST_BYTES];
    size_t i, at = 0;

    for ( i = 0; i < nr_pages; ++i )
    {
        const uint8_t *page = pages + i * XOR_RLE_PAGE_BYTES, *from = page;
        size_t length = XOR_RLE_PAGE_BYTES;

        if ( has_base[i] )
        {
            size_t coded = xor_rle_runs(page, bases, runs);

            bases += XOR_RLE_PAGE_BYTES;
            if ( coded < XOR_RLE_PAGE_BYTES )
            {
                from = runs;
                length = coded;
            }
        }
        if ( out_bytes - at < XOR_RLE_LENGTH_BYTES + length )
            return 0;
        xor_rle_put_length(out + at, (uint32_t)length, big_endian);
        memcpy(out + at + XOR_RLE_LENGTH_BYTES, from, length);
        at += XOR_RLE_LENGTH_BYTES + length;
    }
    return at;
}

/* Read the length of each page. Returns nr_pages, or the first page that is empty, too long or cut short. */
static size_t xor_rle_scan(const uint8_t *coded, size_t coded_bytes, size_t nr_pages, int big_endian,
                           uint32_t *lengths)
{
    size_t i, at = 0;

    for ( i = 0; i < nr_pages; ++i )
    {
        if ( coded_bytes - at < XOR_RLE_LENGTH_BYTES )
            return i;
        lengths[i] = xor_rle_get_length(coded + at, big_endian);
        at += XOR_RLE_LENGTH_BYTES;
        if ( lengths[i] == 0 || lengths[i] > XOR_RLE_PAGE_BYTES || lengths[i] > coded_bytes - at )
            return i;
        at += lengths[i];
    }
    return nr_pages;
}

/* Bring one page up to date: 1, or 0 when the runs are not exactly one page and these bytes. */
static int xor_rle_apply(const uint8_t *coded, size_t coded_bytes, uint8_t *page)
{
    size_t at = 0, word = 0;

    if ( coded_bytes == XOR_RLE_PAGE_BYTES )
    {
        memcpy(page, coded, XOR_RLE_PAGE_BYTES);
        return 1;
    }
    if ( coded_bytes == 1 && coded[0] == XOR_RLE_UNCHANGED )
        return 1;
    while ( word < XOR_RLE_PAGE_WORDS )
    {
        size_t words, bytes;
        int skip;

        if ( at == coded_bytes )
            return 0;
        words = coded[at] & XOR_RLE_RUN_MAX;
        skip = (coded[at] & XOR_RLE_SKIP) != 0;
        ++at;
        if ( words == 0 || words > XOR_RLE_PAGE_WORDS - word )
            return 0;
        bytes = words * XOR_RLE_WORD_BYTES;
        if ( !skip )
        {
            if ( bytes > coded_bytes - at )
                return 0;
            memcpy(page + word * XOR_RLE_WORD_BYTES, coded + at, bytes);
            at += bytes;
        }
        word += words;
    }
    return at == coded_bytes;
}

/*
 * Bring `pages`, which hold the versions before, up to date. `lengths` are those of `xor_rle_scan`.
 * Returns nr_pages, or the first page whose bytes are wrong; what came before it is done.
 */
static size_t xor_rle_decode(const uint8_t *coded, size_t coded_bytes, size_t nr_pages,
                             const uint32_t *lengths, uint8_t *pages)
{
    size_t i, at = 0;

    for ( i = 0; i < nr_pages; ++i )
    {
        if ( coded_bytes - at < XOR_RLE_LENGTH_BYTES || lengths[i] > coded_bytes - at - XOR_RLE_LENGTH_BYTES )
            return i;
        at += XOR_RLE_LENGTH_BYTES;
        if ( !xor_rle_apply(coded + at, lengths[i], pages + i * XOR_RLE_PAGE_BYTES) )
            return i;
        at += lengths[i];
    }
    return nr_pages;
}

#endif
