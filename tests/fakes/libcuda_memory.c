/*
 * Memory with addresses of its own: cuMemAlloc and the like, pools, pinned host memory; and the
 * questions about any memory. Device memory lies in the process's own, at the device's address.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define GIB ((size_t)1 << 30)

static pthread_mutex_t tables = PTHREAD_MUTEX_INITIALIZER;
static struct piece *pieces;
static unsigned long long last_id;
static size_t used[DEVICES];

void lock_tables(void) {
    pthread_mutex_lock(&tables);
}

void unlock_tables(void) {
    pthread_mutex_unlock(&tables);
}

/* ---- how much there is ---------------------------------------------------------------------- */

/* Bytes that each device has for a process: FOLDER/memory or THAW_FAKE_MEMORY; 80 GiB. */
static size_t total(void) {
    const char *variable = getenv("THAW_FAKE_MEMORY");
    char text[64];

    if (content(world(0, "memory"), text, sizeof(text)))
        variable = text;
    return variable != NULL ? (size_t)strtoull(variable, NULL, 10) : 80 * GIB;
}

bool charge(int device, size_t size) {
    size_t limit = total();
    bool fits;

    lock_tables();
    fits = used[device] <= limit && size <= limit - used[device];
    if (fits)
        used[device] += size;
    unlock_tables();
    return fits;
}

void discharge(int device, size_t size) {
    used[device] -= size;
}

/* For tests: KiB of a device that this process holds by itself, what it imported aside. */
CALL(fakeUsed, int device) {
    return (int)(used[device] / 1024);
}

CALL(cuMemGetInfo_v2, size_t *left, size_t *all) {
    size_t limit = total();

    ENTER_CONTEXT(context);
    *left = limit - used[context->device];
    *all = limit;
    return SUCCESS;
}

/* ---- the table ------------------------------------------------------------------------------ */

static size_t pages(size_t size) {
    return (size + 4095) / 4096 * 4096;
}

struct piece *piece_at(uintptr_t at) {
    for (struct piece *piece = pieces; piece != NULL; piece = piece->next)
        if (piece->at <= at && at < piece->at + piece->size)
            return piece;
    return NULL;
}

static bool on_device(enum kind kind) {
    return kind == LINEAR || kind == POOLED || kind == MANAGED;
}

static void add(struct piece *piece, struct context *context, enum kind kind) {
    piece->kind = kind;
    piece->device = context->device;
    piece->context = context;
    lock_tables();
    piece->id = ++last_id;
    piece->next = pieces;
    pieces = piece;
    unlock_tables();
}

