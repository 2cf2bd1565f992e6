/*
 * Fillers: threads that verify extents and write them into the tasks.
 *
 * All of it goes through blocks that stay in the L2 cache of a processor (1 MiB and more on the
 * servers of these years): what is read, or was read ahead, comes from memory once and from the
 * cache for the checksum and the copy. Measured with two threads of an older server, page cache
 * warm, in GiB/s for tasks with 4 KiB pages / huge pages: blocks of 64 KiB 2.4/4.0, 256 KiB
 * 2.4/4.1, 1 MiB 2.4/3.9; mmap instead of pread, populated or not, 2.3/3.8, and it would raise
 * SIGBUS when a file shrinks and write what it has not verified when a file changes.
 *
 * On a server of 2023 (GiB/s, 1/4/8/16 threads):
 *                                       4 KiB pages              huge pages
 *   memcpy into fresh memory            2.0/ 7.3/13.6/22.3       5.1/14.9/26.0/36.3
 *   process_vm_writev alone             2.8/10.6/20.6/32.3       4.5/14.6/23.5/33.7
 *   filler, from the page cache         2.3/ 8.6/16.4/26.7       3.0/ 9.5/19.5/27.7
 *   filler, read ahead and verified     2.8/10.3/19.2/28.6       5.1/16.6/26.2/39.9
 * That is why readers copy even what is cached, as long as there is time.
 */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <sys/mman.h>

/* What one filler works with. */
struct bench {
    struct thaw_fill *fill;
    unsigned char *block; /* BLOCK bytes */
};

static void count(_Atomic uint64_t *counter, uint64_t bytes) {
    atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed);
}

bool filler_read(struct thaw_fill *fill, const struct batch *batch, uint64_t number, uint64_t at,
                 unsigned char *data, size_t length) {
    const struct thaw_extent *extent = &fill->extents[number];
    uint64_t offset = extent->offset + at;
    int error;
    int stage = fill_read(fill, extent->source, !batch->warm, data, &offset, length, &error);

    if (stage != 0)
        fill_fail(fill, error, stage, number);
    return stage == 0;
}

static bool write_block(struct thaw_fill *fill, uint64_t number, uint64_t at,
                        const unsigned char *data, size_t length) {
    const struct thaw_extent *extent = &fill->extents[number];
    uint64_t zero = 0;
    int err;

    if (fill->tasks == NULL)
        return true;
    /* Reading may have taken seconds, and whoever cancelled waits to have the task for itself. */
    if (atomic_load_explicit(&fill->stop, memory_order_relaxed))
        return false;
    if ((extent->flags & 1) != 0)
        err = task_write_sparse(&fill->tasks[extent->task], extent->address + at, data, length,
                                &zero);
    else
        err = task_write(&fill->tasks[extent->task], extent->address + at, data, length);
    if (err < 0)
        fill_fail(fill, -err, STAGE_TASK, number);
    count(&fill->counters.zero, zero);
    return err == 0;
}

/*
 * Verified when it is written already: a difference ends the whole restore. That nothing runs
 * before is not our doing: the caller refuses CRIU's action-script, and CRIU then kills the tasks
 * instead of letting them go on. `data` is NULL if it is to be read.
 */
static bool fill_extent(struct bench *bench, const struct batch *batch, uint64_t number,
                        const unsigned char *data) {
    struct thaw_fill *fill = bench->fill;
    const struct thaw_extent *extent = &fill->extents[number];
    uint32_t checksum = 0;

    for (size_t at = 0; at < extent->length; at += BLOCK) {
        size_t length = extent->length - at < BLOCK ? extent->length - at : BLOCK;
        const unsigned char *block = data == NULL ? bench->block : data + at;

        if (atomic_load_explicit(&fill->stop, memory_order_relaxed) ||
            (data == NULL && !filler_read(fill, batch, number, at, bench->block, length)))
            return false;
        if (!batch->verified)
            checksum = thaw_crc32c(checksum, block, length);
        if (!write_block(fill, number, at, block, length))
            return false;
    }
    if (!batch->verified && checksum != extent->checksum) {
        fill_fail(fill, EBADMSG, STAGE_CHECKSUM, number);
        return false;
    }
    count(&fill->counters.done, extent->length);
    return true;
}

