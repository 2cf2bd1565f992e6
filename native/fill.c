/* The fill as a whole: from its description to its end. */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

bool extents_are_sane(const struct thaw_source *sources, size_t source_count,
                      const struct thaw_extent *extents, size_t count) {
    for (size_t number = 0; number < count; number++) {
        const struct thaw_extent *extent = &extents[number];

        if (extent->source >= source_count || extent->length == 0 || extent->length > BUFFER ||
            extent->length % PAGE != 0 || extent->offset % PAGE != 0 ||
            extent->offset > sources[extent->source].size ||
            extent->length > sources[extent->source].size - extent->offset)
            return false;
    }
    return true;
}

static void init_locks(struct thaw_fill *fill) {
    pthread_condattr_t clock;

    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&fill->lock, NULL);
    pthread_cond_init(&fill->work, NULL);
    pthread_cond_init(&fill->room, NULL);
    pthread_cond_init(&fill->given, NULL);
    pthread_cond_init(&fill->ended, &clock);
    pthread_condattr_destroy(&clock);
}

static int open_sources(struct thaw_fill *fill, const struct thaw_source *sources, size_t count) {
    int err = 0;

    fill->blobs = calloc(count + 1, sizeof(*fill->blobs));
    if (fill->blobs == NULL)
        return -ENOMEM;
    for (; fill->blob_count < count && err == 0; fill->blob_count++) {
        struct blob *blob = &fill->blobs[fill->blob_count];

        blob->file = sources[fill->blob_count].file;
        blob->size = sources[fill->blob_count].size;
        blob->direct = -1;
        err = fill->options.source == PAGE_CACHE ? 0 : blob_open_direct(blob);
    }
    return err;
}

static int prepare(struct thaw_fill *fill, const struct thaw_source *sources,
                   size_t source_count) {
    int err = open_sources(fill, sources, source_count);

    if (err < 0)
        return err;
    fill->batches = batches_cut(fill->extents, fill->count, &fill->batch_count);
    if (fill->batches == NULL)
        return -ENOMEM;
    fill->unread = fill->left = fill->batch_count;
    for (size_t number = 0; number < fill->count; number++)
        fill->counters.total += fill->extents[number].length;
    return pool_open(&fill->pool, fill->options.budget, fill->batch_count);
}

int thaw_fill_open(const struct thaw_source *sources, size_t source_count,
                   const struct thaw_extent *extents, size_t count,
                   const struct thaw_fill_options *options, struct thaw_fill **made) {
    struct thaw_fill *fill;
    int err;

    *made = NULL;
    if (!extents_are_sane(sources, source_count, extents, count) || options->source > DIRECT)
        return -EINVAL;
    fill = calloc(1, sizeof(*fill));
    if (fill == NULL)
        return -ENOMEM;
    init_locks(fill);
    fill->options = *options;
    fill->hurried = options->source == PAGE_CACHE;
    fill->extents = extents;
    fill->count = count;
    fill->warm.head = fill->cold.head = fill->ready.head = NONE;
    err = prepare(fill, sources, source_count);
    if (err < 0)
        thaw_fill_close(fill);
    else
        *made = fill;
    return err;
}

int thaw_fill_prefetch(struct thaw_fill *fill) {
    int err;

    pthread_mutex_lock(&fill->lock);
    err = -fill->failure.error;
    if (err == 0)
        fill_start_readers(fill);
    pthread_mutex_unlock(&fill->lock);
    return err;
}

/* With the lock held. */
static void hurry(struct thaw_fill *fill) {
    fill->hurried = true;
    pthread_cond_broadcast(&fill->room); /* what is warm is no longer for the readers */
}

void thaw_fill_hurry(struct thaw_fill *fill) {
    pthread_mutex_lock(&fill->lock);
    hurry(fill);
    pthread_mutex_unlock(&fill->lock);
}

static int take_pids(struct thaw_fill *fill, const int *pids, size_t count) {
    int err = 0;

    if (pids == NULL)
        return 0;
    for (size_t number = 0; number < fill->count; number++)
        if (fill->extents[number].task >= count) /* with no pids at all, every one */
            return -EINVAL;
    if (count >= NONE)
        return -EINVAL;
    fill->tasks = tasks_open(pids, count, &err);
    fill->task_count = fill->tasks != NULL ? (uint32_t)count : 0;
    return err;
}

static void drop_pids(struct thaw_fill *fill) {
    tasks_close(fill->tasks, fill->task_count);
    fill->tasks = NULL;
    fill->task_count = 0;
}

/* With the lock held, once it is known what is written to; `err` is what came of that. */
static int start(struct thaw_fill *fill, const int *nodes, size_t node_count, int err) {
    if (err < 0)
        return err;
    fill_start_readers(fill);
    err = fill_start_fillers(fill, nodes, node_count);
    fill->started = err == 0;
    hurry(fill);
    if (err < 0) {
        drop_pids(fill); /* no filler has seen them */
        fill_fail_locked(fill, -err, STAGE_OWN, NOWHERE);
    }
    return err;
}

/* With the lock held: what came of it so far. */
static int outcome(const struct thaw_fill *fill) {
    return fill->failure.stage == STAGE_GPU ? -EIO : -fill->failure.error;
}

static int may_start(const struct thaw_fill *fill) {
    if (fill->started)
        return -EALREADY;
    return outcome(fill);
}

