/* Batches: a few MiB of neighbouring extents, read with as few and as large reads as possible. */
#include "fill.h"

#include <stdlib.h>

/* To read over a gap of this size costs less than another read (on a disk of 1 GiB/s, 60 µs). */
#define GAP ((uint64_t)64 << 10)

static void restart(struct segment *segment, const struct thaw_extent *extent, uint32_t place) {
    segment->source = extent->source;
    segment->offset = extent->offset;
    segment->length = extent->length;
    segment->place = place;
}

void segment_start(struct segment *segment, const struct thaw_extent *extent) {
    restart(segment, extent, 0);
}

bool segment_add(struct segment *segment, const struct thaw_extent *extent) {
    uint64_t end = segment->offset + segment->length;
    uint64_t reach = extent->offset + extent->length;

    if (extent->source != segment->source || extent->offset < segment->offset ||
        extent->offset > end + GAP || reach - segment->offset > BUFFER) {
        restart(segment, extent, segment->place + segment->length);
        return false;
    }
    if (reach > end)
        segment->length = (uint32_t)(reach - segment->offset);
    return true;
}

static size_t bytes_of(const struct segment *last) {
    return (size_t)last->place + last->length;
}

/* Fills one batch from `extents`; they are one at least. Several may have the same data. */
static void cut_one(struct batch *batch, const struct thaw_extent *extents, size_t count) {
    struct segment last;
    uint32_t taken = 1;
    uint64_t bytes = extents->length;

    segment_start(&last, extents);
    for (; taken < count; taken++) {
        struct segment longer = last;

        segment_add(&longer, &extents[taken]);
        bytes += extents[taken].length;
        if (bytes_of(&longer) > BUFFER || bytes > BUFFER)
            break;
        last = longer;
    }
    batch->count = taken;
    batch->size = (uint32_t)bytes_of(&last);
    batch->next = NONE;
    batch->buffer = NONE;
    batch->cold = batch->warm = batch->verified = false;
}

struct batch *batches_cut(const struct thaw_extent *extents, size_t count, uint32_t *made) {
    struct batch *batches = malloc((count + 1) * sizeof(*batches)), *fitting;
    uint32_t number = 0;

    if (batches == NULL)
        return NULL;
    for (size_t first = 0; first < count; first += batches[number++].count) {
        batches[number].first = first;
        cut_one(&batches[number], extents + first, count - first);
    }
    *made = number;
    fitting = realloc(batches, ((size_t)number + 1) * sizeof(*batches));
    return fitting != NULL ? fitting : batches;
}

/*
 * A few missing pages are read in on the way: that is still cheaper than reading all of it from a
 * disk. With direct I/O alone the answer would make no difference, so nothing is asked.
 */
bool batch_is_cached(const struct thaw_fill *fill, const struct batch *batch) {
    const struct thaw_extent *extent = &fill->extents[batch->first];
    struct segment segment;
    size_t cached = 0;

    if (fill->options.source == DIRECT)
        return false;
    segment_start(&segment, extent);
    for (uint32_t number = 1; number <= batch->count; number++) {
        struct segment before = segment;

        if (number == batch->count || !segment_add(&segment, &extent[number]))
            cached += blob_cached(&fill->blobs[before.source], before.offset, before.length);
    }
    return cached >= batch->size - batch->size / 16;
}
