/*
 * The memory zoo: every kind of memory that a worker may have, with contents that can be told from
 * a seed alone, so that it can say after a restore whether every byte is what it was.
 *
 * content.c says what lies in a page, regions.c makes the memory, zoo.c is the processes.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096u
#define CODE_PLACE 64 /* in the first page, behind the counters */
#define CODE_ANSWER 17

/* The processes: the first one, its forked child, and one that was executed anew. */
enum role { MAIN, CHILD, ALONE, ROLES };

enum {
    SHARED = 1 << 0,       /* written by MAIN and CHILD alike */
    CONSTANT = 1 << 1,     /* nobody writes after it is filled, so it has no counters */
    DESCRIPTOR = 1 << 2,   /* memory without a mapping: by reading and writing its descriptor */
    FILE_PRIVATE = 1 << 3, /* a file below; what is not written is the file's */
    MIXED = 1 << 4,        /* zero pages strewn in, long stretches of them, and untouched pages */
    SPARSE = 1 << 5,       /* hardly any page was touched */
    WIPED = 1 << 6,        /* zeros in a forked child */
    NOT_FORKED = 1 << 7,   /* not there in a forked child */
    CUT = 1 << 8,          /* a forked child has unmapped its second half */
    FLIPPED = 1 << 9,      /* a forked child has made it read-only */
    GUARDED = 1 << 10,     /* some pages are guards, where the kernel knows them */
    CODE = 1 << 11,        /* there is a function in its first page */
    LOCKED = 1 << 12,
    SEALED = 1 << 13,
    UNLINKED = 1 << 14,
    FENCED = 1 << 15,     /* inaccessible pages on both sides */
    UNREADABLE = 1 << 16, /* PROT_NONE */
    WINDOW = 1 << 17,     /* besides, a part of it is mapped */
};

struct region {
    const char *name;
    unsigned flags;
    size_t pages;
    unsigned char *base; /* NULL: no mapping */
    int fd;              /* -1: no descriptor is kept */
    uint64_t key;        /* of its contents */
    int present;         /* whether this process has it */
};

/* content.c */
uint64_t mix(uint64_t value);
void random_bytes(uint64_t key, void *buffer, size_t size);
int counts(const struct region *region, enum role role);
int changed_by(const struct region *region, enum role role, size_t page);
int discarded(const struct region *region, enum role role, size_t page);
int guard(const struct region *region, size_t page);
int untouched(const struct region *region, size_t page);
void first_content(const struct region *region, size_t page, void *buffer);
void changed_content(const struct region *region, enum role by, size_t page, void *buffer);
void expected(const struct region *region, enum role role, size_t page, uint64_t ticks,
              void *buffer);

/* regions.c */
size_t make_regions(struct region *regions, size_t room, uint64_t seed, enum role role,
                    const char *tmpfs, const char *disk);
void change_regions(struct region *regions, size_t count, enum role role);

/* access.c */
void put(const struct region *region, size_t page, const void *buffer);
void tick(const struct region *region, enum role role);
const char *verify(const struct region *region, enum role role, uint64_t ticks, uint64_t *digest);
_Noreturn void die(const char *what);
