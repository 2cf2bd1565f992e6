/*
 * Fillers for GPUs: threads that verify extents and have them copied into regions.
 *
 * All data lies in pinned memory before it is copied: in the buffer that a reader has filled, or,
 * for what is in the page cache, in one of the thread's own, where it comes verified (mapped.c). A
 * copy goes on while the thread reads and verifies the next batch; a batch is done, and its buffer
 * free, when its copies have ended. Buffers are pinned when they are first used: reading ahead needs
 * no GPU.
 *
 * Regions may come while others are filled. A thread whose data is for one that is not there yet
 * has it read and verified, and waits: whoever makes regions does so in the order of the extents,
 * and needs nothing of ours.
 */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SLOTS = 3 }; /* batches of a thread that are under way: one copied, one next, one read */

/* A region that is filled. */
struct target {
    uint64_t size;                         /* bytes that it has, or will have */
    _Atomic(struct thaw_region *) region; /* NULL: it is not there yet */
};

/* A batch, and what its copies need until they have ended. */
struct slot {
    struct batch *batch;
    unsigned char *own; /* BUFFER bytes; NULL: not needed so far */
    bool pinned;
    bool failed; /* it is not done when its copies are */
    struct mark mark;
};

/* What one thread works with. */
struct bench {
    struct thaw_fill *fill;
    struct lane lane;
    struct slot slots[SLOTS];
    uint32_t first, used; /* slots, in a circle */
};

/* Bytes that lie together in a region and here. */
struct stretch {
    const struct thaw_region *region;
    uint64_t address;
    const unsigned char *data;
    size_t length;
    uint64_t extent; /* the first one */
};

int delivery_open(struct thaw_fill *fill, const uint64_t *sizes, size_t count, uint32_t gpus) {
    if (count == 0 || count >= NONE)
        return count == 0 && fill->count == 0 ? 0 : -EINVAL;
    for (size_t number = 0; number < fill->count; number++) {
        const struct thaw_extent *extent = &fill->extents[number];

        if (extent->task >= count || extent->length > sizes[extent->task] ||
            extent->address > sizes[extent->task] - extent->length)
            return -EINVAL;
    }
    fill->pinned = calloc((size_t)fill->pool.count + 1, sizeof(*fill->pinned));
    fill->targets = calloc(count, sizeof(*fill->targets));
    if (fill->targets == NULL || fill->pinned == NULL) {
        delivery_close(fill);
        return -ENOMEM;
    }
    fill->target_count = count;
    fill->gpus = gpus > 0 ? gpus : 1;
    for (size_t number = 0; number < count; number++)
        fill->targets[number].size = sizes[number];
    for (size_t number = 0; number < fill->blob_count; number++)
        if (fill->options.source != DIRECT)
            blob_map(&fill->blobs[number]);
    return 0;
}

int delivery_add(struct thaw_fill *fill, size_t number, struct thaw_region *region) {
    struct target *target;

    if (number >= fill->target_count)
        return -EINVAL;
    target = &fill->targets[number];
    if (region->size != target->size || target->region != NULL ||
        (fill->device != NULL && region->device != fill->device))
        return -EINVAL;
    if (fill->device == NULL) {
        fill->device = region->device;
        fill->gpu = region->gpu;
    }
    atomic_store_explicit(&target->region, region, memory_order_release);
    pthread_cond_broadcast(&fill->given);
    return 0;
}

void delivery_close(struct thaw_fill *fill) {
    for (uint32_t buffer = 0; fill->pinned != NULL && buffer < fill->pool.count; buffer++)
        if (fill->pinned[buffer])
            device_unpin(fill->device, fill->gpu, pool_buffer(&fill->pool, buffer));
    for (size_t number = 0; number < fill->blob_count; number++)
        blob_unmap(&fill->blobs[number]);
    free(fill->pinned);
    free(fill->targets);
    fill->pinned = NULL;
    fill->targets = NULL;
    fill->target_count = 0;
    fill->device = NULL;
}

