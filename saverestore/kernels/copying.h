/* Copying large batches. */
#ifndef SAVERESTORE_COPYING_H
#define SAVERESTORE_COPYING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

#endif
