/*
 * cuMemAlloc and its kin. From 2 MiB on, memory is VMM memory at an address of its own, which can
 * be exported, unmapped and mapped again. What is smaller, and what cannot be had like that, is
 * left to the driver and counted.
 */
#include "allocations.h"

#include "captures.h"
#include "contexts.h"
#include "control.h"
#include "counted.h"
#include "entries.h"
#include "gate.h"
#include "system.h"
#include "table.h"

#define LARGE UNIT

enum { NOT_OURS = -1 };

enum rdma { UNKNOWN, CAPABLE, NOT_CAPABLE };

static atomic_size_t granularities[THAW_GPU_DEVICES];
static atomic_int rdma[THAW_GPU_DEVICES];    /* whether network cards may reach VMM memory */
static atomic_bool unable[THAW_GPU_DEVICES]; /* a device's memory cannot be exported */
static atomic_uint postponed;

/* Network cards reach what cuMemAlloc gives; VMM memory only if it was asked for. */
static bool is_rdma_capable(int device) {
    int known = atomic_load(&rdma[device]), value = 0;

    if (known == UNKNOWN) {
        if (driver.cuDeviceGetAttribute != NULL)
            driver.cuDeviceGetAttribute(&value, DEVICE_RDMA_WITH_VMM, device);
        known = value != 0 ? CAPABLE : NOT_CAPABLE;
        atomic_store(&rdma[device], known);
    }
    return known == CAPABLE;
}

static struct properties exportable(int device) {
    return (struct properties){TYPE_PINNED, TYPE_DESCRIPTOR, {LOCATION_DEVICE, device}, NULL,
                               {0, is_rdma_capable(device), 0, {0}}};
}

size_t granularity_of(int device) {
    struct properties wanted = exportable(device);
    size_t size = atomic_load(&granularities[device]);

    if (size != 0)
        return size;
    if (driver.cuMemGetAllocationGranularity == NULL ||
        driver.cuMemGetAllocationGranularity(&size, &wanted, 0) != CUDA_SUCCESS ||
        (size & (size - 1)) != 0)
        return 0;
    if (size > 0 && size < UNIT)
        size = UNIT; /* of what is moved; see wire.h */
    atomic_store(&granularities[device], size);
    return size;
}

/* Into the table and out to whoever may reach it; the memory is mapped. */
static int enter(address at, size_t size, size_t requested, handle real,
                 const struct properties *made, context current) {
    int device = made->location.id;
    struct range *range = NULL;
    struct piece *piece;
    int result = NOT_OURS;

    lock_write(&table.lock);
    piece = add_piece(size, real, made);
    if (piece != NULL) {
        piece->context = current;
        piece->asked.handle_types = 0; /* what cuMemAlloc's memory looks like */
        range = add_range(piece, at, size, 0);
    }
    if (range != NULL) {
        range->requested = requested;
        range->readers = range->writers = reached_from(device);
        result = grant(range);
    }
    if (range != NULL && result != CUDA_SUCCESS)
        remove_range(range);
    if (piece != NULL && result != CUDA_SUCCESS)
        remove_piece(piece);
    unlock_write(&table.lock);
    return result;
}

static int create(address at, size_t size, size_t requested, context current, int device) {
    struct properties wanted = exportable(device);
    handle real;
    int result = driver.cuMemCreate(&real, size, &wanted, 0);

    if (result != CUDA_SUCCESS && result != CUDA_OUT_OF_MEMORY && wanted.flags.rdma != 0) {
        wanted.flags.rdma = 0;
        result = driver.cuMemCreate(&real, size, &wanted, 0);
        if (result == CUDA_SUCCESS)
            atomic_store(&rdma[device], NOT_CAPABLE);
    }
    if (result != CUDA_SUCCESS) {
        if (result == CUDA_NOT_SUPPORTED || result == CUDA_NOT_PERMITTED)
            atomic_store(&unable[device], true);
        return NOT_OURS;
    }
    result = driver.cuMemMap(at, size, 0, real, 0);
    if (result == CUDA_SUCCESS) {
        result = enter(at, size, requested, real, &wanted, current);
        if (result != CUDA_SUCCESS)
            driver.cuMemUnmap(at, size);
    }
    if (result != CUDA_SUCCESS)
        driver.cuMemRelease(real);
    return result;
}