/* Where the data of the slot's batch is, or will be; NULL: there is no memory for it. */
static unsigned char *data_of(struct bench *bench, struct slot *slot) {
    struct thaw_fill *fill = bench->fill;
    uint32_t buffer = slot->batch->buffer;

    if (buffer != NONE) {
        unsigned char *data = pool_buffer(&fill->pool, buffer);

        if (!fill->pinned[buffer]) {
            fill->pinned[buffer] = device_pin(fill->device, fill->gpu, data, BUFFER);
            bench->lane.entered = 0;
        }
        return data;
    }
    if (slot->own == NULL) {
        slot->own = memory_map(BUFFER);
        if (slot->own == NULL)
            return NULL;
        madvise(slot->own, BUFFER, MADV_HUGEPAGE);
        slot->pinned = device_pin(fill->device, fill->gpu, slot->own, BUFFER);
        bench->lane.entered = 0;
    }
    return slot->own;
}

/* A piece of an extent to `data`, and on with its checksum. */
static bool fetch(struct thaw_fill *fill, const struct batch *batch, uint64_t number, uint64_t at,
                  unsigned char *data, size_t length, uint32_t *checksum) {
    const struct thaw_extent *extent = &fill->extents[number];
    struct blob *blob = &fill->blobs[extent->source];

    if (batch->warm && blob_is_near(blob) &&
        blob_copy(blob, extent->offset + at, data, length, checksum)) {
        atomic_fetch_add_explicit(&fill->counters.cached, length, memory_order_relaxed);
        return true;
    }
    if (!filler_read(fill, batch, number, at, data, length))
        return false;
    *checksum = thaw_crc32c(*checksum, data, length);
    return true;
}

/* Reads the extent to `data`, if it is not there yet, and verifies it. */
static bool have(struct thaw_fill *fill, const struct batch *batch, uint64_t number,
                 unsigned char *data) {
    const struct thaw_extent *extent = &fill->extents[number];
    uint32_t checksum = 0;

    if (batch->verified)
        return !atomic_load_explicit(&fill->stop, memory_order_relaxed);
    for (size_t at = 0; at < extent->length; at += BLOCK) {
        size_t length = extent->length - at < BLOCK ? extent->length - at : BLOCK;

        if (atomic_load_explicit(&fill->stop, memory_order_relaxed))
            return false;
        if (batch->buffer != NONE)
            checksum = thaw_crc32c(checksum, data + at, length);
        else if (!fetch(fill, batch, number, at, data + at, length, &checksum))
            return false;
    }
    if (checksum != extent->checksum) {
        fill_fail(fill, EBADMSG, STAGE_CHECKSUM, number);
        return false;
    }
    return true;
}

static bool copy(struct bench *bench, const struct stretch *stretch) {
    int err;

    if (stretch->length == 0)
        return true;
    err = lane_in(&bench->lane, stretch->region, stretch->address, stretch->data, stretch->length);
    if (err != 0)
        fill_fail_gpu(bench->fill, err, bench->lane.call, stretch->extent);
    return err == 0;
}

static uint64_t bytes_of(const struct thaw_fill *fill, const struct batch *batch) {
    uint64_t bytes = 0;

    for (uint64_t number = batch->first; number < batch->first + batch->count; number++)
        bytes += fill->extents[number].length;
    return bytes;
}

/* Waits for the copies of the oldest batch. */
static void retire(struct bench *bench) {
    struct thaw_fill *fill = bench->fill;
    struct slot *slot = &bench->slots[bench->first];
    int err = lane_wait(&bench->lane, &slot->mark);

    bench->first = (bench->first + 1) % SLOTS;
    bench->used--;
    if (err != 0)
        fill_fail_gpu(fill, err, bench->lane.call, slot->batch->first);
    if (err == 0 && !slot->failed)
        atomic_fetch_add_explicit(&fill->counters.done, bytes_of(fill, slot->batch),
                                  memory_order_relaxed);
    if (slot->batch->buffer != NONE)
        filler_release(fill, slot->batch);
    if (err == 0 && !slot->failed) {
        pthread_mutex_lock(&fill->lock);
        filler_finish(fill);
        pthread_mutex_unlock(&fill->lock);
    }
}

/*
 * The region that an extent is for, once it is there; NULL: it will never be. Whoever has to wait
 * for it has the time to wait for copies, too: readers may need their buffers.
 */
static const struct thaw_region *region_of(struct bench *bench, uint32_t number) {
    struct thaw_fill *fill = bench->fill;
    struct target *target = &fill->targets[number];
    struct thaw_region *region = atomic_load_explicit(&target->region, memory_order_acquire);

    if (region != NULL)
        return region;
    while (bench->used > 1) /* the last slot is the one that is worked on */
        retire(bench);
    pthread_mutex_lock(&fill->lock);
    while (!fill->stop && target->region == NULL)
        pthread_cond_wait(&fill->given, &fill->lock);
    region = fill->stop ? NULL : target->region;
    pthread_mutex_unlock(&fill->lock);
    return region;
}

