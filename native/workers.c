/* The threads of a fill: how many, where they run, and their end. */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#define NODES "/sys/devices/system/node"

enum { READERS, FILLERS };

/*
 * Readers if none are asked for: a virtual disk wants two, several NVMe disks more. They also copy
 * from the page cache, for a GPU while CRIU works, so half of the processors stay free for it.
 */
enum { FEWEST_READERS = 4, MOST_READERS = 16 };

/*
 * With the lock held: the new threads wait for it. No signal of this process is for them, but for
 * what they may bring upon themselves (mapped.c): the kernel ends who has that blocked.
 */
static void start_workers(struct thaw_fill *fill, int kind, uint32_t count, void *(*run)(void *),
                          const struct place *places, size_t place_count) {
    struct worker *workers = calloc(count, sizeof(*workers));
    uint32_t *running = kind == READERS ? &fill->readers : &fill->fillers;
    sigset_t all, before;

    if (workers == NULL)
        return;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (uint32_t number = 0; number < count; number++) {
        workers[number].fill = fill;
        workers[number].place.node = -1;
        if (place_count > 0)
            workers[number].place = places[number % place_count];
        if (pthread_create(&workers[number].thread, NULL, run, &workers[number]) != 0)
            break;
        ++*running;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    fill->workers[kind] = workers;
    fill->worker_count[kind] = *running;
}

/*
 * How many processors we may run on, and which. The kernel has no answer that fits (EINVAL) where
 * there may be more than CPU_SETSIZE of them: none is named then, so that nothing is pinned.
 */
static uint32_t own_processors(cpu_set_t *own) {
    long online;

    CPU_ZERO(own);
    if (sched_getaffinity(0, sizeof(*own), own) == 0)
        return (uint32_t)CPU_COUNT(own);
    CPU_ZERO(own);
    online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (uint32_t)online : 1;
}

/* Without readers (no buffers, no threads) the fillers read everything themselves. */
void fill_start_readers(struct thaw_fill *fill) {
    uint32_t count = fill->options.readers;
    cpu_set_t own;

    if (fill->prefetching)
        return;
    fill->prefetching = true;
    if (count == 0)
        count = own_processors(&own) / 2;
    if (fill->options.readers == 0 && count < FEWEST_READERS)
        count = FEWEST_READERS;
    if (fill->options.readers == 0 && count > MOST_READERS)
        count = MOST_READERS;
    if (count > fill->pool.count)
        count = fill->pool.count;
    if (count > 0)
        start_workers(fill, READERS, count, reader_main, NULL, 0);
}

/*
 * For a GPU at most: its bus carries 51 GiB/s, and a thread of the machine below 3.5. More would
 * only have more memory pinned, which the driver does for one thread after the other.
 */
enum { MOST_FOR_A_GPU = 24 };

/*
 * A GPU takes what it is given while the thread goes on; and CRIU works at the same time. On an
 * H100 with 16 processors, 15.3 GiB, three restores each from huge pages of a tmpfs, in GiB/s: 27.6
 * to 29.9 with 6 threads, 29.7 to 34.7 with 8, 32.6 to 35.4 with 10; CRIU's part was the same.
 */
static uint32_t chosen(const struct thaw_fill *fill, uint32_t processors) {
    uint64_t most = (uint64_t)MOST_FOR_A_GPU * fill->gpus;
    uint64_t share = (5ULL * processors + 7) / 8;

    if (fill->targets == NULL)
        return processors;
    return (uint32_t)(share < most ? share : most);
}

int fill_start_fillers(struct thaw_fill *fill, const int *nodes, size_t node_count) {
    struct place *places = calloc(node_count + 1, sizeof(*places));
    uint32_t count = fill->options.fillers;
    cpu_set_t own;
    uint32_t processors = own_processors(&own);
    size_t place_count = 0;

    if (places == NULL)
        return -ENOMEM;
    if (nodes != NULL)
        place_count = places_find(NODES, nodes, node_count, &own, places);
    if (place_count > 0)
        processors = places_processors(places, place_count);
    if (count == 0)
        count = chosen(fill, processors);
    if (count > fill->left)
        count = fill->left;
    if (count > 0)
        start_workers(fill, FILLERS, count, fill->targets != NULL ? deliverer_main : filler_main,
                      places, place_count);
    free(places);
    return count > 0 && fill->fillers == 0 ? -EAGAIN : 0;
}

void fill_join(struct thaw_fill *fill) {
    for (int kind = READERS; kind <= FILLERS; kind++) {
        for (uint32_t number = 0; number < fill->worker_count[kind]; number++)
            pthread_join(fill->workers[kind][number].thread, NULL);
        free(fill->workers[kind]);
    }
}