static bool has_calls(void) {
    return driver.cuMemCreate != NULL && driver.cuMemRelease != NULL && driver.cuMemMap != NULL &&
           driver.cuMemUnmap != NULL && driver.cuMemSetAccess != NULL &&
           driver.cuMemAddressReserve != NULL && driver.cuMemAddressFree != NULL &&
           driver.cuCtxSynchronize != NULL && driver.cuCtxPushCurrent_v2 != NULL &&
           driver.cuCtxPopCurrent_v2 != NULL && driver.cuMemExportToShareableHandle != NULL &&
           driver.cuMemImportFromShareableHandle != NULL;
}

/* NOT_OURS, or anything but success: the driver is asked for memory of its own. */
static int allocate(address *at, size_t requested) {
    context current;
    size_t unit, size;
    address fresh;
    int device, result;

    if (!has_calls() || !context_here(&current, &device) || device < 0 ||
        device >= THAW_GPU_DEVICES || atomic_load(&unable[device]) || !control_ready())
        return NOT_OURS;
    free_postponed();
    unit = granularity_of(device);
    if (unit == 0 || requested > SIZE_MAX - unit)
        return NOT_OURS;
    size = (requested + unit - 1) & ~(unit - 1);
    if (driver.cuMemAddressReserve(&fresh, size, unit, 0, 0) != CUDA_SUCCESS)
        return NOT_OURS;
    result = create(fresh, size, requested, current, device);
    if (result == CUDA_SUCCESS)
        *at = fresh;
    else
        driver.cuMemAddressFree(fresh, size);
    return result;
}

int cuMemAlloc_v2(address *at, size_t size) {
    int result = NOT_OURS;

    REAL(cuMemAlloc_v2);
    gate_enter();
    if (at != NULL && size >= LARGE && !opted_out())
        result = allocate(at, size);
    if (result != CUDA_SUCCESS) {
        result = driver.cuMemAlloc_v2(at, size);
        if (result == CUDA_SUCCESS)
            count_in(*at, size, size < LARGE ? THAW_GPU_LEFT_SMALL : THAW_GPU_LEFT_OTHER);
    }
    gate_leave();
    return result;
}

/* As cuMemFree waits until nothing uses the memory any more. */
static int settle(context owner) {
    bool entered = context_enter(owner);
    int result = driver.cuCtxSynchronize();

    context_leave(entered);
    return result;
}

/* The range is in no table any more. */
static int release(address at, size_t size, handle real) {
    int result = driver.cuMemUnmap(at, size);

    if (result == CUDA_SUCCESS)
        result = driver.cuMemRelease(real);
    if (result == CUDA_SUCCESS)
        result = driver.cuMemAddressFree(at, size);
    return result;
}

/* Out of the table before its address is given back: another thread may get it at once. */
static int let_go(struct range *range) {
    struct piece *piece = range->piece;
    address at = range->at;
    uint64_t size = range->size;
    handle real = piece->real;

    remove_range(range);
    remove_piece(piece);
    return release(at, size, real);
}

/* With the lock: what cuMemAlloc gave this process, and still has not got back. */
static struct range *own_range(address at) {
    struct range *range = range_at(at);

    return range != NULL && range->requested > 0 && !range->freed && same_process() ? range : NULL;
}

