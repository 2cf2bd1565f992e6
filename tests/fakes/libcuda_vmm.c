/*
 * VMM memory: addresses and memory apart. Memory is a memfd, which travels to other processes and
 * lives for as long as anybody has it; behind its end stands what it is (struct about). A multicast
 * group is such a file, too: libcuda_multicast.c.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { POSIX_DESCRIPTOR = 1 };

struct range {
    uintptr_t at;
    size_t size;
    struct range *next;
};

static const char about_mark[16] = "fake GPU memory";

struct handle *handles;
static struct range *ranges;
static unsigned long long last_id;

bool aligned(uint64_t number) {
    return number != 0 && number % granularity() == 0;
}

size_t granularity(void) {
    const char *variable = getenv("THAW_FAKE_GRANULARITY");

    return variable != NULL ? (size_t)strtoull(variable, NULL, 10) : GRANULARITY;
}

/* ---- addresses ------------------------------------------------------------------------------ */

static void *reserve(uintptr_t hint, size_t size) {
    return mmap((void *)hint, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

CALL(cuMemAddressReserve, uint64_t *at, size_t size, size_t alignment, uint64_t hint,
     unsigned long long flags) {
    size_t step = alignment > granularity() ? alignment : granularity();
    struct range *range;
    uintptr_t start, first;

    ENTER();
    if (!aligned(size) || (alignment & (alignment - 1)) != 0 || flags != 0)
        return INVALID_VALUE;
    start = (uintptr_t)reserve(hint, size);
    if (start != hint && start != (uintptr_t)MAP_FAILED) {
        munmap((void *)start, size);
        start = (uintptr_t)reserve(0, size + step);
    }
    range = calloc(1, sizeof(*range));
    if (start == (uintptr_t)MAP_FAILED || range == NULL) {
        free(range);
        return OUT_OF_MEMORY;
    }
    first = start;
    if (start != hint) {
        first = (start + step - 1) / step * step;
        if (first > start)
            munmap((void *)start, first - start);
        munmap((void *)(first + size), start + step - first);
    }
    *range = (struct range){first, size, NULL};
    lock_tables();
    range->next = ranges;
    ranges = range;
    unlock_tables();
    *at = first;
    return SUCCESS;
}

bool is_reserved(uintptr_t at, size_t size) {
    for (const struct range *range = ranges; range != NULL; range = range->next)
        if (range->at <= at && at + size <= range->at + range->size)
            return true;
    return false;
}

/* Exactly one that was reserved, with nothing mapped any more. */
CALL(cuMemAddressFree, uint64_t at, size_t size) {
    struct range **place = &ranges, *found = NULL;

    ENTER();
    lock_tables();
    while (*place != NULL && (*place)->at != at)
        place = &(*place)->next;
    if (*place != NULL && (*place)->size == size && !overlaps_mapping(at, size)) {
        found = *place;
        *place = found->next;
    }
    unlock_tables();
    if (found == NULL)
        return INVALID_VALUE;
    munmap((void *)found->at, size);
    free(found);
    return SUCCESS;
}

/* ---- memory --------------------------------------------------------------------------------- */

struct handle *handle_of(uint64_t id) {
    for (struct handle *handle = handles; handle != NULL; handle = handle->next)
        if (handle->id == id)
            return handle;
    return NULL;
}

/* It goes when neither the program nor an address has it. */
void settle(struct handle *handle) {
    struct handle **place = &handles;

    if (handle->references > 0 || handle->mappings > 0)
        return;
    while (*place != handle)
        place = &(*place)->next;
    *place = handle->next;
    close(handle->fd);
    if (!handle->imported && handle->properties.location.type == 1)
        discharge(handle->properties.location.id, handle->size);
    free(handle);
}

int new_handle(uint64_t *id, size_t size, const struct properties *properties, int fd,
               bool imported) {
    struct handle *handle = calloc(1, sizeof(*handle));

    if (handle == NULL)
        return OUT_OF_MEMORY;
    handle->size = size;
    handle->properties = *properties;
    handle->fd = fd;
    handle->imported = imported;
    handle->references = 1;
    find_group(handle);
    lock_tables();
    handle->id = *id = ++last_id + 0x1000;
    handle->next = handles;
    handles = handle;
    unlock_tables();
    watch_over_memory();
    return SUCCESS;
}

static bool sane(const struct properties *properties) {
    static const unsigned char none[4];

    return properties->type == 1 && (properties->handle_types & ~(1 | 8)) == 0 &&
           properties->location.type >= 1 && properties->location.type <= 4 &&
           memcmp(properties->reserved, none, sizeof(none)) == 0;
}

int memory_file(size_t size, int device, bool rdma) {
    int fd = memfd_create(rdma ? "fake-gpu-rdma" : "fake-gpu", MFD_CLOEXEC);
    struct about about = {.size = size};

    memcpy(about.mark, about_mark, sizeof(about_mark));
    uuid_of(device, about.uuid);
    if (fd >= 0 && pwrite(fd, &about, sizeof(about), (off_t)size) == sizeof(about))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

CALL(cuMemCreate, uint64_t *handle, size_t size, const struct properties *properties,
     unsigned long long flags) {
    bool on_device;
    int fd, result;

    ENTER();
    if (!aligned(size) || flags != 0 || !sane(properties))
        return INVALID_VALUE;
    on_device = properties->location.type == 1;
    if (on_device && (properties->location.id < 0 || properties->location.id >= device_count()))
        return INVALID_DEVICE;
    if (properties->rdma != 0 && !rdma_capable())
        return NOT_SUPPORTED;
    if (on_device && !charge(properties->location.id, size))
        return OUT_OF_MEMORY;
    fd = memory_file(size, on_device ? properties->location.id : 0, properties->rdma != 0);
    if (fd >= 0) {
        result = new_handle(handle, size, properties, fd, false);
        if (result == SUCCESS)
            return SUCCESS;
        close(fd);
    }
    lock_tables();
    if (on_device)
        discharge(properties->location.id, size);
    unlock_tables();
    return OUT_OF_MEMORY;
}

CALL(cuMemRelease, uint64_t id) {
    struct handle *handle;

    ENTER();
    lock_tables();
    handle = handle_of(id);
    if (handle != NULL && handle->references > 0) {
        handle->references--;
        settle(handle);
    } else {
        handle = NULL;
    }
    unlock_tables();
    return handle != NULL ? SUCCESS : INVALID_VALUE;
}

CALL(cuMemExportToShareableHandle, void *out, uint64_t id, int type, unsigned long long flags) {
    struct handle *handle;
    int fd = -1;

    ENTER();
    lock_tables();
    handle = handle_of(id);
    if (handle != NULL && handle->imported && is_so("own-only")) {
        unlock_tables();
        return INVALID_VALUE;
    }
    if (handle != NULL && type == POSIX_DESCRIPTOR && flags == 0 &&
        (handle->properties.handle_types & POSIX_DESCRIPTOR) != 0)
        fd = fcntl(handle->fd, F_DUPFD_CLOEXEC, 0);
    unlock_tables();
    if (fd < 0)
        return handle != NULL && type == POSIX_DESCRIPTOR && errno == EMFILE ? OPERATING_SYSTEM
                                                                             : INVALID_VALUE;
    memcpy(out, &fd, sizeof(fd));
    return SUCCESS;
}

static int device_with(const unsigned char *uuid) {
    unsigned char own_uuid[16];

    for (int device = 0; device < device_count(); device++) {
        uuid_of(device, own_uuid);
        if (memcmp(own_uuid, uuid, sizeof(own_uuid)) == 0)
            return device;
    }
    return -1;
}

/* `given` is the descriptor, not a pointer to it; it stays the caller's. */
CALL(cuMemImportFromShareableHandle, uint64_t *id, void *given, int type) {
    struct properties properties = {.type = 1, .handle_types = 1, .location = {1, 0}};
    struct about about;
    struct stat seen;
    int fd;

    ENTER();
    if (type != POSIX_DESCRIPTOR || fstat((int)(intptr_t)given, &seen) < 0 ||
        seen.st_size < (off_t)sizeof(about) ||
        pread((int)(intptr_t)given, &about, sizeof(about), seen.st_size - (off_t)sizeof(about)) !=
            sizeof(about) ||
        memcmp(about.mark, about_mark, sizeof(about_mark)) != 0)
        return INVALID_VALUE;
    properties.location.id = device_with(about.uuid);
    if (properties.location.id < 0)
        return INVALID_DEVICE;
    fd = fcntl((int)(intptr_t)given, F_DUPFD_CLOEXEC, 0);
    return fd >= 0 ? new_handle(id, about.size, &properties, fd, true) : OPERATING_SYSTEM;
}

CALL(cuMemRetainAllocationHandle, uint64_t *id, void *at) {
    struct mapping *mapping;

    ENTER();
    lock_tables();
    mapping = mapping_at((uintptr_t)at);
    if (mapping != NULL) {
        mapping->handle->references++;
        *id = mapping->handle->id;
    }
    unlock_tables();
    return mapping != NULL ? SUCCESS : INVALID_VALUE;
}

CALL(cuMemGetAllocationPropertiesFromHandle, struct properties *properties, uint64_t id) {
    struct handle *handle;

    ENTER();
    lock_tables();
    handle = handle_of(id);
    if (handle != NULL)
        *properties = handle->properties;
    unlock_tables();
    return handle != NULL ? SUCCESS : INVALID_VALUE;
}

CALL(cuMemGetAllocationGranularity, size_t *size, const struct properties *properties,
     int option) {
    ENTER();
    if (!sane(properties) || option < 0 || option > 1)
        return INVALID_VALUE;
    *size = granularity();
    return SUCCESS;
}
