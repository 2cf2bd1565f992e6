/*
 * Peer access: a context that has enabled it reaches all that cuMemAlloc gives on the other device,
 * then and later. VMM memory has to be told so, piece by piece. The program's own VMM memory is its
 * own affair.
 */
#include "contexts.h"
#include "entries.h"
#include "gate.h"
#include "table.h"

/* How many contexts of the first device have access to the second one's memory. */
static unsigned short access[THAW_GPU_DEVICES][THAW_GPU_DEVICES];

uint64_t reached_from(int device) {
    uint64_t devices = UINT64_C(1) << device;

    for (int other = 0; other < THAW_GPU_DEVICES; other++)
        if (access[other][device] > 0)
            devices |= UINT64_C(1) << other;
    return devices;
}

static bool device_of(context which, int *device) {
    bool entered = context_enter(which);
    int result = driver.cuCtxGetDevice(device);

    context_leave(entered);
    return entered && result == CUDA_SUCCESS && *device >= 0 && *device < THAW_GPU_DEVICES;
}

/* Both ends; false: they are one, or beyond what is kept account of. */
static bool ends(context peer, int *from, int *to) {
    context current;

    return context_here(&current, from) && *from >= 0 && *from < THAW_GPU_DEVICES &&
           device_of(peer, to) && *from != *to;
}

/* With the table's lock. The first failure, if one fails; all are tried. */
static int set(int from, int to, bool may) {
    const struct access none = {{LOCATION_DEVICE, from}, 0};
    uint64_t bit = UINT64_C(1) << from;
    int result = CUDA_SUCCESS;

    for (size_t n = 0; n < table.range_count; n++) {
        struct range *range = table.ranges[n];
        int said;

        if (range->requested == 0 || range->piece->device != to)
            continue;
        range->readers = may ? range->readers | bit : range->readers & ~bit;
        range->writers = may ? range->writers | bit : range->writers & ~bit;
        said = may ? grant(range) : driver.cuMemSetAccess(range->at, range->size, &none, 1);
        if (result == CUDA_SUCCESS)
            result = said;
    }
    return result;
}

static int enable(context peer, number flags) {
    int result = driver.cuCtxEnablePeerAccess(peer, flags);
    int from, to;

    if (result != CUDA_SUCCESS || !same_process() || !ends(peer, &from, &to))
        return result;
    lock_write(&table.lock);
    if (access[from][to]++ == 0)
        result = set(from, to, true);
    if (result != CUDA_SUCCESS) {
        access[from][to]--;
        set(from, to, false);
        driver.cuCtxDisablePeerAccess(peer);
    }
    unlock_write(&table.lock);
    return result;
}

static int disable(context peer) {
    int result = driver.cuCtxDisablePeerAccess(peer);
    int from, to;

    if (result != CUDA_SUCCESS || !same_process() || !ends(peer, &from, &to))
        return result;
    lock_write(&table.lock);
    if (access[from][to] > 0 && --access[from][to] == 0)
        result = set(from, to, false);
    unlock_write(&table.lock);
    return result;
}

int cuCtxEnablePeerAccess(context peer, number flags) {
    int result;

    REAL(cuCtxEnablePeerAccess);
    gate_enter();
    result = enable(peer, flags);
    gate_leave();
    return result;
}

int cuCtxDisablePeerAccess(context peer) {
    int result;

    REAL(cuCtxDisablePeerAccess);
    gate_enter();
    result = disable(peer);
    gate_leave();
    return result;
}