static bool fill_batch(struct bench *bench, const struct batch *batch) {
    const struct thaw_fill *fill = bench->fill;
    const unsigned char *buffer = NULL;
    struct segment segment;

    if (batch->buffer != NONE)
        buffer = pool_buffer(&fill->pool, batch->buffer);
    segment_start(&segment, &fill->extents[batch->first]);
    for (uint64_t number = batch->first; number < batch->first + batch->count; number++) {
        const struct thaw_extent *extent = &fill->extents[number];
        const unsigned char *data = NULL;

        segment_add(&segment, extent);
        if (buffer != NULL)
            data = buffer + segment.place + (extent->offset - segment.offset);
        if (!fill_extent(bench, batch, number, data))
            return false;
    }
    return true;
}

/*
 * A fresh batch, if it is for a filler: warm, or there is no reader who would take it. With the
 * lock held, which is given up meanwhile.
 */
static bool look_at(struct thaw_fill *fill, struct batch *batch) {
    bool cached;

    pthread_mutex_unlock(&fill->lock);
    cached = batch_is_cached(fill, batch);
    pthread_mutex_lock(&fill->lock);
    batch->cold = !cached;
    batch->warm = cached;
    if (!cached && fill->readers > 0) {
        queue_push(fill, &fill->cold, batch);
        pthread_cond_signal(&fill->room);
        return false;
    }
    batch_was_read(fill);
    return true;
}

struct batch *filler_take(struct thaw_fill *fill, bool wait) {
    while (!fill->stop && fill->left > 0) {
        struct batch *batch = queue_pop(fill, &fill->ready);

        if (batch != NULL || (batch = queue_pop(fill, &fill->warm)) != NULL)
            return batch;
        if ((batch = fresh_pop(fill)) == NULL && !wait)
            return NULL;
        if (batch == NULL)
            pthread_cond_wait(&fill->work, &fill->lock);
        else if (look_at(fill, batch))
            return batch;
    }
    return NULL;
}

/* Buffers that no reader will need again go back to the kernel at once: not what a GPU knows. */
void filler_release(struct thaw_fill *fill, struct batch *batch) {
    bool spare;

    pthread_mutex_lock(&fill->lock);
    spare = fill->pool.free_count >= fill->unread;
    pthread_mutex_unlock(&fill->lock);
    if (spare && fill->targets == NULL)
        madvise(pool_buffer(&fill->pool, batch->buffer), BUFFER, MADV_DONTNEED);
    atomic_fetch_sub_explicit(&fill->counters.buffered, batch->size, memory_order_relaxed);
    pthread_mutex_lock(&fill->lock);
    buffer_give(fill, batch);
    pthread_mutex_unlock(&fill->lock);
}

/*
 * A batch is done, with the lock held. Of zero pages nothing is written, and what was written last
 * may have been long ago: before all is reported as done, every task must still be there.
 */
void filler_finish(struct thaw_fill *fill) {
    uint32_t gone;
    uint64_t extent = 0;

    if (fill->left == 1 && fill->tasks != NULL &&
        (gone = tasks_find_gone(fill->tasks, fill->task_count)) < fill->task_count) {
        while (extent < fill->count && fill->extents[extent].task != gone)
            extent++;
        fill_fail_locked(fill, ESRCH, STAGE_TASK, extent < fill->count ? extent : NOWHERE);
        return;
    }
    if (--fill->left == 0)
        pthread_cond_broadcast(&fill->work);
}

static void work(struct bench *bench) {
    struct thaw_fill *fill = bench->fill;
    struct batch *batch;

    pthread_mutex_lock(&fill->lock);
    while ((batch = filler_take(fill, true)) != NULL) {
        bool fine;

        pthread_mutex_unlock(&fill->lock);
        fine = fill_batch(bench, batch);
        if (batch->buffer != NONE)
            filler_release(fill, batch);
        pthread_mutex_lock(&fill->lock);
        if (fine)
            filler_finish(fill);
    }
    pthread_mutex_unlock(&fill->lock);
}

void filler_end(struct thaw_fill *fill) {
    pthread_mutex_lock(&fill->lock);
    fill->fillers--;
    pthread_cond_broadcast(&fill->ended);
    pthread_mutex_unlock(&fill->lock);
}

void *filler_main(void *arg) {
    struct worker *worker = arg;
    struct thaw_fill *fill = worker->fill;
    struct bench bench = {fill, NULL};

    place_enter(&worker->place);
    bench.block = memory_map(BLOCK);
    if (bench.block == NULL)
        fill_fail(fill, ENOMEM, STAGE_OWN, NOWHERE);
    else
        work(&bench);
    if (bench.block != NULL)
        munmap(bench.block, BLOCK);
    filler_end(fill);
    return NULL;
}
