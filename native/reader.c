/*
 * Readers: threads that read ahead into the pool: what the page cache does not hold, and as long as
 * the tasks do not exist yet also what it does hold, to verify it and to have it in huge pages.
 *
 * There is no io_uring here: preads of whole batches by two to four threads give what a disk has
 * (GiB/s, 1/2/4/8/16 readers: 2.4/2.5/2.5/2.3/2.3 on one virtual disk; on another, in turn with
 * fio --direct=1 --bs=4M, four readers 0.9-1.2 and fio 0.65-0.8 with two or four jobs, where
 * fio's io_uring with 16 reads at once was no faster than its pread).
 */
#include "fill.h"

#include <errno.h>
#include <sys/resource.h>

enum { LAST_TO_RUN = 19 };

/* The extent whose data was to come next when a read stopped at `offset`. */
static uint64_t extent_at(const struct thaw_fill *fill, const struct batch *batch,
                          uint16_t source, uint64_t offset) {
    for (uint64_t number = batch->first; number < batch->first + batch->count; number++) {
        const struct thaw_extent *extent = &fill->extents[number];

        if (extent->source == source && extent->offset + extent->length > offset)
            return number;
    }
    return batch->first;
}

int fill_read(struct thaw_fill *fill, uint16_t source, bool cold, void *data, uint64_t *offset,
              size_t length, int *error) {
    struct portion portion;
    int err = blob_read(&fill->blobs[source], cold, data, *offset, length, &portion);

    atomic_fetch_add_explicit(&fill->counters.direct, portion.direct, memory_order_relaxed);
    atomic_fetch_add_explicit(&fill->counters.cached, portion.got - portion.direct,
                              memory_order_relaxed);
    *offset += portion.got;
    *error = err < 0 ? -err : ENODATA;
    if (err == 0 && portion.got == length)
        return 0;
    return err < 0 ? STAGE_READ : STAGE_SHORT;
}

static bool read_segment(struct thaw_fill *fill, const struct batch *batch,
                         const struct segment *segment) {
    unsigned char *data = pool_buffer(&fill->pool, batch->buffer) + segment->place;
    uint64_t offset = segment->offset;
    int error;
    int stage = fill_read(fill, segment->source, !batch->warm, data, &offset, segment->length,
                          &error);

    if (stage != 0)
        fill_fail(fill, error, stage, extent_at(fill, batch, segment->source, offset));
    return stage == 0;
}

/* The buffer counts from now on; filler.c takes it off again. */
static void count_buffer(struct counters *counters, uint64_t size) {
    uint64_t before = atomic_fetch_add_explicit(&counters->buffered, size, memory_order_relaxed);
    uint64_t now = before + size;
    uint64_t peak = atomic_load_explicit(&counters->peak, memory_order_relaxed);

    while (now > peak &&
           !atomic_compare_exchange_weak_explicit(&counters->peak, &peak, now,
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

static bool read_batch(struct thaw_fill *fill, const struct batch *batch) {
    const struct thaw_extent *extent = &fill->extents[batch->first];
    struct segment segment;

    count_buffer(&fill->counters, batch->size);
    segment_start(&segment, extent);
    for (uint32_t number = 1; number < batch->count; number++) {
        struct segment before = segment;

        if (!segment_add(&segment, &extent[number]) &&
            (atomic_load_explicit(&fill->stop, memory_order_relaxed) ||
             !read_segment(fill, batch, &before)))
            return false;
    }
    return read_segment(fill, batch, &segment);
}

/* Before the tasks exist nobody waits for us: what is done now need not be done then. */
static bool verify(struct thaw_fill *fill, struct batch *batch) {
    const unsigned char *buffer = pool_buffer(&fill->pool, batch->buffer);
    struct segment segment;

    segment_start(&segment, &fill->extents[batch->first]);
    for (uint64_t number = batch->first; number < batch->first + batch->count; number++) {
        const struct thaw_extent *extent = &fill->extents[number];
        const unsigned char *data;

        segment_add(&segment, extent);
        data = buffer + segment.place + (extent->offset - segment.offset);
        if (thaw_crc32c(0, data, extent->length) != extent->checksum) {
            fill_fail(fill, EBADMSG, STAGE_CHECKSUM, number);
            return false;
        }
    }
    batch->verified = true;
    return true;
}

/* With the lock held. */
static bool may_come(const struct thaw_fill *fill) {
    return fill->unread > 0 || (!fill->hurried && fill->warm.head != NONE);
}

/*
 * The next batch and a buffer for it; NULL at the end. The buffer comes first: a batch that waits
 * for one would be kept from the fillers, which could use it if it is warm.
 */
static struct batch *take(struct thaw_fill *fill) {
    while (!fill->stop && may_come(fill)) {
        struct batch *batch = NULL;

        if (fill->pool.free_count > 0) {
            batch = queue_pop(fill, &fill->cold);
            if (batch == NULL)
                batch = fresh_pop(fill);
            if (batch == NULL && fill->unread == 0)
                batch = queue_pop(fill, &fill->warm);
        }
        if (batch != NULL) {
            buffer_take(fill, batch);
            return batch;
        }
        pthread_cond_wait(&fill->room, &fill->lock);
    }
    return NULL;
}

/* Nobody but the batch's holder looks at it. Without the lock; true if it is in the buffer. */
static bool work_on(struct thaw_fill *fill, struct batch *batch, bool early) {
    if (!batch->cold && !batch->warm && batch_is_cached(fill, batch)) {
        batch->warm = true;
        return false;
    }
    return read_batch(fill, batch) && (!early || verify(fill, batch));
}

/*
 * What is cached is copied because there is time, so with what time others leave: on two processors
 * a restore right after its sandbox was planned in 0.22 s beside it, and is in 0.05. What a disk
 * brings is waited for, and so is the lock. (In Linux a priority is a thread's: setpriority(2),
 * BUGS.)
 */
static bool work_gently_on(struct thaw_fill *fill, struct batch *batch, bool early) {
    int usual = getpriority(PRIO_PROCESS, 0);
    bool ready;

    setpriority(PRIO_PROCESS, 0, LAST_TO_RUN);
    ready = work_on(fill, batch, early);
    setpriority(PRIO_PROCESS, 0, usual);
    return ready;
}

void *reader_main(void *arg) {
    struct worker *worker = arg;
    struct thaw_fill *fill = worker->fill;
    struct batch *batch;

    pthread_mutex_lock(&fill->lock);
    while ((batch = take(fill)) != NULL) {
        bool early = !fill->started, known = batch->warm, ready;

        pthread_mutex_unlock(&fill->lock);
        ready = (early && known ? work_gently_on : work_on)(fill, batch, early);
        pthread_mutex_lock(&fill->lock);
        if (fill->stop)
            break;
        if (!ready)
            buffer_give(fill, batch);
        queue_push(fill, ready ? &fill->ready : &fill->warm, batch);
        if (!known)
            batch_was_read(fill);
        pthread_cond_signal(&fill->work);
    }
    fill->readers--;
    pthread_mutex_unlock(&fill->lock);
    return NULL;
}
