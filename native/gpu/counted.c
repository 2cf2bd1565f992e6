/*
 * See counted.h. An open hash table from address to size and kind: a program may have a great many
 * small allocations, and one more may not cost more than the driver's own work on it.
 */
#include "counted.h"

#include "lock.h"
#include "system.h"

#define FIRST ((size_t)1024) /* entries; a power of two */

struct entry {
    address at; /* 0: empty */
    uint64_t size : 56, kind : 8;
};

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
    entries[hole].at = 0;
}

void count_in(address at, uint64_t size, enum thaw_gpu_left kind) {
    lock_write(&lock);
    if (at != 0 && size > 0 && grow()) {
        size_t n = find(at);

        if (entries[n].at == 0)
            used++;
        else
            bytes[entries[n].kind] -= entries[n].size;
        entries[n] = (struct entry){at, size & (UINT64_MAX >> 8), (uint64_t)kind & 0xff};
        bytes[kind] += entries[n].size;
    }
    unlock_write(&lock);
}

void count_out(address at) {
    lock_write(&lock);
    if (at != 0 && room > 0) {
        size_t n = find(at);

        if (entries[n].at != 0) {
            bytes[entries[n].kind] -= entries[n].size;
            take_out(n);
        }
    }
    unlock_write(&lock);
}

void count_as(address at, enum thaw_gpu_left kind) {
    lock_write(&lock);
    if (at != 0 && room > 0) {
        struct entry *entry = &entries[find(at)];

        if (entry->at != 0) {
            bytes[entry->kind] -= entry->size;
            entry->kind = (uint64_t)kind & 0xff;
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
