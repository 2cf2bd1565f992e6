/*
 * The entries of a CRIU pagemap, added up: there are tens of thousands, and every restore asks
 * whether a file of pages is as long as they say. What an entry is, and may not be, stands in
 * shim/snapshot/pagemap.py, which reads them one by one and says what is wrong with one.
 */
#include "thaw.h"

#include <errno.h>
#include <stdbool.h>

enum { ADDRESS = 1, NARROW, IN_PARENT, FLAGS, WIDE, FIELDS }; /* numbers of fields */
enum { LAZY = 2, PRESENT = 4 };

#define PAGE UINT64_C(4096)
#define TOP (UINT64_C(1) << 63)

struct bytes {
    const unsigned char *at, *end;
};

static bool take(struct bytes *from, uint64_t *value) {
    *value = 0;
    for (unsigned int shift = 0; shift < 64 && from->at < from->end; shift += 7) {
        uint64_t byte = *from->at++;

        if (shift == 63 && byte > 1)
            return false;
        *value |= (byte & 0x7f) << shift;
        if (byte < 0x80)
            return true;
    }
    return false;
}

/* The pages of one entry, which begins at `end` or later; 0: it cannot be. */
static uint64_t entry(struct bytes from, uint64_t *end) {
    uint64_t fields[FIELDS] = {0, 0, 0, 0, PRESENT, 0}, pages;

    while (from.at < from.end) {
        unsigned int tag = *from.at++;

        if ((tag & 7) != 0 || tag < 8 || tag >> 3 >= FIELDS || !take(&from, &fields[tag >> 3]))
            return 0;
    }
    pages = fields[WIDE] != 0 ? fields[WIDE] : fields[NARROW];
    if (fields[ADDRESS] % PAGE != 0 || fields[ADDRESS] < *end || fields[ADDRESS] > TOP ||
        pages > (TOP - fields[ADDRESS]) / PAGE)
        return 0;
    if ((fields[FLAGS] | LAZY) != (PRESENT | LAZY) || fields[IN_PARENT] != 0)
        return 0;
    *end = fields[ADDRESS] + pages * PAGE;
    return pages;
}

int64_t thaw_pagemap_pages(const void *data, size_t size) {
    const unsigned char *at = data, *stop = at + size;
    uint64_t end = 0, all = 0;

    while (at < stop) {
        uint32_t length;
        uint64_t pages;

        if (stop - at < 4)
            return -EBADMSG;
        length = (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                 (uint32_t)at[3] << 24;
        at += 4;
        if ((size_t)(stop - at) < length)
            return -EBADMSG;
        pages = entry((struct bytes){at, at + length}, &end);
        if (pages == 0)
            return -EBADMSG;
        all += pages; /* of one address space: it cannot overflow */
        at += length;
    }
    return (int64_t)all;
}
