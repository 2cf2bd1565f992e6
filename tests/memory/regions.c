/* Making the regions: one table of what there is, and how such memory comes about. */
#define _GNU_SOURCE

#include "zoo.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102 /* Linux 6.13 */
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

#define READ PROT_READ
#define WRITE (PROT_READ | PROT_WRITE)
#define EXECUTE (PROT_READ | PROT_WRITE | PROT_EXEC)
#define PRIVATE MAP_PRIVATE
#define COMMON MAP_SHARED
#define NOTHING (-1) /* no mapping */
#define HUGE (2u << 20)
#define GAP (4u << 20)

enum source { ANONYMOUS, BREAK, MEMFD, TMPFS, DISK };

struct plan {
    const char *name;
    size_t pages;
    enum source source;
    unsigned flags;
    int mapping;    /* flags for mmap */
    int protection; /* at last */
    int advice;     /* 0: none */
};

static const struct plan plans[] = {
    {"private", 8192, ANONYMOUS, MIXED, PRIVATE, WRITE, 0},
    {"dense", 2048, ANONYMOUS, 0, PRIVATE, WRITE, 0},
    {"cut", 2048, ANONYMOUS, MIXED | CUT, PRIVATE, WRITE, 0},
    {"flipped", 1024, ANONYMOUS, FLIPPED, PRIVATE, WRITE, 0},
    {"readonly", 1024, ANONYMOUS, CONSTANT, PRIVATE, READ, 0},
    {"none", 512, ANONYMOUS, CONSTANT | UNREADABLE, PRIVATE, PROT_NONE, 0},
    {"fenced", 512, ANONYMOUS, FENCED, PRIVATE, WRITE, 0},
    {"guarded", 512, ANONYMOUS, GUARDED, PRIVATE, WRITE, 0},
    {"heap", 2048, BREAK, MIXED, PRIVATE, WRITE, 0},
    {"stack", 512, ANONYMOUS, 0, PRIVATE | MAP_GROWSDOWN | MAP_STACK, WRITE, 0},
    {"sparse", 1u << 20, ANONYMOUS, SPARSE, PRIVATE | MAP_NORESERVE, WRITE, 0},
    {"locked", 256, ANONYMOUS, LOCKED, PRIVATE, WRITE, 0},
    {"jit", 256, ANONYMOUS, CODE, PRIVATE, EXECUTE, 0},
    {"code", 256, ANONYMOUS, CODE | CONSTANT, PRIVATE, PROT_READ | PROT_EXEC, 0},
    {"huge", 4096, ANONYMOUS, MIXED, PRIVATE, WRITE, MADV_HUGEPAGE},
    {"small", 1024, ANONYMOUS, 0, PRIVATE, WRITE, MADV_NOHUGEPAGE},
    {"not-forked", 512, ANONYMOUS, NOT_FORKED, PRIVATE, WRITE, MADV_DONTFORK},
    {"wiped", 512, ANONYMOUS, WIPED, PRIVATE, WRITE, MADV_WIPEONFORK},
    {"not-dumped", 512, ANONYMOUS, 0, PRIVATE, WRITE, MADV_DONTDUMP},
    {"sequential", 512, ANONYMOUS, 0, PRIVATE, WRITE, MADV_SEQUENTIAL},
    {"random", 512, ANONYMOUS, 0, PRIVATE, WRITE, MADV_RANDOM},
    {"shared", 4096, ANONYMOUS, SHARED | MIXED, COMMON, WRITE, 0},
    {"shared-flipped", 1024, ANONYMOUS, SHARED | FLIPPED, COMMON, WRITE, 0},
    {"shared-readonly", 512, ANONYMOUS, SHARED | CONSTANT, COMMON, READ, 0},
    {"memfd", 2048, MEMFD, SHARED, COMMON, WRITE, 0},
    {"memfd-readonly", 512, MEMFD, SHARED | CONSTANT, COMMON, READ, 0},
    {"memfd-private", 2048, MEMFD, FILE_PRIVATE, PRIVATE, WRITE, 0},
    {"memfd-unmapped", 1024, MEMFD, SHARED | DESCRIPTOR | MIXED, NOTHING, 0, 0},
    {"memfd-window", 2048, MEMFD, SHARED | DESCRIPTOR | WINDOW, NOTHING, 0, 0},
    {"memfd-sealed", 512, MEMFD, SHARED | CONSTANT | DESCRIPTOR | SEALED, NOTHING, 0, 0},
    {"tmpfs", 1024, TMPFS, SHARED, COMMON, WRITE, 0},
    {"tmpfs-private", 1024, TMPFS, FILE_PRIVATE, PRIVATE, WRITE, 0},
    {"tmpfs-unlinked", 1024, TMPFS, SHARED | UNLINKED, COMMON, WRITE, 0},
    {"file", 256, DISK, SHARED, COMMON, WRITE, 0},
    {"file-private", 1536, DISK, FILE_PRIVATE, PRIVATE, WRITE, 0},
};