int thaw_fill_start(struct thaw_fill *fill, const int *pids, size_t pid_count, const int *nodes,
                    size_t node_count) {
    int err;

    pthread_mutex_lock(&fill->lock);
    err = may_start(fill);
    if (err == 0)
        err = start(fill, nodes, node_count, take_pids(fill, pids, pid_count));
    pthread_mutex_unlock(&fill->lock);
    return err;
}

int thaw_fill_start_device(struct thaw_fill *fill, const uint64_t *sizes, size_t count,
                           uint32_t gpus) {
    int err;

    pthread_mutex_lock(&fill->lock);
    err = may_start(fill);
    if (err == 0)
        err = start(fill, NULL, 0, delivery_open(fill, sizes, count, gpus));
    pthread_mutex_unlock(&fill->lock);
    return err;
}

int thaw_fill_region(struct thaw_fill *fill, size_t number, struct thaw_region *region) {
    int err = 0;

    pthread_mutex_lock(&fill->lock);
    if (outcome(fill) == 0)
        err = delivery_add(fill, number, region);
    pthread_mutex_unlock(&fill->lock);
    return err;
}

static struct timespec from_now(int milliseconds) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_sec += milliseconds / 1000;
    time.tv_nsec += milliseconds % 1000 * 1000000L;
    if (time.tv_nsec >= 1000000000L) {
        time.tv_sec++;
        time.tv_nsec -= 1000000000L;
    }
    return time;
}

/* Also after a failure not before the last filler is gone: no task is touched from then on. */
static bool is_over(const struct thaw_fill *fill) {
    return fill->fillers == 0 && (fill->started || fill->failure.error != 0);
}

int thaw_fill_wait(struct thaw_fill *fill, int milliseconds) {
    struct timespec end = from_now(milliseconds < 0 ? 0 : milliseconds);
    int err = 0;

    pthread_mutex_lock(&fill->lock);
    while (!is_over(fill) && err == 0)
        err = milliseconds < 0 ? pthread_cond_wait(&fill->ended, &fill->lock)
                               : pthread_cond_timedwait(&fill->ended, &fill->lock, &end);
    err = is_over(fill) ? outcome(fill) : -ETIMEDOUT;
    pthread_mutex_unlock(&fill->lock);
    return err;
}

static void fail(struct thaw_fill *fill, struct thaw_failure failure) {
    if (fill->failure.error == 0 && !(fill->started && fill->left == 0))
        fill->failure = failure;
    fill->stop = true;
    pthread_cond_broadcast(&fill->work);
    pthread_cond_broadcast(&fill->room);
    pthread_cond_broadcast(&fill->given);
    pthread_cond_broadcast(&fill->ended);
}

void fill_fail_locked(struct thaw_fill *fill, int error, int stage, uint64_t extent) {
    fail(fill, (struct thaw_failure){.error = error, .stage = stage, .place = extent});
}

/* What a call of device.h has returned: the driver's answer, or -errno. */
void fill_fail_gpu(struct thaw_fill *fill, int result, const char *call, uint64_t extent) {
    struct thaw_failure failure = {.error = result, .stage = STAGE_GPU, .place = extent,
                                   .call = call};

    if (result < 0)
        failure = (struct thaw_failure){.error = -result, .stage = STAGE_OWN, .place = extent};
    pthread_mutex_lock(&fill->lock);
    fail(fill, failure);
    pthread_mutex_unlock(&fill->lock);
}

void fill_fail(struct thaw_fill *fill, int error, int stage, uint64_t extent) {
    pthread_mutex_lock(&fill->lock);
    fill_fail_locked(fill, error, stage, extent);
    pthread_mutex_unlock(&fill->lock);
}

void thaw_fill_cancel(struct thaw_fill *fill) {
    fill_fail(fill, ECANCELED, STAGE_OWN, NOWHERE);
}

void thaw_fill_progress(struct thaw_fill *fill, struct thaw_progress *progress) {
    const struct counters *counters = &fill->counters;

    progress->total = atomic_load_explicit(&counters->total, memory_order_relaxed);
    progress->direct = atomic_load_explicit(&counters->direct, memory_order_relaxed);
    progress->cached = atomic_load_explicit(&counters->cached, memory_order_relaxed);
    progress->buffered = atomic_load_explicit(&counters->buffered, memory_order_relaxed);
    progress->peak = atomic_load_explicit(&counters->peak, memory_order_relaxed);
    progress->done = atomic_load_explicit(&counters->done, memory_order_relaxed);
    progress->zero = atomic_load_explicit(&counters->zero, memory_order_relaxed);
}

void thaw_fill_failure(struct thaw_fill *fill, struct thaw_failure *failure) {
    pthread_mutex_lock(&fill->lock);
    *failure = fill->failure;
    pthread_mutex_unlock(&fill->lock);
}

void thaw_fill_close(struct thaw_fill *fill) {
    if (fill == NULL)
        return;
    thaw_fill_cancel(fill);
    fill_join(fill);
    for (size_t number = 0; number < fill->blob_count; number++)
        blob_close_direct(&fill->blobs[number]);
    delivery_close(fill);
    pool_close(&fill->pool);
    free(fill->batches);
    free(fill->blobs);
    drop_pids(fill);
    pthread_cond_destroy(&fill->ended);
    pthread_cond_destroy(&fill->given);
    pthread_cond_destroy(&fill->room);
    pthread_cond_destroy(&fill->work);
    pthread_mutex_destroy(&fill->lock);
    free(fill);
}
