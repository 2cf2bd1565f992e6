/* Memory of all kinds, what is in it, and what is to be known of it: see gpu_program.c. */
#define _GNU_SOURCE

#include "gpu_program.h"

#include <string.h>
#include <unistd.h>

/* ---- memory --------------------------------------------------------------------------------- */

static int alloc(char **words) {
    device_pointer at;

    TRY(cuMemAlloc, &at, number(words[1]));
    return keep(LINEAR, at, number(words[1]), 0);
}

static int pooled(char **words) {
    device_pointer at;

    TRY(cuMemAllocAsync, &at, number(words[1]), own_stream);
    return keep(POOLED, at, number(words[1]), 0);
}

static int managed(char **words) {
    device_pointer at;

    TRY(cuMemAllocManaged, &at, number(words[1]), 1);
    return keep(MANAGED, at, number(words[1]), 0);
}

static int pitch(char **words) {
    device_pointer at;
    size_t row;

    TRY(cuMemAllocPitch, &at, &row, number(words[1]), number(words[2]), 4);
    return keep(LINEAR, at, row * number(words[2]), 0);
}

static int place(handle memory, size_t size) {
    struct access access = {{1, 0}, 3};
    device_pointer at;

    TRY(cuCtxGetDevice, &access.location.id);
    TRY(cuMemAddressReserve, &at, size, 0, 0, 0);
    TRY(cuMemMap, at, size, 0, memory, 0);
    TRY(cuMemSetAccess, at, size, &access, 1);
    return keep(VMM, at, size, memory);
}

static int make(handle *memory, size_t size, int types) {
    struct properties wanted = {.type = 1, .handle_types = types, .location = {1, 0}};

    TRY(cuCtxGetDevice, &wanted.location.id);
    TRY(cuMemCreate, memory, size, &wanted, 0);
    return 0;
}

static int create(char **words) {
    handle memory;

    if (make(&memory, number(words[1]), strcmp(words[0], "create") == 0) < 0)
        return -1;
    return place(memory, number(words[1]));
}

/* Its own memory comes back to it, as another process's would. */
static int import(char **words) {
    int fd = -1, result;
    handle memory;

    if (make(&memory, number(words[1]), 1) < 0)
        return -1;
    TRY(cuMemExportToShareableHandle, &fd, memory, 1, 0);
    TRY(cuMemRelease, memory);
    result = cuda.cuMemImportFromShareableHandle(&memory, (void *)(intptr_t)fd, 1);
    close(fd);
    return result == 0 ? place(memory, number(words[1]))
                       : failed(result, "cuMemImportFromShareableHandle");
}

static int export(char **words) {
    int fd = -1;

    TRY(cuMemExportToShareableHandle, &fd, object(words[1])->handle, 1, 0);
    return tell("%d", fd);
}

static int release(struct object *mine) {
    switch (mine->kind) {
    case LINEAR:
    case MANAGED:
        TRY(cuMemFree, mine->at);
        break;
    case POOLED:
        TRY(cuMemFreeAsync, mine->at, own_stream);
        break;
    default:
        TRY(cuCtxSynchronize);
        TRY(cuMemUnmap, mine->at, mine->size);
        if (mine->handle != 0)
            TRY(cuMemRelease, mine->handle);
        TRY(cuMemAddressFree, mine->at, mine->size);
    }
    mine->kind = NOTHING;
    return tell("freed");
}

static int free_one(char **words) {
    return release(object(words[1]));
}

/* Gives the handle away and keeps the memory, which is mapped. */
static int let_go(char **words) {
    struct object *mine = object(words[1]);

    TRY(cuMemRelease, mine->handle);
    mine->handle = 0;
    return tell("released");
}

static int unmap(char **words) {
    struct object *mine = object(words[1]);

    TRY(cuMemUnmap, mine->at, mine->size);
    return tell("unmapped");
}

/* Where it was before, with access for the current device. */
static int map(char **words) {
    struct object *mine = object(words[1]);
    struct access access = {{1, 0}, 3};

    TRY(cuCtxGetDevice, &access.location.id);
    TRY(cuMemMap, mine->at, mine->size, 0, mine->handle, 0);
    TRY(cuMemSetAccess, mine->at, mine->size, &access, 1);
    return tell("mapped");
}

static int retain(char **words) {
    struct object *mine = object(words[1]);
    handle found;

    TRY(cuMemRetainAllocationHandle, &found, (void *)(uintptr_t)(mine->at + mine->size / 2));
    TRY(cuMemRelease, found);
    return tell("%s", found == mine->handle ? "same" : "other");
}

/* ---- what is in it -------------------------------------------------------------------------- */

static int set(char **words) {
    const struct object *mine = object(words[1]);
    size_t offset = words[3] != NULL ? number(words[3]) : 0;
    size_t size = words[3] != NULL && words[4] != NULL ? number(words[4]) : mine->size - offset;

    TRY(cuMemsetD8, mine->at + offset, (unsigned char)number(words[2]), size);
    return tell("set");
}