/* A place in the middle of nothing: on a border of huge pages, or for a stack that may grow. */
static void *lonely_place(size_t size) {
    unsigned char *all = mmap(NULL, size + 2 * GAP, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (all == MAP_FAILED || munmap(all, size + 2 * GAP) < 0)
        die("mmap");
    return (void *)(((uintptr_t)all + GAP + HUGE - 1) & ~(uintptr_t)(HUGE - 1));
}

static void *fenced_place(size_t size) {
    unsigned char *all = mmap(NULL, size + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return all == MAP_FAILED ? NULL : all + PAGE;
}

static int open_source(const struct plan *plan, const char *folder, enum role role) {
    char path[512];
    int fd;

    if (plan->source == MEMFD) {
        fd = memfd_create(plan->name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    } else {
        snprintf(path, sizeof(path), "%s/zoo-%s-%d", folder, plan->name, (int)role);
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        if (plan->flags & UNLINKED)
            unlink(path);
    }
    if (fd < 0 || ftruncate(fd, (off_t)(plan->pages * PAGE)) < 0)
        die(plan->name);
    return fd;
}

static void *map(const struct plan *plan, int fd) {
    size_t size = plan->pages * PAGE;
    int how = plan->mapping | (fd < 0 ? MAP_ANONYMOUS : 0);
    void *place = NULL, *base;

    if (plan->source == BREAK) {
        if (sbrk((intptr_t)(PAGE - (uintptr_t)sbrk(0) % PAGE)) == (void *)-1)
            die(plan->name);
        base = sbrk((intptr_t)size);
        return base == (void *)-1 ? MAP_FAILED : base;
    }
    if (plan->flags & FENCED)
        place = fenced_place(size);
    else if (plan->advice == MADV_HUGEPAGE || plan->mapping & MAP_GROWSDOWN)
        place = lonely_place(size);
    if (place != NULL)
        how |= MAP_FIXED;
    return mmap(place, size, plan->protection | WRITE, how, fd, 0);
}

static void install_guards(struct region *region) {
    for (size_t page = 0; page < region->pages; page++)
        if (guard(region, page) &&
            madvise(region->base + page * PAGE, PAGE, MADV_GUARD_INSTALL) < 0) {
            if (errno != EINVAL)
                die(region->name);
            region->flags &= ~(unsigned)GUARDED; /* this kernel has none */
        }
}

/* The file below private memory first, then what this process changes of it. */
static void fill(struct region *region, enum role role) {
    static uint64_t buffer[PAGE / 8];

    for (size_t page = 0; page < region->pages; page++) {
        if (untouched(region, page) || guard(region, page))
            continue;
        first_content(region, page, buffer);
        if (region->flags & FILE_PRIVATE &&
            pwrite(region->fd, buffer, PAGE, (off_t)(page * PAGE)) != PAGE)
            die(region->name);
        if (page == 0)
            expected(region, role, 0, 0, buffer);
        if (page == 0 || !(region->flags & FILE_PRIVATE))
            put(region, page, buffer);
    }
}

static void finish(const struct plan *plan, struct region *region) {
    int seals = F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW;
    size_t size = region->pages * PAGE;

    if (region->flags & SEALED && fcntl(region->fd, F_ADD_SEALS, seals) < 0)
        die(region->name);
    if (region->flags & WINDOW &&
        mmap(NULL, size / 4, WRITE, MAP_SHARED, region->fd, (off_t)size / 2) == MAP_FAILED)
        die(region->name);
    if (region->flags & LOCKED && mlock(region->base, size) < 0)
        die(region->name);
    if (region->base != NULL && plan->protection != WRITE &&
        mprotect(region->base, size, plan->protection) < 0)
        die(region->name);
    if (region->base != NULL && region->fd >= 0 && plan->source != MEMFD) {
        close(region->fd); /* the mapping stays */
        region->fd = -1;
    }
}

/* Makes and fills all regions; returns how many. Files are made in the two folders. */
size_t make_regions(struct region *regions, size_t room, uint64_t seed, enum role role,
                    const char *tmpfs, const char *disk) {
    size_t count = sizeof(plans) / sizeof(plans[0]);

    if (count > room)
        die("too many regions");
    for (size_t n = 0; n < count; n++) {
        const struct plan *plan = &plans[n];
        struct region *region = &regions[n];

        *region = (struct region){.name = plan->name, .flags = plan->flags, .pages = plan->pages,
                                  .fd = -1, .key = mix(mix(seed) + n), .present = 1};
        if (plan->source >= MEMFD)
            region->fd = open_source(plan, plan->source == DISK ? disk : tmpfs, role);
        if (plan->mapping != NOTHING) {
            void *base = map(plan, region->fd);

            if (base == MAP_FAILED)
                die(region->name);
            region->base = base;
        }
        if (plan->advice != 0 && madvise(region->base, region->pages * PAGE, plan->advice) < 0)
            die(region->name);
        if (region->flags & GUARDED)
            install_guards(region);
        fill(region, role);
        finish(plan, region);
    }
    return count;
}

/* A new child gives up what it shall not have, before it touches anything. */
static void become_child(struct region *region) {
    size_t size = region->pages * PAGE;

    if (region->flags & NOT_FORKED)
        region->present = 0;
    if (region->flags & CUT) {
        if (munmap(region->base + size / 2, size - size / 2) < 0)
            die(region->name);
        region->pages /= 2;
    }
    if (region->flags & FLIPPED && mprotect(region->base, size, READ) < 0)
        die(region->name);
}

/* What a process changes after the fork, each in its own memory and both in what they share. */
void change_regions(struct region *regions, size_t count, enum role role) {
    static uint64_t buffer[PAGE / 8];

    for (struct region *region = regions; region < regions + count; region++) {
        if (role == CHILD)
            become_child(region);
        for (size_t page = 0; region->present && page < region->pages; page++) {
            if (changed_by(region, role, page)) {
                changed_content(region, role, page, buffer);
                put(region, page, buffer);
            }
            if (discarded(region, role, page) &&
                madvise(region->base + page * PAGE, PAGE, MADV_DONTNEED) < 0)
                die(region->name);
        }
    }
}
