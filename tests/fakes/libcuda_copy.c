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

enum { TO_DEVICE = 1, FROM_DEVICE = 2, EITHER = 0 };

static int copy(const struct work *work) {
    for (size_t row = 0; row < work->rows; row++) {
        uintptr_t to = work->to + row * work->to_pitch;
        uintptr_t from = work->from + row * work->from_pitch;

        if (!within(to, work->size, work->device, true, (work->value & TO_DEVICE) != 0) ||
            !within(from, work->size, work->device, false, (work->value & FROM_DEVICE) != 0))
            return ILLEGAL_ADDRESS;
        memmove((void *)to, (const void *)from, work->size);
    }
    return SUCCESS;
}

static int set(const struct work *work) {
    for (size_t row = 0; row < work->rows; row++) {
        unsigned char *to = (unsigned char *)work->to + row * work->to_pitch;

        if (!accessible((uintptr_t)to, work->size, work->device, true))
            return ILLEGAL_ADDRESS;
        if (work->unit == 1)
            memset(to, (int)work->value, work->size);
        else
            for (size_t at = 0; at < work->size; at += work->unit)
                memcpy(to + at, &work->value, work->unit);
    }
    return SUCCESS;
}

/* Sooner said than in the stream: addresses that are wrong already now. */
static int asked(struct context *context, struct work *work, struct stream *stream, bool later) {
    bool sane = true;
    int result;

    if (work->size == 0 || work->rows == 0)
        return SUCCESS;
    work->device = context->device;
    for (size_t row = 0; row < work->rows; row++) {
        if (work->run == set)
            sane &= accessible(work->to + row * work->to_pitch, work->size, work->device, true);
        if (work->run == copy)
            sane &= within(work->to + row * work->to_pitch, work->size, work->device, true,
                           (work->value & TO_DEVICE) != 0) &&
                    within(work->from + row * work->from_pitch, work->size, work->device, false,
                           (work->value & FROM_DEVICE) != 0);
    }
    if (!sane)
        return INVALID_VALUE;
    if (!later)
        return run_now(work);
    result = submit(stream, work);
    if (result != SUCCESS || work->run == set || (pinned(work->to) && pinned(work->from)))
        return result;
    return drain_stream(stream);
}

/* ---- copies --------------------------------------------------------------------------------- */

