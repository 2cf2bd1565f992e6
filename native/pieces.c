/* The work of save.c's threads: a group of pieces is read, then looked at and written. */
#define _GNU_SOURCE
#include "pieces.h"

#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Whether a call that failed is worth another try: O_DIRECT may have been the reason, and is given
 * up. Another thread may have done that since the call, so one more try is due in either case.
 */
static bool without_direct(int fd, int error, bool *retried) {
    int flags;

    if (error != EINVAL || *retried) {
        return false;
    }
    *retried = true;
    flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (!(flags & O_DIRECT) || fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0);
}

/* Reads a piece from a file; zero or the errno, ENODATA where the file ends. */
static int read_piece(int fd, uint64_t offset, char *data, size_t length) {
    bool retried = false;

    for (size_t done = 0; done < length;) {
        ssize_t got = pread(fd, data + done, length - done, (off_t)(offset + done));
        int error = errno;

        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            return ENODATA;
        } else if (error != EINTR && !without_direct(fd, error, &retried)) {
            return error;
        }
    }
    return 0;
}

static bool fetch_from_file(struct worker *worker, const struct group *group) {
    char *data = group->buffer;

    for (size_t i = 0; i < group->count; data += group->pieces[i++].length) {
        const struct piece *piece = &group->pieces[i];
        int error = read_piece(group->fd, piece->offset, data, piece->length);

        if (error) {
            int stage = error == ENODATA ? TOO_SHORT : READING;

            return thaw_save_fail(worker->save, error, stage, piece->run);
        }
    }
    return true;
}

/* Reads pieces that are all of one process; zero or the errno, and in `place` which it was. */
static int read_from_process(struct worker *worker, int pid, char *data,
                             const struct piece *pieces, size_t count, size_t *place) {
    for (size_t i = 0; i < count; i++) {
        /* An address of the other process, never followed here. */
        worker->remote[i] = (struct iovec){(void *)(uintptr_t)pieces[i].address, pieces[i].length};
    }
    return -thaw_memory_read(pid, data, worker->remote, count, place);
}

static bool fetch_from_tasks(struct worker *worker, const struct group *group) {
    const struct thaw_save *save = worker->save;
    const struct piece *pieces = group->pieces;
    char *data = group->buffer;

    for (size_t first = 0, count; first < group->count; first += count) {
        int pid = save->pids[save->runs[pieces[first].run].task];
        size_t place = 0;
        size_t size = pieces[first].length;
        int error;

        count = 1;
        if (pid < 0) {
            error = read_piece(~pid, pieces[first].address, data, size);
        } else {
            while (first + count < group->count &&
                   save->pids[save->runs[pieces[first + count].run].task] == pid) {
                size += pieces[first + count++].length;
            }
            error = read_from_process(worker, pid, data, pieces + first, count, &place);
        }
        if (error) {
            return thaw_save_fail(worker->save, error, MEMORY, pieces[first + place].run);
        }
        data += size;
    }
    return true;
}

/* Buffers are pinned by whoever reads into them first, with no lock held. */
static void pin(const struct thaw_save *save, struct group *group) {
    if (!group->known) {
        group->known = true;
        group->pinned = device_pin(save->device, save->gpu, group->buffer, GROUP);
    }
}

static bool fetch_from_regions(struct worker *worker, struct group *group) {
    const struct thaw_save *save = worker->save;
    char *data = group->buffer;
    size_t done = 0;
    int err = 0;
    int now;

    pin(save, group);
    worker->lane.entered = 0; /* to pin and to unpin something changes the thread's GPU */
    for (; done < group->count && !err; data += group->pieces[done++].length) {
        const struct piece *piece = &group->pieces[done];
        const struct thaw_run *run = &save->runs[piece->run];

        err = lane_out(&worker->lane, save->regions[run->task], piece->address, data,
                       piece->length);
    }
    now = lane_mark(&worker->lane, &worker->mark);
    err = err ? err : now;
    now = lane_wait(&worker->lane, &worker->mark); /* also after a failure: of those before */
    err = err ? err : now;
    return !err || thaw_save_fail_gpu(worker, err, group->pieces[done - 1].run);
}

void thaw_save_leave(struct worker *worker) {
    if (worker->save->device) {
        worker->lane.entered = 0;
        lane_close(&worker->lane);
        mark_drop(worker->save->device, &worker->mark);
    }
}

