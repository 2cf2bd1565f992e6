/*
 * Multicast groups: which devices were added, and which have memory bound. What is written there
 * goes nowhere else, but all who have the group wait for the same devices.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct wanted { /* CUmulticastObjectProp */
    unsigned devices;
    size_t size;
    unsigned long long handle_types, flags;
};

struct end { /* of its file */
    struct about memory;
    struct group group;
    struct about about;
};

/* Behind the end of memory's file, in the same page, all is zero. */
void find_group(struct handle *handle) {
    struct end *end = mmap(NULL, sizeof(*end), PROT_READ | PROT_WRITE, MAP_SHARED, handle->fd,
                           (off_t)handle->size);

    if (end == MAP_FAILED)
        abort();
    if (end->group.wanted > 0)
        handle->group = &end->group;
    else
        munmap(end, sizeof(*end));
}

static int group_file(const struct wanted *wanted) {
    int fd = memory_file(wanted->size, 0, false);
    struct end end = {.group = {.wanted = wanted->devices}};
    off_t at = (off_t)wanted->size;

    if (fd < 0 || pread(fd, &end.memory, sizeof(end.memory), at) != sizeof(end.memory))
        abort();
    end.about = end.memory;
    if (pwrite(fd, &end, sizeof(end), at) != sizeof(end))
        abort();
    return fd;
}

/* Whoever has the group keeps it meanwhile. NULL: it is none. */
static struct group *group_of(uint64_t id) {
    const struct handle *handle;
    struct group *group;

    lock_tables();
    handle = handle_of(id);
    group = handle != NULL ? handle->group : NULL;
    unlock_tables();
    return group;
}

void await_group(uint64_t id) {
    const struct timespec step = {0, 2000000};
    struct group *group = group_of(id);

    while (group != NULL &&
           (unsigned)__builtin_popcount(atomic_load(&group->added)) < group->wanted)
        nanosleep(&step, NULL);
}

static unsigned bit(int device) {
    return device >= 0 && device < device_count() ? 1U << own.gpus[device] : 0;
}

CALL(cuMulticastCreate, uint64_t *id, const struct wanted *wanted) {
    struct properties properties = {.type = 1, .handle_types = (int)wanted->handle_types};
    int fd, result;

    ENTER();
    if (wanted->devices == 0 || !aligned(wanted->size) || wanted->flags != 0)
        return INVALID_VALUE;
    fd = group_file(wanted);
    result = new_handle(id, wanted->size, &properties, fd, false);
    if (result != SUCCESS)
        close(fd);
    return result;
}

CALL(cuMulticastAddDevice, uint64_t id, int device) {
    struct group *group = group_of(id);

    ENTER();
    if (group == NULL || bit(device) == 0)
        return INVALID_VALUE;
    atomic_fetch_or(&group->added, bit(device));
    return SUCCESS;
}

static int bind(uint64_t id, int device) {
    struct group *group = group_of(id);

    await_group(id);
    if (group == NULL || (atomic_load(&group->added) & bit(device)) == 0)
        return INVALID_VALUE;
    atomic_fetch_or(&group->bound, bit(device));
    return SUCCESS;
}

CALL(cuMulticastBindMem, uint64_t id, size_t at, uint64_t memory, size_t from, size_t size,
     unsigned long long flags) {
    const struct handle *handle;
    int device = -1;

    ENTER();
    (void)at, (void)from, (void)size, (void)flags;
    lock_tables();
    handle = handle_of(memory);
    if (handle != NULL && handle->group == NULL)
        device = handle->properties.location.id;
    unlock_tables();
    return bind(id, device);
}

CALL(cuMulticastBindMem_v2, uint64_t id, int device, size_t at, uint64_t memory, size_t from,
     size_t size, unsigned long long flags) {
    (void)device;
    return cuMulticastBindMem(id, at, memory, from, size, flags);
}

CALL(cuMulticastBindAddr, uint64_t id, size_t at, uint64_t memory, size_t size,
     unsigned long long flags) {
    const struct mapping *mapping;
    int device = -1;

    ENTER();
    (void)at, (void)size, (void)flags;
    lock_tables();
    mapping = mapping_at(memory);
    if (mapping != NULL)
        device = properties_of(mapping)->location.id;
    unlock_tables();
    return bind(id, device);
}

CALL(cuMulticastBindAddr_v2, uint64_t id, int device, size_t at, uint64_t memory, size_t size,
     unsigned long long flags) {
    (void)device;
    return cuMulticastBindAddr(id, at, memory, size, flags);
}

CALL(cuMulticastUnbind, uint64_t id, int device, size_t at, size_t size) {
    struct group *group = group_of(id);

    ENTER();
    (void)at, (void)size;
    if (group == NULL || (atomic_load(&group->bound) & bit(device)) == 0)
        return INVALID_VALUE;
    atomic_fetch_and(&group->bound, ~bit(device));
    return SUCCESS;
}
