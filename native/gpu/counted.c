/*
 * See counted.h. An open hash table from address to size and kind: a program may have a great many
 * small allocations, and one more may not cost more than the driver's own work on it.
 */
#include "counted.h"

#include "lock.h"
#include "system.h"

#define FIRST ((size_t)1024) /* entries; a power of two */
#define MOST ((1U << 12) - 1) /* opened so often or more often: it stays */

struct entry {
    address at;      /* 0: empty */
    context context; /* that it goes with; NULL: with none that is known */
    uint64_t size : 48, kind : 4, opened : 12; /* `opened`: so often, and not closed */
};

_Static_assert(THAW_GPU_LEFT_KINDS <= 16, "the bits of struct entry");

static struct entry *entries;
static size_t room, used;
static uint64_t bytes[THAW_GPU_LEFT_KINDS];
static struct lock lock;

static size_t slot(address at) {
    return (size_t)((at >> 8) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (room - 1);
}

/* Where it is, or would be. */
static size_t find(address at) {
    size_t n = slot(at);

    while (entries[n].at != 0 && entries[n].at != at)
        n = (n + 1) & (room - 1);
    return n;
}

static bool grow(void) {
    struct entry *old = entries;
    size_t before = room;
    struct entry *fresh;

    if ((used + 1) * 2 <= room)
        return true;
    fresh = system_memory((room == 0 ? FIRST : room * 2) * sizeof(*fresh));
    if (fresh == NULL)
        return false;
    entries = fresh;
    room = room == 0 ? FIRST : room * 2;
    for (size_t n = 0; n < before; n++)
        if (old[n].at != 0)
            entries[find(old[n].at)] = old[n];
    if (old != NULL)
        system_memory_back(old, before * sizeof(*old));
    return true;
}

/* What follows without a gap moves up, so that it is still found. */
static void take_out(size_t hole) {
    used--;
    for (size_t n = (hole + 1) & (room - 1); entries[n].at != 0; n = (n + 1) & (room - 1)) {
        size_t wanted = slot(entries[n].at);

        if (((n - wanted) & (room - 1)) >= ((n - hole) & (room - 1))) {
            entries[hole] = entries[n];
            hole = n;
        }
    }
    entries[hole] = (struct entry){0};
}

/* With the lock, and room. */
static void put(size_t n, struct entry entry) {
    if (entries[n].at == 0)
        used++;
    else
        bytes[entries[n].kind] -= entries[n].size;
    entries[n] = entry;
    bytes[entry.kind] += entry.size;
}

static struct entry made(address at, uint64_t size, enum thaw_gpu_left kind) {
    return (struct entry){.at = at, .size = size & (UINT64_MAX >> 16), .kind = kind & 0xf};
}

void count_in(address at, uint64_t size, enum thaw_gpu_left kind) {
    lock_write(&lock);
    if (at != 0 && size > 0 && grow())
        put(find(at), made(at, size, kind));
    unlock_write(&lock);
}

/* Opened in more than one context, it goes with none: it is better to count too much. */
static void open_again(struct entry *entry, context here) {
    if (entry->opened < MOST)
        entry->opened++;
    if (entry->context != here)
        entry->context = NULL;
}

void count_opened(address at, uint64_t size, context here) {
    lock_write(&lock);
    if (at != 0 && size > 0 && grow()) {
        struct entry fresh = made(at, size, THAW_GPU_LEFT_IMPORTED);
        size_t n = find(at);

        fresh.context = here;
        fresh.opened = 1;
        if (entries[n].opened > 0)
            open_again(&entries[n], here);
        else
            put(n, fresh);
    }
    unlock_write(&lock);
}

/* With the lock. */
static void drop(size_t n) {
    bytes[entries[n].kind] -= entries[n].size;
    take_out(n);
}

void count_out(address at) {
    lock_write(&lock);
    if (at != 0 && room > 0) {
        size_t n = find(at);

        if (entries[n].opened > 1 && entries[n].opened < MOST)
            entries[n].opened--;
        else if (entries[n].at != 0 && entries[n].opened < MOST)
            drop(n);
    }
    unlock_write(&lock);
}

void count_out_of(context gone) {
    lock_write(&lock);
    for (size_t n = 0; n < room;)
        if (entries[n].at != 0 && entries[n].context == gone && gone != NULL)
            drop(n); /* and look at what has moved up */
        else
            n++;
    unlock_write(&lock);
}

void count_as(address at, enum thaw_gpu_left kind) {
    lock_write(&lock);
    if (at != 0 && room > 0) {
        struct entry *entry = &entries[find(at)];

        if (entry->at != 0 && entry->opened == 0) {
            bytes[entry->kind] -= entry->size;
            entry->kind = kind & 0xf;
            bytes[kind] += entry->size;
        }
    }
    unlock_write(&lock);
}

void counted(uint64_t left[THAW_GPU_LEFT_KINDS]) {
    lock_read(&lock);
    for (size_t n = 0; n < THAW_GPU_LEFT_KINDS; n++)
        left[n] = bytes[n];
    unlock_read(&lock);
}
