/*
 * Bulk memory at a checkpoint: out of frozen tasks into CRIU's pages files, out of GPU memory into
 * files of ours, or out of files alone, and on the way what an index needs to know of it.
 *
 * The runs are cut into pieces that end where the address is a multiple of 4 MiB; consecutive
 * pieces of one file, 8 MiB in all, are what a thread takes at a time (schedule.c). The result
 * depends on the pieces only, not on who did which (pieces.c).
 *
 * How to write, measured (2 cores, a virtual disk that fio writes at 0.8 to 0.9 GiB/s, ext4,
 * kernel 6.18; seconds until 4 GiB of random memory were copied, and until they were on disk):
 *
 *     into the page cache, 2 threads, 1 MiB a write             6.8 - 8.2      8.0 - 9.4
 *     the same, 512 KiB a write                                 4.3 - 5.8      5.7 - 7.3
 *     the same, with sync_file_range after each                 6.0 - 6.2      6.0 - 6.2
 *     into a mapping of the file                                4.5 - 9.2      5.9 - 10.4
 *     O_DIRECT, 2 threads, 4 MiB a write                        3.8 - 4.5      3.8 - 4.5
 *     O_DIRECT, 4 threads, 4 MiB                                3.2 - 3.9      3.2 - 3.9
 *     O_DIRECT, 4 threads, 4 MiB, fallocate before              2.9 - 3.0      2.9 - 3.0
 *     O_DIRECT, 4 threads, 8 MiB                                2.8 - 3.0      2.8 - 3.0
 *
 * So the caller should open with O_DIRECT, and four threads that write wait for the disk while
 * others read. Without fallocate zero pages become holes. What is read and not yet written waits
 * in buffers, so that the tasks need not wait for the disk.
 */
#define _GNU_SOURCE
#include "pieces.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where the bytes come from, and how many of these there are. */
struct origin {
    const int *pids;
    struct thaw_region *const *regions;
    size_t count;
};

static bool is_there(const struct thaw_run *run, const struct origin *origin) {
    if (!origin->pids && !origin->regions) {
        return true;
    }
    return run->task < origin->count &&
           (!origin->regions ||
            region_holds(origin->regions[run->task], run->address, run->length));
}

static bool check(struct thaw_save *save, const struct thaw_run *run, size_t fd_count,
                  const struct origin *origin) {
    uint64_t place = (uint64_t)(run - save->runs);
    struct stat file;

    if ((run->address | run->offset | run->length) % PAGE ||
        run->address + run->length < run->address || run->length > INT64_MAX ||
        run->offset > INT64_MAX - run->length || run->source >= fd_count ||
        !is_there(run, origin)) {
        return thaw_save_fail(save, EINVAL, OWN, place);
    }
    if (save->copying) {
        return true;
    }
    if (fstat(save->fds[run->source], &file) < 0) {
        return thaw_save_fail(save, errno, READING, place);
    }
    if (run->offset + run->length > (uint64_t)file.st_size) {
        return thaw_save_fail(save, ENODATA, TOO_SHORT, place);
    }
    return true;
}

static bool check_all(struct thaw_save *save, size_t fd_count, const struct origin *origin) {
    for (size_t i = 1; origin->regions && i < origin->count; i++) {
        if (origin->regions[i]->device != origin->regions[0]->device) {
            return thaw_save_fail(save, EINVAL, OWN, UINT64_MAX);
        }
    }
    for (size_t i = 0; i < save->count; i++) {
        if (!check(save, &save->runs[i], fd_count, origin)) {
            return false;
        }
    }
    return true;
}

/* How many threads and buffers there shall be. */
static void choose(struct thaw_save *save, uint32_t asked, uint64_t budget) {
    uint64_t bytes = 0;
    uint64_t threads = asked;
    cpu_set_t ours;

    for (size_t i = 0; i < save->count; i++) {
        bytes += save->runs[i].length;
    }
    if (!threads) {
        long online = sysconf(_SC_NPROCESSORS_ONLN);

        threads = online > 0 ? (uint64_t)online : 1;
        if (sched_getaffinity(0, sizeof(ours), &ours) == 0) { /* not beyond CPU_SETSIZE */
            threads = (uint64_t)CPU_COUNT(&ours);
        }
        threads += save->copying ? WRITERS : 0;
    }
    if (save->copying && threads > budget / GROUP) { /* each needs a buffer, which counts */
        threads = budget / GROUP ? budget / GROUP : 1;
    }
    threads = threads < bytes / GROUP + 1 ? threads : bytes / GROUP + 1;
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    save->threads = (uint32_t)threads;
    save->writers = !asked ? WRITERS : (save->threads + 1) / 2;
    save->most = save->copying && budget / GROUP > threads ? budget / GROUP : threads;
}

/* Starts as many of the threads as the system gives. */
static void start(struct thaw_save *save) {
    uint32_t wanted = save->threads;
    sigset_t all;
    sigset_t before;
    int error = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for Python's threads */
    for (save->threads = 0; save->threads < wanted && !error; save->threads += !error) {
        struct worker *worker = &save->workers[save->threads];

        worker->save = save;
        error = pthread_create(&worker->thread, NULL, thaw_save_work, worker);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!save->threads) {
        thaw_save_fail(save, error, OWN, UINT64_MAX);
    }
}

static int by_place(const void *left, const void *right) {
    const struct thaw_extent *a = left;
    const struct thaw_extent *b = right;

    if (a->source != b->source) {
        return a->source < b->source ? -1 : 1;
    }
    if (a->offset != b->offset) {
        return a->offset < b->offset ? -1 : 1;
    }
    if (a->task != b->task) {
        return a->task < b->task ? -1 : 1;
    }
    return (a->address > b->address) - (a->address < b->address);
}

