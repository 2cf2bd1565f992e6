/* Sources: files with data, read past or through the page cache. */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_cachestat
#define SYS_cachestat 451 /* the same number everywhere */
#endif

/* Linux 6.5's <linux/mman.h>. */
struct range {
    uint64_t offset, length;
};
struct cache_pages {
    uint64_t cached, dirty, writeback, evicted, recently_evicted;
};

/*
 * EINVAL and EOPNOTSUPP say that the file system has no direct I/O, the others that there is no
 * way in (no /proc, or files handed over by somebody who may read them when we may not). Too many
 * open files (EMFILE, ENFILE), for one, is no reason to read more slowly without a word.
 */
static bool has_no_direct(int error) {
    return error == EINVAL || error == EOPNOTSUPP || error == EACCES || error == EPERM ||
           error == ENOENT;
}

int blob_open_direct(struct blob *blob) {
    char path[32];

    /* A descriptor's flags are everybody's who has a copy of it: open the file anew. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", blob->file);
    blob->direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    return blob->direct < 0 && !has_no_direct(errno) ? -errno : 0;
}

void blob_close_direct(struct blob *blob) {
    if (blob->direct >= 0)
        close(blob->direct);
    blob->direct = -1;
}

/*
 * One pread. EINVAL of direct I/O says that this file wants a coarser alignment than ours, or that
 * an earlier read ended within a block, at the end of the file: the page cache knows better.
 */
static ssize_t read_some(const struct blob *blob, bool direct, void *data, uint64_t offset,
                         size_t length, struct portion *portion) {
    int file = direct ? blob->direct : -1;
    ssize_t got = -1;

    if (file >= 0)
        got = pread(file, data, length, (off_t)offset);
    if (got > 0)
        portion->direct += (size_t)got;
    if (file < 0 || (got < 0 && errno == EINVAL))
        got = pread(blob->file, data, length, (off_t)offset);
    if (got > 0)
        portion->got += (size_t)got;
    return got;
}

int blob_read(const struct blob *blob, bool direct, void *data, uint64_t offset, size_t length,
              struct portion *portion) {
    *portion = (struct portion){0, 0};
    while (portion->got < length) {
        size_t done = portion->got;
        ssize_t now = read_some(blob, direct, (char *)data + done, offset + done, length - done,
                                portion);

        if (now == 0)
            return 0;
        if (now < 0 && errno != EINTR)
            return -errno;
    }
    return 0;
}

/* Before Linux 6.5. Files that are not ours to write look as if all of them were cached. */
static size_t resident(int file, uint64_t offset, size_t length) {
    unsigned char pages[BUFFER / PAGE + 1];
    size_t skipped = (size_t)(offset % PAGE), size = length + skipped, found = 0;
    void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, file, (off_t)(offset - skipped));

    if (map == MAP_FAILED)
        return 0;
    if (mincore(map, size, pages) == 0)
        for (size_t page = 0; page < (size + PAGE - 1) / PAGE; page++)
            found += (pages[page] & 1) != 0 ? PAGE : 0;
    munmap(map, size);
    return found;
}

/*
 * Three ways to ask, for 4 MiB on ext4: cachestat 0.6 µs if the cache holds it in large folios, 41
 * in single pages (0.3 if there are none); mmap and mincore 55, 91 (16); preadv2(RWF_NOWAIT) of
 * single bytes 3, 5, but it starts to read in what is missing.
 */
size_t blob_cached(const struct blob *blob, uint64_t offset, size_t length) {
    struct range range = {offset, length};
    struct cache_pages pages;

    if (syscall(SYS_cachestat, blob->file, &range, &pages, 0) == 0)
        return (size_t)pages.cached * PAGE;
    return errno == ENOSYS ? resident(blob->file, offset, length) : 0;
}