/* NOT_OURS, or what cuMemFree answers. */
static int free_ours(address at) {
    struct range *range;
    context owner = NULL;
    int result = NOT_OURS, settled = CUDA_SUCCESS;

    lock_read(&table.lock);
    range = own_range(at);
    if (range != NULL && range->at == at) {
        owner = range->piece->context;
        result = CUDA_SUCCESS;
    }
    unlock_read(&table.lock);
    if (result != CUDA_SUCCESS)
        return result;
    if (!captures_under_way())
        settled = settle(owner);
    lock_write(&table.lock);
    range = own_range(at);
    if (range == NULL || range->at != at) {
        result = CUDA_INVALID_VALUE; /* another thread was quicker */
    } else if (captures_under_way()) {
        range->freed = true;
        atomic_fetch_add(&postponed, 1);
    } else {
        result = let_go(range);
    }
    unlock_write(&table.lock);
    return result != CUDA_SUCCESS ? result : settled;
}

/* The context of one that waits; false: none does. */
static bool owner_of_freed(context *owner) {
    bool found = false;

    lock_read(&table.lock);
    for (size_t n = 0; n < table.range_count && !found; n++)
        if (table.ranges[n]->freed) {
            *owner = table.ranges[n]->piece->context;
            found = true;
        }
    unlock_read(&table.lock);
    return found;
}

void free_postponed(void) {
    context owner;

    while (atomic_load(&postponed) > 0 && same_process() && !captures_under_way() &&
           owner_of_freed(&owner)) {
        settle(owner);
        lock_write(&table.lock);
        for (size_t n = table.range_count; n > 0; n--)
            if (table.ranges[n - 1]->freed && table.ranges[n - 1]->piece->context == owner) {
                let_go(table.ranges[n - 1]);
                atomic_fetch_sub(&postponed, 1);
            }
        unlock_write(&table.lock);
    }
}

void free_all_of(context gone) {
    lock_write(&table.lock);
    for (size_t n = table.range_count; n > 0; n--) {
        struct range *range = table.ranges[n - 1];

        if (range->requested == 0 || range->piece->context != gone)
            continue;
        if (range->freed)
            atomic_fetch_sub(&postponed, 1);
        let_go(range);
    }
    unlock_write(&table.lock);
}

static int free_any(address at) {
    int result = free_ours(at);

    if (result == NOT_OURS) {
        result = driver.cuMemFree_v2(at);
        if (result == CUDA_SUCCESS)
            count_out(at);
    }
    return result;
}

int cuMemFree_v2(address at) {
    int result;

    REAL(cuMemFree_v2);
    gate_enter();
    free_postponed();
    result = free_any(at);
    gate_leave();
    return result;
}

static int free_async(int (*real)(address at, stream s), address at, stream s) {
    int result = free_ours(at);

    if (result != NOT_OURS)
        return result;
    result = real(at, s);
    if (result == CUDA_SUCCESS)
        count_out(at);
    return result;
}

int cuMemFreeAsync(address at, stream s) {
    int result;

    REAL(cuMemFreeAsync);
    gate_enter();
    result = free_async(driver.cuMemFreeAsync, at, s);
    gate_leave();
    return result;
}

int cuMemFreeAsync_ptsz(address at, stream s) {
    int result;

    REAL(cuMemFreeAsync_ptsz);
    gate_enter();
    result = free_async(driver.cuMemFreeAsync_ptsz, at, s);
    gate_leave();
    return result;
}

int cuMemGetAddressRange_v2(address *base, size_t *size, address at) {
    const struct range *range;
    int result = NOT_OURS;

    REAL(cuMemGetAddressRange_v2);
    gate_enter();
    lock_read(&table.lock);
    range = own_range(at);
    if (range != NULL && at - range->at < range->requested) {
        if (base != NULL)
            *base = range->at;
        if (size != NULL)
            *size = range->requested;
        result = CUDA_SUCCESS;
    }
    unlock_read(&table.lock);
    if (result == NOT_OURS)
        result = driver.cuMemGetAddressRange_v2(base, size, at);
    gate_leave();
    return result;
}