/* Brings together what the threads, which have ended, have found. */
static void gather(struct thaw_save *save) {
    size_t sum = 0;

    for (uint32_t i = 0; i < save->threads; i++) {
        sum += save->workers[i].extents.count;
    }
    save->extents = calloc(sum + 1, sizeof(*save->extents));
    if (!save->extents) {
        thaw_save_fail(save, ENOMEM, OWN, UINT64_MAX);
        return;
    }
    for (uint32_t i = 0; i < save->threads; i++) {
        const struct extents *found = &save->workers[i].extents;

        if (found->count) {
            memcpy(save->extents + save->extent_count, found->items,
                   found->count * sizeof(*found->items));
            save->extent_count += found->count;
        }
    }
    qsort(save->extents, save->extent_count, sizeof(*save->extents), by_place);
}

static void join(struct thaw_save *save) {
    for (uint32_t i = 0; !save->joined && i < save->threads; i++) {
        pthread_join(save->workers[i].thread, NULL);
    }
    save->joined = true;
}

static void *copied(const void *from, size_t count, size_t size) {
    void *copy = calloc(count + 1, size);

    if (copy && count) {
        memcpy(copy, from, count * size);
    }
    return copy;
}

static bool copy_origin(struct thaw_save *save, const struct origin *origin) {
    save->copying = origin->pids || origin->regions;
    if (origin->pids) {
        save->pids = copied(origin->pids, origin->count, sizeof(*origin->pids));
    }
    if (origin->regions && origin->count) {
        save->regions = copied(origin->regions, origin->count, sizeof(*save->regions));
        save->device = origin->regions[0]->device;
        save->gpu = origin->regions[0]->gpu;
    }
    return (save->pids || !origin->pids) && (save->regions || !save->device);
}

static int begin(const int *fds, size_t fd_count, const struct thaw_run *runs, size_t count,
                 const struct origin *origin, uint32_t threads, uint64_t budget,
                 struct thaw_save **started) {
    struct thaw_save *save = count < UINT32_MAX ? calloc(1, sizeof(*save)) : NULL;

    *started = save;
    if (!save) {
        return -ENOMEM;
    }
    pthread_mutex_init(&save->lock, NULL);
    pthread_cond_init(&save->changed, NULL);
    save->count = count;
    save->fds = copied(fds, fd_count, sizeof(*fds));
    save->runs = copied(runs, count, sizeof(*runs));
    if (copy_origin(save, origin) && save->fds && save->runs) {
        choose(save, threads, budget);
        save->workers = calloc(save->threads, sizeof(*save->workers));
    }
    if (!save->workers) {
        thaw_save_close(save);
        *started = NULL;
        return -ENOMEM;
    }
    if (check_all(save, fd_count, origin)) {
        start(save);
    } else {
        save->threads = 0;
    }
    return 0;
}

int thaw_save_start(const int *fds, size_t fd_count, const struct thaw_run *runs, size_t count,
                    const int *pids, size_t pid_count, uint32_t threads, uint64_t budget,
                    struct thaw_save **save) {
    struct origin origin = {.pids = pids, .count = pid_count};

    return begin(fds, fd_count, runs, count, &origin, threads, budget, save);
}

int thaw_save_start_device(const int *fds, size_t fd_count, const struct thaw_run *runs,
                           size_t count, struct thaw_region *const *regions, size_t region_count,
                           uint32_t threads, uint64_t budget, struct thaw_save **save) {
    struct origin origin = {.regions = regions, .count = region_count};

    return begin(fds, fd_count, runs, count, &origin, threads, budget, save);
}

int thaw_save_wait(struct thaw_save *save, int written, struct thaw_failure *failure) {
    if (written && !save->joined) {
        join(save);
        gather(save);
    }
    pthread_mutex_lock(&save->lock);
    while (!save->failure.error && !(save->exhausted && !save->reading)) {
        pthread_cond_wait(&save->changed, &save->lock);
    }
    *failure = save->failure;
    pthread_mutex_unlock(&save->lock);
    return failure->stage == GPU ? -EIO : -failure->error;
}

void thaw_save_cancel(struct thaw_save *save) {
    thaw_save_fail(save, ECANCELED, OWN, UINT64_MAX);
}

int thaw_save_run(const int *fds, size_t fd_count, const struct thaw_run *runs, size_t count,
                  const int *pids, size_t pid_count, uint32_t threads, struct thaw_save **save,
                  struct thaw_failure *failure) {
    int result = thaw_save_start(fds, fd_count, runs, count, pids, pid_count, threads, 0, save);

    if (result < 0) {
        *failure = (struct thaw_failure){.error = -result, .stage = OWN, .place = UINT64_MAX};
        return result;
    }
    result = thaw_save_wait(*save, 1, failure);
    if (result < 0) {
        thaw_save_close(*save);
        *save = NULL;
    }
    return result;
}

const struct thaw_extent *thaw_save_extents(const struct thaw_save *save, size_t *count) {
    *count = save->extent_count;
    return save->extents;
}

static void drop_all(struct thaw_save *save, struct group *group) {
    while (group) {
        struct group *next = group->next;

        thaw_save_drop(save, group);
        group = next;
    }
}

void thaw_save_close(struct thaw_save *save) {
    if (!save) {
        return;
    }
    if (!save->joined) {
        thaw_save_cancel(save);
        join(save);
    }
    drop_all(save, save->first);
    drop_all(save, save->spare);
    for (uint32_t i = 0; i < save->threads; i++) {
        free(save->workers[i].extents.items);
    }
    pthread_cond_destroy(&save->changed);
    pthread_mutex_destroy(&save->lock);
    free(save->workers);
    free(save->extents);
    free(save->runs);
    free(save->pids);
    free(save->regions);
    free(save->fds);
    free(save);
}
