/*
 * CRIU's images as they are, and with some of their bytes changed, in memory that ends where they
 * end. Argument: seconds. Prints how many there were, and how many were taken for whole ones.
 */
#include "check.h"
#include "thaw.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

enum { MOST = 40, LARGEST = 8192 };

struct image {
    unsigned char bytes[LARGEST];
    size_t size;
};

static unsigned long seed = 1;

static void put(struct image *image, uint64_t value) {
    for (; value > 0x7f; value >>= 7)
        image->bytes[image->size++] = (unsigned char)(value | 0x80);
    image->bytes[image->size++] = (unsigned char)value;
}

static void put_field(struct image *image, uint64_t number, uint64_t value) {
    put(image, number << 3);
    put(image, value);
}

static void append(struct image *image, const struct image *part) {
    memcpy(image->bytes + image->size, part->bytes, part->size);
    image->size += part->size;
}

/* A criu.Mm with so many mappings. */
static void make_memory(struct image *image, size_t count) {
    image->size = 0;
    put_field(image, 1, next_number(&seed));
    put_field(image, 12, 77);
    for (size_t n = 0; n < count; n++) {
        struct image one = {.size = 0};

        for (uint64_t number = 1; number < 8; number++)
            put_field(&one, number, next_number(&seed) >> next_number(&seed) % 64);
        put_field(&one, 8, UINT64_MAX); /* CRIU's descriptor of -1 */
        put(image, 14 << 3 | 2);
        put(image, one.size);
        append(image, &one);
    }
}

/* The entries of a pagemap; their pages. */
static int64_t make_pagemap(struct image *image, size_t count) {
    uint64_t page = 0, all = 0;

    image->size = 0;
    for (size_t n = 0; n < count; n++) {
        struct image one = {.size = 0};
        uint64_t pages = 1 + next_number(&seed) % 256;

        page += next_number(&seed) % 1000;
        put_field(&one, 1, page * 4096);
        put_field(&one, 4, 4 | (next_number(&seed) & 2));
        put_field(&one, n % 2 == 0 ? 5 : 2, pages);
        page += pages;
        all += pages;
        for (int shift = 0; shift < 32; shift += 8)
            image->bytes[image->size++] = (unsigned char)(one.size >> shift);
        append(image, &one);
    }
    return (int64_t)all;
}

static int64_t read_one(const struct image *image, bool memory) {
    unsigned char *data = malloc(image->size + (image->size == 0));
    struct thaw_vma *list = malloc((MOST / 2) * sizeof(*list));
    uint32_t executable;
    int64_t found;

    CHECK(data != NULL && list != NULL);
    memcpy(data, image->bytes, image->size);
    found = memory ? thaw_mm_vmas(data, image->size, &executable, list, MOST / 2)
                   : thaw_pagemap_pages(data, image->size);
    free(list);
    free(data);
    CHECK(found >= 0 || found == -EBADMSG);
    return found;
}

static void damage(struct image *image) {
    for (unsigned long left = 1 + next_number(&seed) % 3; left > 0 && image->size > 0; left--)
        if (next_number(&seed) % 4 == 0)
            image->size = next_number(&seed) % image->size;
        else
            image->bytes[next_number(&seed) % image->size] = (unsigned char)next_number(&seed);
}

int main(int argc, char **argv) {
    time_t end = time(NULL) + atoi(argc > 1 ? argv[1] : "2");
    unsigned long tried = 0, taken = 0;

    do { /* once at least: there may be no processor for that long */
        for (int turn = 0; turn < 1000; turn++, tried++) {
            size_t count = next_number(&seed) % MOST;
            bool memory = turn % 2 == 0;
            struct image image;
            int64_t whole;

            if (memory)
                make_memory(&image, count);
            whole = memory ? (int64_t)count : make_pagemap(&image, count);
            CHECK(read_one(&image, memory) == whole);
            damage(&image);
            taken += read_one(&image, memory) >= 0;
        }
    } while (time(NULL) < end);
    printf("%lu %lu\n", tried, taken);
    return 0;
}
