/* Copies and memsets: now, or in a stream. */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <string.h>

/* ---- what is done --------------------------------------------------------------------------- */

/* What is pinned, or no host memory at all: only then a copy may end later. */
static bool pinned(uintptr_t at) {
    bool known;

    lock_tables();
    known = is_reserved(at, 1) || piece_at(at) != NULL;
    unlock_tables();
    return known;
}

/* A side that is device memory has to be within reach; the other is the program's own. */
static bool within(uintptr_t at, size_t size, int device, bool write, bool is_device) {
    if (!is_device && !pinned(at))
        return true;
    return accessible(at, size, device, write);
}

enum { TO_DEVICE = 1, FROM_DEVICE = 2 };

static bool both_within(const struct work *work) {
    return within(work->to, work->size, work->device, true, (work->value & TO_DEVICE) != 0) &&
           within(work->from, work->size, work->device, false, (work->value & FROM_DEVICE) != 0);
}

static int copy(const struct work *work) {
    if (!both_within(work))
        return ILLEGAL_ADDRESS;
    memmove((void *)work->to, (const void *)work->from, work->size);
    return SUCCESS;
}

int set_memory(const struct work *work) {
    if (!accessible(work->to, work->size, work->device, true))
        return ILLEGAL_ADDRESS;
    memset((void *)work->to, (int)work->value, work->size);
    return SUCCESS;
}

/* Sooner said than in the stream: addresses that are wrong already now. */
static int asked(struct context *context, struct work *work, struct stream *stream, bool later) {
    int result;

    if (work->size == 0)
        return SUCCESS;
    work->device = context->device;
    if (work->run == set_memory ? !accessible(work->to, work->size, work->device, true)
                         : !both_within(work))
        return INVALID_VALUE;
    if (!later)
        return run_now(work);
    result = submit(stream, work);
    if (result != SUCCESS || work->run == set_memory || (pinned(work->to) && pinned(work->from)))
        return result;
    return drain_stream(stream);
}

/* ---- copies --------------------------------------------------------------------------------- */

static int copy_one(const char *call, uintptr_t to, uintptr_t from, size_t size, unsigned sides,
                    struct stream *stream, bool later) {
    struct work work = {.run = copy, .to = to, .from = from, .size = size, .value = sides};

    ENTER_CONTEXT_AS(call, context);
    return asked(context, &work, stream, later);
}

#define COPY(name, to_type, from_type, sides)                                                      \
    CALL(name, to_type to, from_type from, size_t size) {                                          \
        return copy_one(__func__, (uintptr_t)to, (uintptr_t)from, size, sides, NULL, false);       \
    }
#define COPY_ASYNC(name, to_type, from_type, sides)                                                \
    CALL(name, to_type to, from_type from, size_t size, struct stream *stream) {                   \
        return copy_one(__func__, (uintptr_t)to, (uintptr_t)from, size, sides, stream, true);      \
    }

COPY(cuMemcpyHtoD_v2, uintptr_t, const void *, TO_DEVICE)
COPY(cuMemcpyHtoD_v2_ptds, uintptr_t, const void *, TO_DEVICE)
COPY(cuMemcpyDtoH_v2, void *, uintptr_t, FROM_DEVICE)
COPY(cuMemcpyDtoH_v2_ptds, void *, uintptr_t, FROM_DEVICE)
COPY_ASYNC(cuMemcpyHtoDAsync_v2, uintptr_t, const void *, TO_DEVICE)
COPY_ASYNC(cuMemcpyDtoHAsync_v2, void *, uintptr_t, FROM_DEVICE)
COPY_ASYNC(cuMemcpyDtoDAsync_v2, uintptr_t, uintptr_t, TO_DEVICE | FROM_DEVICE)
COPY_ASYNC(cuMemcpyDtoDAsync_v2_ptsz, uintptr_t, uintptr_t, TO_DEVICE | FROM_DEVICE)

/* ---- memsets -------------------------------------------------------------------------------- */

static int set_bytes(const char *call, uintptr_t to, unsigned char value, size_t size,
                     struct stream *stream, bool later) {
    struct work work = {.run = set_memory, .to = to, .size = size, .value = value};

    ENTER_CONTEXT_AS(call, context);
    return asked(context, &work, stream, later);
}

CALL(cuMemsetD8_v2, uintptr_t to, unsigned char value, size_t count) {
    return set_bytes(__func__, to, value, count, NULL, false);
}

CALL(cuMemsetD8_v2_ptds, uintptr_t to, unsigned char value, size_t count) {
    return set_bytes(__func__, to, value, count, NULL, false);
}

CALL(cuMemsetD8Async, uintptr_t to, unsigned char value, size_t count, struct stream *stream) {
    return set_bytes(__func__, to, value, count, stream, true);
}
