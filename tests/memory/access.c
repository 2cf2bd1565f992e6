/* Reading and writing a region's pages, by its mapping, its descriptor or /proc/self/mem. */
#define _GNU_SOURCE

#include "zoo.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BATCH 512u /* pages whose state is asked for at a time */

void die(const char *what) {
    perror(what);
    exit(99);
}

void put(const struct region *region, size_t page, const void *buffer) {
    if (region->flags & DESCRIPTOR) {
        if (pwrite(region->fd, buffer, PAGE, (off_t)(page * PAGE)) != PAGE)
            die(region->name);
    } else
        memcpy(region->base + page * PAGE, buffer, PAGE);
}

/* 0, or -1 where nothing can be read. */
static int get(const struct region *region, int memory, size_t page, void *buffer) {
    const unsigned char *place = region->base + page * PAGE;

    if (region->flags & DESCRIPTOR)
        return pread(region->fd, buffer, PAGE, (off_t)(page * PAGE)) == PAGE ? 0 : -1;
    if (region->flags & (UNREADABLE | GUARDED))
        return pread(memory, buffer, PAGE, (off_t)(uintptr_t)place) == PAGE ? 0 : -1;
    memcpy(buffer, place, PAGE);
    return 0;
}

/* One more in this process's counter, if it has one there. */
void tick(const struct region *region, enum role role) {
    uint64_t count;
    off_t place = (off_t)(sizeof(count) * role);

    if (!counts(region, role))
        return;
    if (region->flags & DESCRIPTOR) {
        if (pread(region->fd, &count, sizeof(count), place) != sizeof(count))
            die(region->name);
        count++;
        if (pwrite(region->fd, &count, sizeof(count), place) != sizeof(count))
            die(region->name);
    } else
        ((volatile uint64_t *)region->base)[role]++;
    if (region->flags & CODE) {
        int (*function)(void) = (int (*)(void))(uintptr_t)(region->base + CODE_PLACE);

        if (function() != CODE_ANSWER)
            die(region->name);
    }
}

/* Which of a batch of pages are there; all of them where the page tables cannot tell. */
static void states(const struct region *region, int pagemap, size_t first, uint64_t *entries) {
    size_t count = region->pages - first < BATCH ? region->pages - first : BATCH;
    off_t place = (off_t)(((uintptr_t)region->base / PAGE + first) * sizeof(*entries));

    memset(entries, 0xff, BATCH * sizeof(*entries));
    if (region->flags & (DESCRIPTOR | SHARED | FILE_PRIVATE))
        return;
    if (pread(pagemap, entries, count * sizeof(*entries), place) < 0)
        die("pagemap");
}

static uint64_t digest_of(uint64_t digest, const void *buffer) {
    const uint64_t *words = buffer;

    for (size_t n = 0; n < PAGE / sizeof(*words); n++)
        digest = mix(digest ^ words[n]);
    return digest;
}

/* What is wrong with one page, or NULL. Untouched private pages are not read: that maps them. */
static const char *verify_page(const struct region *region, enum role role, uint64_t ticks,
                               int memory, size_t page, uint64_t *digest) {
    static _Thread_local uint64_t is[PAGE / 8], should[PAGE / 8];
    static _Thread_local char complaint[64];
    int read = get(region, memory, page, is);
    const char *wrong = NULL;

    expected(region, role, page, ticks, should);
    if (guard(region, page)) {
        if (read == 0)
            wrong = "can be read";
    } else if (read < 0)
        wrong = "cannot be read";
    else if (memcmp(is, should, PAGE) != 0)
        wrong = "is not what it was";
    else
        *digest = digest_of(*digest ^ page, is);
    if (wrong == NULL)
        return NULL;
    snprintf(complaint, sizeof(complaint), "page %zu %s", page, wrong);
    return complaint;
}

/* What is wrong with the region (valid until this thread's next call), or NULL. */
const char *verify(const struct region *region, enum role role, uint64_t ticks, uint64_t *digest) {
    static _Thread_local uint64_t entries[BATCH];
    const uint64_t there = 3ull << 62; /* present or swapped */
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    const char *wrong = NULL;

    if (pagemap < 0 || memory < 0)
        die("/proc/self");
    *digest = region->key;
    for (size_t page = 0; page < region->pages && wrong == NULL; page++) {
        if (page % BATCH == 0)
            states(region, pagemap, page, entries);
        if (entries[page % BATCH] & there || !untouched(region, page) ||
            changed_by(region, role, page))
            wrong = verify_page(region, role, ticks, memory, page, digest);
    }
    close(pagemap);
    close(memory);
    return wrong;
}