static bool write_pending(struct worker *worker, int fd, uint32_t run) {
    struct span *span = &worker->pending;
    bool retried = false;

    while (span->length) {
        ssize_t put = pwrite(fd, span->data, span->length, (off_t)span->offset);
        int error = errno;

        if (put > 0) {
            span->data += put;
            span->offset += (uint64_t)put;
            span->length -= (size_t)put;
        } else if (put == 0) {
            return thaw_save_fail(worker->save, EIO, OWN, run);
        } else if (error != EINTR && !without_direct(fd, error, &retried)) {
            return thaw_save_fail(worker->save, error, OWN, run);
        }
    }
    return true;
}

/* Notes bytes that must be written; what follows on itself becomes one large write. */
static bool put(struct worker *worker, int fd, const char *data, uint64_t offset, size_t length,
                uint32_t run) {
    struct span *span = &worker->pending;

    if (span->length && data == span->data + span->length &&
        offset == span->offset + span->length) {
        span->length += length;
        return true;
    }
    if (!write_pending(worker, fd, run)) {
        return false;
    }
    *span = (struct span){data, offset, length};
    return true;
}

static bool add_extent(struct worker *worker, const struct piece *piece, const char *data,
                       size_t from, size_t to) {
    const struct thaw_run *run = &worker->save->runs[piece->run];
    struct extents *list = &worker->extents;

    if (list->count == list->room) {
        size_t room = list->room ? 2 * list->room : 256;
        struct thaw_extent *items = reallocarray(list->items, room, sizeof(*items));

        if (!items) {
            return thaw_save_fail(worker->save, ENOMEM, OWN, piece->run);
        }
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = (struct thaw_extent){
        .address = piece->address + from,
        .offset = piece->offset + from,
        .length = (uint32_t)(to - from),
        .checksum = thaw_crc32c(0, data + from, to - from),
        .task = run->task,
        .source = run->source,
        .flags = run->flags & ANONYMOUS,
    };
    return true;
}

static bool is_zero(const char *page) {
    static const char zeros[PAGE];

    return memcmp(page, zeros, PAGE) == 0;
}

/*
 * The next stretch of `data`, from `*at` on, that has no hole's length of zeros in it: it begins at
 * `*from`, ends before `*to`, and the search goes on at `*at`. False if there is none.
 */
static bool next_stretch(const char *data, size_t length, size_t *at, size_t *from, size_t *to) {
    size_t start = *at;
    size_t zeros = 0;

    while (*at < length && is_zero(data + *at)) {
        *at += PAGE;
    }
    /* At the beginning of a piece too few zeros may stand; anywhere else a hole came before. */
    *from = start == 0 && *at < HOLE ? 0 : *at;
    *to = *at;
    for (; *at < length && zeros < HOLE; *at += PAGE) {
        zeros = is_zero(data + *at) ? zeros + PAGE : 0;
        *to = zeros ? *to : *at + PAGE;
    }
    if (*at == length && zeros < HOLE && *to > *from) {
        *to = length;
    }
    return *to > *from;
}

static bool examine(struct worker *worker, int fd, const struct piece *piece, const char *data) {
    const struct thaw_run *run = &worker->save->runs[piece->run];
    bool cut = run->flags & ANONYMOUS;
    bool wanted = run->flags & WANTED;

    if (worker->save->device && !cut) { /* the GPU has left out what is zero */
        return (!wanted || add_extent(worker, piece, data, 0, piece->length)) &&
               put(worker, fd, data, piece->offset, piece->length, piece->run);
    }
    if (wanted && !cut && !add_extent(worker, piece, data, 0, piece->length)) {
        return false;
    }
    for (size_t at = 0, from, to; next_stretch(data, piece->length, &at, &from, &to);) {
        if (wanted && cut && !add_extent(worker, piece, data, from, to)) {
            return false;
        }
        if (worker->save->copying &&
            !put(worker, fd, data + from, piece->offset + from, to - from, piece->run)) {
            return false;
        }
    }
    return true;
}

bool thaw_save_fetch(struct worker *worker, struct group *group) {
    if (worker->save->device) {
        return fetch_from_regions(worker, group);
    }
    return worker->save->pids ? fetch_from_tasks(worker, group) : fetch_from_file(worker, group);
}

bool thaw_save_digest(struct worker *worker, const struct group *group) {
    const char *data = group->buffer;

    worker->pending.length = 0;
    for (size_t i = 0; i < group->count; data += group->pieces[i++].length) {
        if (!examine(worker, group->fd, &group->pieces[i], data)) {
            return false;
        }
    }
    return write_pending(worker, group->fd, group->pieces[group->count - 1].run);
}