/* Goes on with a stretch, or has it copied and begins the next one: many small copies are slow. */
static bool copy_also(struct bench *bench, struct stretch *stretch, uint64_t number,
                      const unsigned char *data) {
    const struct thaw_extent *extent = &bench->fill->extents[number];
    const struct thaw_region *region = region_of(bench, extent->task);

    if (region == NULL)
        return false;
    if (stretch->length > 0 && stretch->region == region &&
        stretch->address + stretch->length == extent->address &&
        stretch->data + stretch->length == data) {
        stretch->length += extent->length;
        return true;
    }
    if (!copy(bench, stretch))
        return false;
    *stretch = (struct stretch){region, extent->address, data, extent->length, number};
    return true;
}

static bool copy_batch(struct bench *bench, const struct batch *batch, unsigned char *data) {
    const struct thaw_fill *fill = bench->fill;
    struct stretch stretch = {.length = 0};
    struct segment segment;
    size_t read = 0; /* bytes of extents before, where there are no gaps between them */

    segment_start(&segment, &fill->extents[batch->first]);
    for (uint64_t number = batch->first; number < batch->first + batch->count; number++) {
        const struct thaw_extent *extent = &fill->extents[number];
        unsigned char *place = data + read;

        segment_add(&segment, extent);
        if (batch->buffer != NONE)
            place = data + segment.place + (extent->offset - segment.offset);
        if (!have(bench->fill, batch, number, place) ||
            !copy_also(bench, &stretch, number, place))
            return false;
        read += extent->length;
    }
    return copy(bench, &stretch);
}

/* Begins the copies of a batch. Also after a failure, its slot is in use until it is retired. */
static void deliver(struct bench *bench, struct batch *batch) {
    struct thaw_fill *fill = bench->fill;
    struct slot *slot = &bench->slots[(bench->first + bench->used++) % SLOTS];
    unsigned char *data;
    int err;

    slot->batch = batch;
    data = data_of(bench, slot);
    if (data == NULL)
        fill_fail(fill, ENOMEM, STAGE_OWN, batch->first);
    slot->failed = data == NULL || !copy_batch(bench, batch, data);
    err = lane_mark(&bench->lane, &slot->mark);
    if (err != 0) {
        slot->failed = true;
        fill_fail_gpu(fill, err, bench->lane.call, batch->first);
    }
}

/*
 * No thread waits for work while it has copies under way: their buffers are what readers may wait
 * for, to make that work. Without any region there is no GPU to pin memory for.
 */
static void work(struct bench *bench) {
    struct thaw_fill *fill = bench->fill;

    pthread_mutex_lock(&fill->lock);
    while (!fill->stop && fill->device == NULL)
        pthread_cond_wait(&fill->given, &fill->lock);
    pthread_mutex_unlock(&fill->lock);
    for (;;) {
        bool wait = bench->used == 0;
        struct batch *batch;

        pthread_mutex_lock(&fill->lock);
        batch = filler_take(fill, wait);
        pthread_mutex_unlock(&fill->lock);
        if (batch == NULL && wait)
            return;
        if (batch == NULL || bench->used == SLOTS)
            retire(bench);
        if (batch != NULL)
            deliver(bench, batch);
    }
}

static void clear(struct bench *bench) {
    struct thaw_fill *fill = bench->fill;

    lane_close(&bench->lane);
    for (int number = 0; number < SLOTS; number++) {
        struct slot *slot = &bench->slots[number];

        mark_drop(fill->device, &slot->mark);
        if (slot->pinned)
            device_unpin(fill->device, fill->gpu, slot->own);
        if (slot->own != NULL)
            munmap(slot->own, BUFFER);
    }
}

void *deliverer_main(void *arg) {
    struct worker *worker = arg;
    struct bench *bench = calloc(1, sizeof(*bench));

    place_enter(&worker->place);
    if (bench == NULL) {
        fill_fail(worker->fill, ENOMEM, STAGE_OWN, NOWHERE);
    } else {
        bench->fill = worker->fill;
        work(bench);
        clear(bench);
    }
    free(bench);
    filler_end(worker->fill);
    return NULL;
}