static int allocate(struct context *context, uintptr_t *at, size_t size, enum kind kind) {
    struct piece *piece;
    void *mapped;

    if (size == 0)
        return INVALID_VALUE;
    if (size > SIZE_MAX / 2 || (on_device(kind) && !charge(context->device, pages(size))))
        return OUT_OF_MEMORY;
    piece = calloc(1, sizeof(*piece));
    mapped = mmap(NULL, pages(size), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (piece == NULL || mapped == MAP_FAILED)
        abort();
    piece->at = *at = (uintptr_t)mapped;
    piece->size = size;
    piece->mapped = pages(size);
    add(piece, context, kind);
    return SUCCESS;
}

/* Takes one out of the table that begins there and is of one of these kinds (bits). */
static struct piece *take(uintptr_t at, unsigned kinds) {
    struct piece **place = &pieces, *found = NULL;

    lock_tables();
    while (*place != NULL && (*place)->at != at)
        place = &(*place)->next;
    if (*place != NULL && (kinds >> (*place)->kind & 1) != 0) {
        found = *place;
        *place = found->next;
        if (on_device(found->kind))
            discharge(found->device, found->mapped);
    }
    unlock_tables();
    return found;
}

static int drop(struct piece *piece) {
    if (piece == NULL)
        return INVALID_VALUE;
    if (piece->mapped > 0)
        munmap((void *)piece->at, piece->mapped);
    free(piece);
    return SUCCESS;
}

/* A context takes its memory with it. */
void free_all_of(const struct context *context) {
    for (;;) {
        const struct piece *piece;

        lock_tables();
        for (piece = pieces; piece != NULL; piece = piece->next)
            if (piece->context == context && piece->kind != REGISTERED)
                break;
        unlock_tables();
        if (piece == NULL)
            return;
        drop(take(piece->at, ~0U));
    }
}

/* ---- device memory -------------------------------------------------------------------------- */

CALL(cuMemAlloc_v2, uintptr_t *at, size_t size) {
    ENTER_CONTEXT(context);
    return capture_forbids(NULL) ? CAPTURE_UNSUPPORTED : allocate(context, at, size, LINEAR);
}

CALL(cuMemAllocPitch_v2, uintptr_t *at, size_t *pitch, size_t width, size_t height,
     unsigned element) {
    ENTER_CONTEXT(context);
    if ((element != 4 && element != 8 && element != 16) || width == 0)
        return INVALID_VALUE;
    *pitch = (width + 511) / 512 * 512;
    return allocate(context, at, *pitch * height, LINEAR);
}

CALL(cuMemAllocManaged, uintptr_t *at, size_t size, unsigned flags) {
    ENTER_CONTEXT(context);
    if (flags != 1 && flags != 2)
        return INVALID_VALUE;
    return allocate(context, at, size, MANAGED);
}

CALL(cuMemFree_v2, uintptr_t at) {
    ENTER_CONTEXT(context);
    (void)context;
    if (at == 0)
        return SUCCESS;
    if (capture_forbids(NULL))
        return CAPTURE_UNSUPPORTED;
    drain_context(NULL);
    return drop(take(at, 1U << LINEAR | 1U << POOLED | 1U << MANAGED));
}

/* ---- pools ---------------------------------------------------------------------------------- */

static int alloc_async(const char *call, uintptr_t *at, size_t size, struct stream *stream) {
    ENTER_CONTEXT_AS(call, context);
    (void)stream;
    return allocate(context, at, size, POOLED);
}

CALL(cuMemAllocAsync, uintptr_t *at, size_t size, struct stream *stream) {
    return alloc_async(__func__, at, size, stream);
}

CALL(cuMemAllocAsync_ptsz, uintptr_t *at, size_t size, struct stream *stream) {
    return alloc_async(__func__, at, size, stream);
}

/* At once, when all before has ended: sooner than the real one, for memory nobody uses any more. */
static int free_async(const char *call, uintptr_t at) {
    ENTER_CONTEXT_AS(call, context);
    (void)context;
    drain_context(NULL);
    return drop(take(at, 1U << LINEAR | 1U << POOLED));
}

CALL(cuMemFreeAsync, uintptr_t at, struct stream *stream) {
    (void)stream;
    return free_async(__func__, at);
}

CALL(cuMemFreeAsync_ptsz, uintptr_t at, struct stream *stream) {
    (void)stream;
    return free_async(__func__, at);
}

/* ---- host memory ---------------------------------------------------------------------------- */

CALL(cuMemHostRegister_v2, void *at, size_t size, unsigned flags) {
    uintptr_t from = (uintptr_t)at;
    bool twice = false;
    struct piece *piece;

    ENTER_CONTEXT(context);
    if (at == NULL || size == 0 || flags > 0xf)
        return INVALID_VALUE;
    lock_tables();
    for (piece = pieces; piece != NULL; piece = piece->next)
        twice |= piece->at < from + size && from < piece->at + piece->size;
    unlock_tables();
    if (twice)
        return HOST_MEMORY_ALREADY_REGISTERED;
    piece = calloc(1, sizeof(*piece));
    if (piece == NULL)
        return OUT_OF_MEMORY;
    piece->at = from;
    piece->size = size;
    add(piece, context, REGISTERED);
    return SUCCESS;
}

CALL(cuMemHostUnregister, void *at) {
    struct piece *piece;

    ENTER_CONTEXT(context);
    (void)context;
    piece = take((uintptr_t)at, 1U << REGISTERED); /* what is still under way is the caller's fault */
    return piece != NULL ? drop(piece) : HOST_MEMORY_NOT_REGISTERED;
}

/* ---- memory of other processes -------------------------------------------------------------- */

/* Counts it up or down; NULL: it is none, or none any more. */
static struct piece *open_again(uintptr_t at, const struct ipc *ipc, int by) {
    struct piece *piece;

    lock_tables();
    for (piece = pieces; piece != NULL; piece = piece->next)
        if (piece->kind == OPENED &&
            (ipc != NULL ? memcmp(&piece->ipc, ipc, sizeof(*ipc)) == 0 : piece->at == at)) {
            piece->opened += by;
            break;
        }
    unlock_tables();
    return piece;
}

/* As the real one answers in the process that the memory is of. What is in it is not shared. */
CALL(cuIpcOpenMemHandle_v2, uintptr_t *at, struct ipc ipc, unsigned flags) {
    struct piece *piece;
    int result;

    ENTER_CONTEXT(context);
    if (flags != 1 || ipc.pid == (uint64_t)getpid())
        return INVALID_CONTEXT;
    piece = open_again(0, &ipc, 1);
    if (piece != NULL) {
        *at = piece->at;
        return SUCCESS;
    }
    result = allocate(context, at, ipc.size, OPENED);
    if (result == SUCCESS) {
        lock_tables();
        piece = piece_at(*at);
        piece->ipc = ipc;
        piece->opened = 1;
        unlock_tables();
    }
    return result;
}

CALL(cuIpcCloseMemHandle, uintptr_t at) {
    const struct piece *piece;

    ENTER_CONTEXT(context);
    (void)context;
    piece = open_again(at, NULL, -1);
    if (piece == NULL)
        return INVALID_VALUE;
    return piece->opened > 0 ? SUCCESS : drop(take(at, 1U << OPENED));
}

/* ---- who gets at it ------------------------------------------------------------------------- */

static bool piece_accessible(const struct piece *piece, int device) {
    return (piece->kind != LINEAR && piece->kind != POOLED) || reaches(device, piece->device);
}

bool accessible(uintptr_t at, size_t size, int device, bool write) {
    unsigned char wanted = write ? 3 : 1;
    bool fine = size > 0;

    lock_tables();
    while (fine && size > 0) {
        const struct piece *piece = piece_at(at);
        const struct mapping *mapping = piece == NULL ? mapping_at(at) : NULL;
        size_t there = 0;

        if (piece != NULL && piece_accessible(piece, device))
            there = piece->at + piece->size - at;
        else if (mapping != NULL && (mapping->access[device] & wanted) == wanted)
            there = mapping->at + mapping->size - at;
        fine = there > 0;
        at += there;
        size -= there < size ? there : size;
    }
    unlock_tables();
    return fine;
}
