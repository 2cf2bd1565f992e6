/* VMM memory at addresses: mapped there, and with rights for devices. */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <stdlib.h>
#include <sys/mman.h>

struct mapping *mappings;

struct mapping *mapping_at(uintptr_t at) {
    for (struct mapping *one = mappings; one != NULL; one = one->next)
        if (one->at <= at && at < one->at + one->size)
            return one;
    return NULL;
}

const struct properties *properties_of(const struct mapping *mapping) {
    return &mapping->handle->properties;
}

unsigned long long id_of(const struct mapping *mapping) {
    return mapping->handle->id;
}

bool overlaps_mapping(uintptr_t at, size_t size) {
    for (const struct mapping *one = mappings; one != NULL; one = one->next)
        if (one->at < at + size && at < one->at + one->size)
            return true;
    return false;
}

/* Nobody gets at it before cuMemSetAccess. */
static int map(uintptr_t at, size_t size, size_t offset, struct handle *handle) {
    struct mapping *new;

    if (handle == NULL || !aligned(at) || !aligned(size) || offset % granularity() != 0 ||
        offset > handle->size || size > handle->size - offset || !is_reserved(at, size) ||
        overlaps_mapping(at, size))
        return INVALID_VALUE;
    new = calloc(1, sizeof(*new));
    if (new == NULL || mmap((void *)at, size, PROT_NONE, MAP_SHARED | MAP_FIXED, handle->fd,
                            (off_t)offset) == MAP_FAILED) {
        free(new);
        return OUT_OF_MEMORY;
    }
    *new = (struct mapping){.at = at, .size = size, .offset = offset, .handle = handle};
    new->next = mappings;
    mappings = new;
    handle->mappings++;
    if (handle->imported)
        own.imported++;
    return SUCCESS;
}

CALL(cuMemMap, uint64_t at, size_t size, size_t offset, uint64_t id, unsigned long long flags) {
    int result;

    ENTER();
    if (flags != 0)
        return INVALID_VALUE;
    await_group(id);
    lock_tables();
    result = map(at, size, offset, handle_of(id));
    unlock_tables();
    return result;
}

/* How many mappings make up exactly these addresses; 0: they do not. */
static int covered(uintptr_t at, size_t size) {
    size_t found = 0;
    int count = 0;

    for (const struct mapping *one = mappings; one != NULL; one = one->next) {
        if (one->at >= at && one->at + one->size <= at + size) {
            found += one->size;
            count++;
        } else if (one->at < at + size && at < one->at + one->size) {
            return 0;
        }
    }
    return found == size ? count : 0;
}

static void unmap(uintptr_t at, size_t size) {
    for (struct mapping **place = &mappings; *place != NULL;) {
        struct mapping *one = *place;

        if (one->at < at || one->at >= at + size) {
            place = &one->next;
            continue;
        }
        *place = one->next;
        one->handle->mappings--;
        if (one->handle->imported)
            own.imported--;
        settle(one->handle);
        free(one);
    }
    if (mmap((void *)at, size, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        abort();
}

CALL(cuMemUnmap, uint64_t at, size_t size) {
    int count;

    ENTER();
    lock_tables();
    count = size > 0 ? covered(at, size) : 0;
    if (count > 0)
        unmap(at, size);
    unlock_tables();
    return count > 0 ? SUCCESS : INVALID_VALUE;
}

static bool any(const struct mapping *mapping, int flags) {
    for (int device = 0; device < DEVICES; device++)
        if ((mapping->access[device] & flags) == flags)
            return true;
    return false;
}

int protection_of(const struct mapping *mapping) {
    return any(mapping, 3)   ? PROT_READ | PROT_WRITE
           : any(mapping, 1) ? PROT_READ
                             : PROT_NONE;
}

static void set_access(struct mapping *mapping, const struct access *access, size_t count) {
    for (size_t n = 0; n < count; n++)
        mapping->access[access[n].location.id] = (unsigned char)access[n].flags;
    if (mprotect((void *)mapping->at, mapping->size, protection_of(mapping)) < 0)
        abort();
}

CALL(cuMemSetAccess, uint64_t at, size_t size, const struct access *access, size_t count) {
    int result;

    ENTER();
    for (size_t n = 0; n < count; n++)
        if (access[n].location.type != 1 || access[n].location.id < 0 ||
            access[n].location.id >= device_count() ||
            (access[n].flags != 0 && access[n].flags != 1 && access[n].flags != 3))
            return INVALID_VALUE;
    lock_tables();
    result = count > 0 && size > 0 && covered(at, size) > 0 ? SUCCESS : INVALID_VALUE;
    for (struct mapping *one = mappings; result == SUCCESS && one != NULL; one = one->next)
        if (one->at >= at && one->at < at + size)
            set_access(one, access, count);
    unlock_tables();
    return result;
}

CALL(cuMemGetAccess, unsigned long long *flags, const struct location *location, uint64_t at) {
    struct mapping *mapping;

    ENTER();
    if (location->type != 1 || location->id < 0 || location->id >= device_count())
        return INVALID_VALUE;
    lock_tables();
    mapping = mapping_at(at);
    if (mapping != NULL)
        *flags = mapping->access[location->id];
    unlock_tables();
    return mapping != NULL ? SUCCESS : INVALID_VALUE;
}
