/*
 * What of CRIU's images there is thousands of, and is looked at while a container waits for its
 * restore. Whatever is not as CRIU 4.2 writes it is left to those who say what is wrong with it:
 * shim/snapshot/pagemap.py, and shim/proto/wire.py for criu.Mm.
 */
#include "thaw.h"

#include <errno.h>
#include <stdbool.h>

enum { ADDRESS = 1, NARROW, IN_PARENT, FLAGS, WIDE, FIELDS }; /* fields of an entry */
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

/* ---- pagemaps ------------------------------------------------------------------------------- */

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

/* ---- mappings ------------------------------------------------------------------------------- */

enum { START = 1, END, OFFSET, SHMID, PROTECTION, MAP_FLAGS, STATUS, VMA_FIELDS };
enum { EXECUTABLE = 12, VMAS = 14 }; /* fields of criu.Mm */
enum { VARINT, EIGHT, BLOCK, FOUR = 5 };

/* Steps over a block, or what is of a fixed size, and says where it was. */
static bool step(struct bytes *from, uint64_t size, struct bytes *over) {
    if (size > (size_t)(from->end - from->at))
        return false;
    *over = (struct bytes){from->at, from->at + size};
    from->at += size;
    return true;
}

/* One field: its value if it is a number, and else where it is. False: there is none. */
static bool next(struct bytes *from, uint64_t *tag, uint64_t *value, struct bytes *block) {
    if (!take(from, tag) || *tag >> 3 == 0 || *tag >> 32 != 0)
        return false;
    switch (*tag & 7) {
    case VARINT:
        return take(from, value);
    case BLOCK:
        return take(from, value) && step(from, *value, block);
    case EIGHT:
        return step(from, 8, block);
    case FOUR:
        return step(from, 4, block);
    default: /* groups: CRIU has none */
        return false;
    }
}

static bool mapping(struct bytes from, struct thaw_vma *vma) {
    uint64_t fields[VMA_FIELDS] = {0}, tag, value = 0;
    struct bytes block;

    while (from.at < from.end) {
        if (!next(&from, &tag, &value, &block))
            return false;
        if ((tag & 7) == VARINT && tag >> 3 < VMA_FIELDS)
            fields[tag >> 3] = value;
    }
    *vma = (struct thaw_vma){
        .start = fields[START],
        .end = fields[END],
        .pgoff = fields[OFFSET],
        .shmid = fields[SHMID],
        .prot = (uint32_t)fields[PROTECTION],
        .flags = (uint32_t)fields[MAP_FLAGS],
        .status = (uint32_t)fields[STATUS],
    };
    return true;
}

int64_t thaw_mm_vmas(const void *data, size_t size, uint32_t *executable, struct thaw_vma *list,
                     size_t most) {
    struct bytes from = {data, (const unsigned char *)data + size}, block = from;
    uint64_t tag, value = 0;
    size_t count = 0;

    *executable = 0;
    while (from.at < from.end) {
        struct thaw_vma vma;

        if (!next(&from, &tag, &value, &block))
            return -EBADMSG;
        if (tag == (EXECUTABLE << 3 | VARINT))
            *executable = (uint32_t)value;
        if (tag != (VMAS << 3 | BLOCK))
            continue;
        if (!mapping(block, &vma))
            return -EBADMSG;
        if (count < most)
            list[count] = vma;
        count++;
    }
    return (int64_t)count;
}