static int copy_one(const char *call, uintptr_t to, uintptr_t from, size_t size, unsigned sides,
                    struct stream *stream, bool later) {
    struct work work = {.run = copy, .to = to, .from = from, .size = size, .rows = 1};

    ENTER_CONTEXT_AS(call, context);
    work.value = sides;
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

COPY(cuMemcpy, uintptr_t, uintptr_t, EITHER)
COPY(cuMemcpy_ptds, uintptr_t, uintptr_t, EITHER)
COPY(cuMemcpyHtoD_v2, uintptr_t, const void *, TO_DEVICE)
COPY(cuMemcpyHtoD_v2_ptds, uintptr_t, const void *, TO_DEVICE)
COPY(cuMemcpyDtoH_v2, void *, uintptr_t, FROM_DEVICE)
COPY(cuMemcpyDtoH_v2_ptds, void *, uintptr_t, FROM_DEVICE)
COPY(cuMemcpyDtoD_v2, uintptr_t, uintptr_t, TO_DEVICE | FROM_DEVICE)
COPY(cuMemcpyDtoD_v2_ptds, uintptr_t, uintptr_t, TO_DEVICE | FROM_DEVICE)
COPY_ASYNC(cuMemcpyAsync, uintptr_t, uintptr_t, EITHER)
COPY_ASYNC(cuMemcpyAsync_ptsz, uintptr_t, uintptr_t, EITHER)
COPY_ASYNC(cuMemcpyHtoDAsync_v2, uintptr_t, const void *, TO_DEVICE)
COPY_ASYNC(cuMemcpyHtoDAsync_v2_ptsz, uintptr_t, const void *, TO_DEVICE)
COPY_ASYNC(cuMemcpyDtoHAsync_v2, void *, uintptr_t, FROM_DEVICE)
COPY_ASYNC(cuMemcpyDtoHAsync_v2_ptsz, void *, uintptr_t, FROM_DEVICE)
COPY_ASYNC(cuMemcpyDtoDAsync_v2, uintptr_t, uintptr_t, TO_DEVICE | FROM_DEVICE)
COPY_ASYNC(cuMemcpyDtoDAsync_v2_ptsz, uintptr_t, uintptr_t, TO_DEVICE | FROM_DEVICE)

static int copy_peer(const char *call, uintptr_t to, struct context *there, uintptr_t from,
                     struct context *here, size_t size, struct stream *stream, bool later) {
    struct work work = {.run = copy, .to = to, .from = from, .size = size, .rows = 1};

    ENTER_CONTEXT_AS(call, context);
    if (!is_context(there) || !is_context(here))
        return INVALID_CONTEXT;
    if (!accessible(to, size, there->device, true) || !accessible(from, size, here->device, false))
        return INVALID_VALUE;
    work.device = context->device;
    return later ? submit(stream, &work) : run_now(&work);
}

#define COPY_PEER(name)                                                                            \
    CALL(name, uintptr_t to, struct context *there, uintptr_t from, struct context *here,          \
         size_t size) {                                                                            \
        return copy_peer(__func__, to, there, from, here, size, NULL, false);                      \
    }
#define COPY_PEER_ASYNC(name)                                                                      \
    CALL(name, uintptr_t to, struct context *there, uintptr_t from, struct context *here,          \
         size_t size, struct stream *stream) {                                                     \
        return copy_peer(__func__, to, there, from, here, size, stream, true);                     \
    }

COPY_PEER(cuMemcpyPeer)
COPY_PEER(cuMemcpyPeer_ptds)
COPY_PEER_ASYNC(cuMemcpyPeerAsync)
COPY_PEER_ASYNC(cuMemcpyPeerAsync_ptsz)

struct copy_2d { /* CUDA_MEMCPY2D; memory types: 1 host, 2 device, 4 either */
    size_t from_x, from_y;
    int from_type;
    const void *from_host;
    uintptr_t from_device;
    void *from_array;
    size_t from_pitch;
    size_t to_x, to_y;
    int to_type;
    void *to_host;
    uintptr_t to_device;
    void *to_array;
    size_t to_pitch;
    size_t width, height;
};

static int copy_rows(const char *call, const struct copy_2d *told, struct stream *stream,
                     bool later) {
    struct work work = {.run = copy};

    ENTER_CONTEXT_AS(call, context);
    if (told->from_type == 3 || told->to_type == 3)
        return NOT_SUPPORTED;
    work.size = told->width;
    work.rows = told->height;
    work.to_pitch = told->to_pitch;
    work.from_pitch = told->from_pitch;
    work.to = (told->to_type == 1 ? (uintptr_t)told->to_host : told->to_device) +
              told->to_y * told->to_pitch + told->to_x;
    work.from = (told->from_type == 1 ? (uintptr_t)told->from_host : told->from_device) +
                told->from_y * told->from_pitch + told->from_x;
    work.value = (told->to_type == 2 ? TO_DEVICE : 0U) | (told->from_type == 2 ? FROM_DEVICE : 0U);
    return asked(context, &work, stream, later);
}

#define COPY_ROWS(name)                                                                            \
    CALL(name, const struct copy_2d *told) {                                                       \
        return copy_rows(__func__, told, NULL, false);                                             \
    }
#define COPY_ROWS_ASYNC(name)                                                                      \
    CALL(name, const struct copy_2d *told, struct stream *stream) {                                \
        return copy_rows(__func__, told, stream, true);                                            \
    }

COPY_ROWS(cuMemcpy2D_v2)
COPY_ROWS(cuMemcpy2D_v2_ptds)
COPY_ROWS(cuMemcpy2DUnaligned_v2)
COPY_ROWS(cuMemcpy2DUnaligned_v2_ptds)
COPY_ROWS_ASYNC(cuMemcpy2DAsync_v2)
COPY_ROWS_ASYNC(cuMemcpy2DAsync_v2_ptsz)

/* CUDA 12.8: attributes say nothing here. */
CALL(cuMemcpyBatchAsync, const uintptr_t *to, const uintptr_t *from, const size_t *sizes,
     size_t count, const void *attributes, const size_t *which, size_t attribute_count,
     size_t *failed, struct stream *stream) {
    (void)attributes, (void)which, (void)attribute_count;
    for (size_t n = 0; n < count; n++) {
        int result = copy_one(__func__, to[n], from[n], sizes[n], EITHER, stream, true);

        if (failed != NULL)
            *failed = n;
        if (result != SUCCESS)
            return result;
    }
    return SUCCESS;
}

/* ---- memsets -------------------------------------------------------------------------------- */

static int set_rows(const char *call, uintptr_t to, size_t pitch, uint64_t value, size_t unit,
                    size_t width, size_t rows, struct stream *stream, bool later) {
    struct work work = {.run = set, .to = to, .to_pitch = pitch, .value = value, .unit = unit};

    ENTER_CONTEXT_AS(call, context);
    if (to % unit != 0)
        return INVALID_VALUE;
    work.size = width * unit;
    work.rows = rows;
    return asked(context, &work, stream, later);
}

#define SET(name, type)                                                                            \
    CALL(name, uintptr_t to, type value, size_t count) {                                           \
        return set_rows(__func__, to, 0, value, sizeof(value), count, 1, NULL, false);             \
    }
#define SET_ASYNC(name, type)                                                                      \
    CALL(name, uintptr_t to, type value, size_t count, struct stream *stream) {                    \
        return set_rows(__func__, to, 0, value, sizeof(value), count, 1, stream, true);            \
    }
#define SET_ROWS(name, type)                                                                       \
    CALL(name, uintptr_t to, size_t pitch, type value, size_t width, size_t rows) {                \
        return set_rows(__func__, to, pitch, value, sizeof(value), width, rows, NULL, false);      \
    }

#define SET_ROWS_ASYNC(name, type)                                                                 \
    CALL(name, uintptr_t to, size_t pitch, type value, size_t width, size_t rows,                  \
         struct stream *stream) {                                                                  \
        return set_rows(__func__, to, pitch, value, sizeof(value), width, rows, stream, true);     \
    }

SET(cuMemsetD8_v2, unsigned char)
SET(cuMemsetD8_v2_ptds, unsigned char)
SET(cuMemsetD16_v2, unsigned short)
SET(cuMemsetD32_v2, unsigned)
SET(cuMemsetD32_v2_ptds, unsigned)
SET_ASYNC(cuMemsetD8Async, unsigned char)
SET_ASYNC(cuMemsetD8Async_ptsz, unsigned char)
SET_ASYNC(cuMemsetD16Async, unsigned short)
SET_ASYNC(cuMemsetD32Async, unsigned)
SET_ASYNC(cuMemsetD32Async_ptsz, unsigned)
SET_ROWS(cuMemsetD2D8_v2, unsigned char)
SET_ROWS(cuMemsetD2D32_v2, unsigned)
SET_ROWS_ASYNC(cuMemsetD2D8Async, unsigned char)
SET_ROWS_ASYNC(cuMemsetD2D32Async, unsigned)
