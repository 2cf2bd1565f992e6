/* What may be asked about a device and about an address, and IPC: see libcuda.c. */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <string.h>
#include <unistd.h>

bool rdma_capable(void) {
    return !is_so("no-rdma");
}

enum { RDMA_WITH_VMM = 110 }; /* CUdevice_attribute */

CALL(cuDeviceGetAttribute, int *value, int attribute, int device) {
    static const struct {
        int attribute, value;
    } known[] = {
        {1, 1024}, {10, 32}, {16, 132}, {19, 1},  {40, 3},  {41, 1}, /* sizes, host mappings, UVA */
        {75, 9},   {76, 0},  {83, 1},   {102, 1}, {103, 1}, {115, 1}, /* capability, VMM, pools */
    };

    ENTER();
    if (device < 0 || device >= device_count())
        return INVALID_DEVICE;
    if (attribute <= 0)
        return INVALID_VALUE;
    *value = attribute == RDMA_WITH_VMM && rdma_capable();
    for (size_t n = 0; n < sizeof(known) / sizeof(known[0]); n++)
        if (known[n].attribute == attribute)
            *value = known[n].value;
    return SUCCESS;
}

/* CUpointer_attribute */
enum {
    CONTEXT = 1,
    MEMORY_TYPE,
    DEVICE_POINTER,
    HOST_POINTER,
    P2P_TOKENS,
    SYNC_MEMOPS,
    BUFFER_ID,
    IS_MANAGED,
    DEVICE_ORDINAL,
    IS_LEGACY_IPC_CAPABLE,
    RANGE_START,
    RANGE_SIZE,
    MAPPED,
    ALLOWED_HANDLE_TYPES,
    IS_RDMA_CAPABLE,
    ACCESS_FLAGS,
    POOL_HANDLE
};

struct seen {
    uintptr_t start;
    size_t size;
    struct context *context;
    unsigned long long id;
    int device, handle_types;
    bool host, managed, vmm, pool;
};

static bool look(uintptr_t at, struct seen *seen) {
    const struct piece *piece;
    const struct mapping *mapping;

    memset(seen, 0, sizeof(*seen));
    lock_tables();
    piece = piece_at(at);
    mapping = mapping_at(at);
    if (piece != NULL) {
        *seen = (struct seen){piece->at, piece->size, piece->context, piece->id, piece->device, 0,
                              piece->kind == REGISTERED, piece->kind == MANAGED, false,
                              piece->kind == POOLED};
    } else if (mapping != NULL) {
        seen->start = mapping->at;
        seen->size = mapping->size;
        seen->id = id_of(mapping) << 32;
        seen->device = properties_of(mapping)->location.id;
        seen->handle_types = properties_of(mapping)->handle_types;
        seen->vmm = true;
    }
    unlock_tables();
    return piece != NULL || mapping != NULL;
}

CALL(cuMemGetAddressRange_v2, uintptr_t *start, size_t *size, uintptr_t at) {
    struct seen seen;

    ENTER_CONTEXT(context);
    (void)context;
    if (!look(at, &seen) || seen.host)
        return NOT_FOUND;
    if (start != NULL)
        *start = seen.start;
    if (size != NULL)
        *size = seen.size;
    return SUCCESS;
}

#define PUT(type, value)                                                                           \
    do {                                                                                           \
        type put_ = (type)(value);                                                                 \
        memcpy(out, &put_, sizeof(put_));                                                          \
    } while (0)

/* `there`: whether anything is known of `at`; if not, zeros are put where one may ask so. */
static int put(void *out, int attribute, uintptr_t at, const struct seen *seen, bool there) {
    switch (attribute) {
    case CONTEXT: /* VMM memory belongs to none */
        PUT(struct context *, seen->context);
        return SUCCESS;
    case MEMORY_TYPE: /* 1 host, 2 device */
        PUT(unsigned, !there ? 0 : seen->host ? 1 : 2);
        return SUCCESS;
    case DEVICE_POINTER:
        PUT(uintptr_t, there ? at : 0);
        return SUCCESS;
    case HOST_POINTER:
        PUT(uintptr_t, seen->host || seen->managed ? at : 0);
        return SUCCESS;
    case BUFFER_ID:
        PUT(unsigned long long, seen->id);
        return SUCCESS;
    case IS_MANAGED:
        PUT(unsigned, seen->managed);
        return SUCCESS;
    case DEVICE_ORDINAL:
        PUT(int, there ? seen->device : -2);
        return SUCCESS;
    case IS_LEGACY_IPC_CAPABLE:
        PUT(bool, there && !seen->vmm && !seen->host && !seen->managed && !seen->pool);
        return SUCCESS;
    case RANGE_START:
        PUT(uintptr_t, seen->start);
        return SUCCESS;
    case RANGE_SIZE:
        PUT(size_t, seen->size);
        return SUCCESS;
    case MAPPED:
        PUT(bool, there);
        return SUCCESS;
    case ALLOWED_HANDLE_TYPES:
        PUT(unsigned long long, seen->handle_types);
        return SUCCESS;
    case SYNC_MEMOPS:
    case IS_RDMA_CAPABLE:
        PUT(bool, false);
        return SUCCESS;
    case ACCESS_FLAGS:
        PUT(unsigned, there ? 3 : 0);
        return SUCCESS;
    case POOL_HANDLE:
        PUT(void *, NULL);
        return SUCCESS;
    default:
        return INVALID_VALUE;
    }
}

CALL(cuPointerGetAttribute, void *out, int attribute, uintptr_t at) {
    struct seen seen;

    ENTER_CONTEXT(context);
    (void)context;
    return look(at, &seen) ? put(out, attribute, at, &seen, true) : INVALID_VALUE;
}

/* Asks about addresses that nobody knows, too. */
CALL(cuPointerGetAttributes, unsigned count, const int *attributes, void **out, uintptr_t at) {
    struct seen seen;
    int result = SUCCESS;
    bool there;

    ENTER_CONTEXT(context);
    (void)context;
    there = look(at, &seen);
    for (unsigned n = 0; n < count && result == SUCCESS; n++)
        result = put(out[n], attributes[n], at, &seen, there);
    return result;
}

/* VMM memory has no such attributes. */
CALL(cuPointerSetAttribute, const void *value, int attribute, uintptr_t at) {
    struct seen seen;

    ENTER_CONTEXT(context);
    (void)context;
    if (value == NULL || attribute != SYNC_MEMOPS || !look(at, &seen))
        return INVALID_VALUE;
    return seen.vmm ? NOT_SUPPORTED : SUCCESS;
}

CALL(cuIpcGetMemHandle, void *handle, uintptr_t at) {
    struct seen seen;

    ENTER_CONTEXT(context);
    (void)context;
    if (!look(at, &seen) || seen.vmm || seen.host || seen.managed || seen.pool)
        return INVALID_VALUE;
    memcpy(handle, &(struct ipc){seen.start, seen.size, (uint64_t)getpid(), {0}},
           sizeof(struct ipc));
    return SUCCESS;
}