/* FNV-1a over numbers of eight bytes. */
static int sum(char **words) {
    const struct object *mine = object(words[1]);
    static uint64_t buffer[1 << 19];
    uint64_t hash = UINT64_C(0xcbf29ce484222325);

    for (size_t at = 0; at < mine->size; at += sizeof(buffer)) {
        size_t left = mine->size - at, size = left < sizeof(buffer) ? left : sizeof(buffer);

        buffer[(size - 1) / 8] = 0;
        TRY(cuMemcpyDtoH, buffer, mine->at + at, size);
        for (size_t n = 0; n < (size + 7) / 8; n++)
            hash = (hash ^ buffer[n]) * UINT64_C(0x100000001b3);
    }
    return tell("%016llx", (unsigned long long)hash);
}

static int copy(char **words) {
    const struct object *to = object(words[1]), *from = object(words[2]);

    TRY(cuMemcpyDtoDAsync, to->at, from->at, to->size < from->size ? to->size : from->size,
        own_stream);
    TRY(cuStreamSynchronize, own_stream);
    return tell("copied");
}

/* ---- questions ------------------------------------------------------------------------------ */

static int range(char **words) {
    const struct object *mine = object(words[1]);
    device_pointer start;
    size_t size;

    TRY(cuMemGetAddressRange, &start, &size, mine->at + mine->size / 2);
    return tell("%lld %zu", (long long)(start - mine->at), size);
}

/* RANGE_START_ADDR, from the memory's start, and RANGE_SIZE; by both calls, which agree. */
static int attributes(char **words) {
    const struct object *mine = object(words[1]);
    device_pointer start = 0, again = 0;
    size_t size = 0, size_again = 0;
    unsigned type = 0;
    int wanted[] = {11, 12, 2};
    void *out[] = {&again, &size_again, &type};

    TRY(cuPointerGetAttribute, &start, 11, mine->at + mine->size / 2);
    TRY(cuPointerGetAttribute, &size, 12, mine->at + mine->size / 2);
    TRY(cuPointerGetAttributes, 3, wanted, out, mine->at + mine->size / 2);
    if (start != again || size != size_again)
        return failed(-1, "cuPointerGetAttributes");
    return tell("%lld %zu %u", (long long)(start - mine->at), size, type);
}

static int ipc(char **words) {
    char bytes[64];

    TRY(cuIpcGetMemHandle, bytes, object(words[1])->at);
    return tell("handle");
}

static int told_properties(char **words) {
    struct properties told;

    TRY(cuMemGetAllocationPropertiesFromHandle, &told, object(words[1])->handle);
    return tell("%d %d", told.handle_types, told.location.id);
}

static int access_of(char **words) {
    struct location who = {1, (int)number(words[2])};
    unsigned long long flags;

    TRY(cuMemGetAccess, &flags, &who, object(words[1])->at);
    return tell("%llu", flags);
}

static int info(char **words) {
    size_t left, all;

    (void)words;
    TRY(cuMemGetInfo, &left, &all);
    return tell("%zu %zu", left, all);
}

/* ---- commands ------------------------------------------------------------------------------- */

const struct command memory_commands[] = {
    {"alloc", 1, alloc},     /* SIZE: ok NUMBER ADDRESS; so all that make memory */
    {"create", 1, create},   /* SIZE of VMM memory that can be exported */
    {"plain", 1, create},    /* that cannot */
    {"import", 1, import},   /* that was exported and then imported */
    {"async", 1, pooled},
    {"managed", 1, managed},
    {"pitch", 2, pitch},     /* WIDTH HEIGHT */
    {"free", 1, free_one},
    {"export", 1, export},    /* ok DESCRIPTOR */
    {"release", 1, let_go},   /* the handle; the memory stays mapped */
    {"unmap", 1, unmap},      /* and keep handle and addresses */
    {"map", 1, map},          /* again */
    {"retain", 1, retain},    /* ok same: it is the handle that it was made with */
    {"set", 2, set},          /* NUMBER BYTE [OFFSET [SIZE]] */
    {"sum", 1, sum},          /* ok HASH of all that is in it */
    {"copy", 2, copy},        /* TO FROM */
    {"range", 1, range},     /* ok OFFSET SIZE, of cuMemGetAddressRange */
    {"attr", 1, attributes}, /* ok OFFSET SIZE TYPE, of the attributes */
    {"ipc", 1, ipc},
    {"props", 1, told_properties}, /* ok TYPES DEVICE */
    {"access", 2, access_of},      /* NUMBER DEVICE: ok FLAGS */
    {"info", 0, info},             /* ok FREE TOTAL */
    {NULL, 0, NULL},
};
