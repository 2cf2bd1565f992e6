/* Who of save.c's threads does what, and when. */
#define _GNU_SOURCE
#include "pieces.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

static bool fail(struct thaw_save *save, struct thaw_failure failure) {
    pthread_mutex_lock(&save->lock);
    if (!save->failure.error) {
        save->failure = failure;
    }
    pthread_cond_broadcast(&save->changed);
    pthread_mutex_unlock(&save->lock);
    return false;
}

bool thaw_save_fail(struct thaw_save *save, int error, int stage, uint64_t place) {
    return fail(save, (struct thaw_failure){.error = error, .stage = stage, .place = place});
}

bool thaw_save_fail_gpu(struct worker *worker, int result, uint64_t place) {
    if (result < 0) {
        return thaw_save_fail(worker->save, -result, OWN, place);
    }
    return fail(worker->save, (struct thaw_failure){.error = result,
                                                    .stage = GPU,
                                                    .place = place,
                                                    .call = worker->lane.call});
}

/* Appends the next piece to the group, if it fits there. */
static bool add_piece(struct thaw_save *save, struct group *group) {
    const struct thaw_run *run = &save->runs[save->next];
    uint64_t address = run->address + save->taken;
    uint64_t left = run->length - save->taken;
    uint64_t length = PIECE - address % PIECE;

    length = left < length ? left : length;
    if (group->count &&
        (save->fds[run->source] != group->fd || group->size + length > GROUP)) {
        return false;
    }
    group->fd = save->fds[run->source];
    group->pieces[group->count++] =
        (struct piece){address, run->offset + save->taken, (uint32_t)length,
                       (uint32_t)save->next};
    group->size += length;
    save->taken += length;
    return true;
}

/* Takes the next pieces; false if there are no more. */
static bool take(struct thaw_save *save, struct group *group) {
    group->count = 0;
    group->size = 0;
    while (save->next < save->count && group->count < PIECES) {
        const struct thaw_run *run = &save->runs[save->next];

        if (save->taken == run->length || !(save->copying || run->flags & WANTED)) {
            save->next++;
            save->taken = 0;
        } else if (!add_piece(save, group)) {
            break;
        }
    }
    if (save->next == save->count && !save->exhausted) {
        save->exhausted = true; /* who waits for a buffer to read into need not wait any more */
        pthread_cond_broadcast(&save->changed);
    }
    return group->count > 0;
}

void thaw_save_drop(struct thaw_save *save, struct group *group) {
    if (group->pinned) {
        device_unpin(save->device, save->gpu, group->buffer);
    }
    if (group->buffer != MAP_FAILED) {
        munmap(group->buffer, GROUP);
    }
    free(group);
    save->groups--;
}

/*
 * Not by malloc, which would keep it when it is given back. Aligned for huge pages, and not for
 * children: what a fork has just shared, direct I/O may write from the wrong copy (open(2), NOTES).
 */
static char *map_buffer(void) {
    char *map = mmap(NULL, GROUP + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
    size_t skipped;

    if (map == MAP_FAILED) {
        return map;
    }
    skipped = (HUGE_PAGE - (uintptr_t)map % HUGE_PAGE) % HUGE_PAGE;
    if (skipped) {
        munmap(map, skipped);
    }
    map += skipped;
    munmap(map + GROUP, HUGE_PAGE - skipped);
    madvise(map, GROUP, MADV_HUGEPAGE);
    madvise(map, GROUP, MADV_DONTFORK);
    return map;
}

/* A buffer that is free, or NULL if there may not be more of them now. */
static struct group *spare(struct thaw_save *save) {
    struct group *group = save->spare;

    if (group) {
        save->spare = group->next;
        return group;
    }
    if (save->groups == save->most) {
        return NULL;
    }
    group = calloc(1, sizeof(*group));
    if (group) {
        save->groups++;
        group->buffer = map_buffer();
        if (group->buffer != MAP_FAILED) {
            return group;
        }
        thaw_save_drop(save, group);
    }
    save->most = save->groups; /* as many as there is memory for */
    return NULL;
}

/* A group that is to be written, if there is one and it is time to. */
static struct group *to_write(struct thaw_save *save, bool now) {
    struct group *group = save->first;

    if (!group || !(now || save->writing < save->writers)) {
        return NULL;
    }
    save->first = group->next;
    save->writing++;
    return group;
}

/* A group that is to be read, if there is one and a buffer for it. */
static struct group *to_read(struct thaw_save *save) {
    struct group *group = save->exhausted ? NULL : spare(save);

    if (group && !take(save, group)) {
        thaw_save_drop(save, group);
        return NULL;
    }
    save->reading += group != NULL;
    return group;
}

/*
 * What to do next, with the lock held: first the disk is kept busy, then tasks are read as long as
 * there are buffers, so that they can run again soon.
 */
static struct group *next(struct thaw_save *save, bool *write) {
    for (;;) {
        struct group *group = NULL;

        if (save->failure.error) {
            return NULL;
        }
        *write = true;
        group = to_write(save, false);
        if (!group) {
            *write = false;
            group = to_read(save);
        }
        if (!group) {
            *write = true;
            group = to_write(save, true);
        }
        if (group || (save->exhausted && !save->reading)) {
            return group;
        }
        if (!save->groups && !save->exhausted) { /* not even one buffer */
            save->failure =
                (struct thaw_failure){.error = ENOMEM, .stage = OWN, .place = UINT64_MAX};
            return NULL;
        }
        pthread_cond_wait(&save->changed, &save->lock);
    }
}

/* Notes, with the lock held, what was done with a group. */
static void note(struct thaw_save *save, struct group *group, bool wrote) {
    if (!wrote) {
        save->reading--;
        group->next = NULL;
        *(save->first ? &save->last->next : &save->first) = group;
        save->last = group;
    } else {
        save->writing--;
        group->next = save->spare;
        save->spare = group;
        while (save->exhausted && (group = save->spare)) {
            save->spare = group->next;
            thaw_save_drop(save, group);
        }
    }
    pthread_cond_broadcast(&save->changed);
}

void *thaw_save_work(void *argument) {
    struct worker *worker = argument;
    struct thaw_save *save = worker->save;
    struct group *group;
    bool write;

    pthread_mutex_lock(&save->lock);
    while ((group = next(save, &write))) {
        pthread_mutex_unlock(&save->lock);
        if (write) {
            thaw_save_digest(worker, group);
        } else {
            thaw_save_fetch(worker, group);
        }
        pthread_mutex_lock(&save->lock);
        note(save, group, write);
    }
    pthread_cond_broadcast(&save->changed);
    pthread_mutex_unlock(&save->lock);
    thaw_save_leave(worker);
    return NULL;
}
