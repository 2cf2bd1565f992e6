/*
 * See contexts.h. Memory that cuMemAlloc gives belongs to a context and goes with it; VMM memory
 * does not, so what is behind our cuMemAlloc is freed here.
 */
#include "contexts.h"

#include "allocations.h"
#include "captures.h"
#include "counted.h"
#include "entries.h"
#include "gate.h"
#include "lock.h"
#include "system.h"

#define MOST 256

static struct known {
    context context;
    int device;
    bool primary;
} known[MOST];
static size_t count;
static bool too_many; /* some are not known */
static struct lock lock;

static void note(context which, int device, bool primary) {
    size_t n = 0;

    lock_write(&lock);
    while (n < count && known[n].context != which)
        n++;
    if (n == MOST) {
        too_many = true;
    } else {
        if (n == count)
            known[count++] = (struct known){which, device, primary};
        else if (primary)
            known[n].primary = true;
    }
    unlock_write(&lock);
}

static bool is_known(context which) {
    bool found = false;

    lock_read(&lock);
    for (size_t n = 0; n < count && !found; n++)
        found = known[n].context == which;
    unlock_read(&lock);
    return found;
}

static void forget(context which) {
    lock_write(&lock);
    for (size_t n = 0; n < count; n++)
        if (known[n].context == which) {
            known[n] = known[--count];
            break;
        }
    unlock_write(&lock);
    end_captures_of(which);
    count_out_of(which);
    free_all_of(which);
}

static context primary_of(int device) {
    context found = NULL;

    lock_read(&lock);
    for (size_t n = 0; n < count && found == NULL; n++)
        if (known[n].primary && known[n].device == device)
            found = known[n].context;
    unlock_read(&lock);
    return found;
}

bool context_here(context *current, int *device) {
    if (driver.cuCtxGetCurrent == NULL || driver.cuCtxGetDevice == NULL ||
        driver.cuCtxGetCurrent(current) != CUDA_SUCCESS || *current == NULL ||
        driver.cuCtxGetDevice(device) != CUDA_SUCCESS)
        return false;
    if (!is_known(*current))
        note(*current, *device, false);
    return true;
}

size_t contexts_known(context *list, size_t size) {
    size_t n;

    lock_read(&lock);
    for (n = 0; n < count && n < size; n++)
        list[n] = known[n].context;
    n = too_many ? SIZE_MAX : count;
    unlock_read(&lock);
    return n;
}

context context_on(int device) {
    context found = NULL;

    lock_read(&lock);
    for (size_t n = 0; n < count && found == NULL; n++)
        if (known[n].device == device)
            found = known[n].context;
    unlock_read(&lock);
    return found;
}

bool context_enter(context wanted) {
    return wanted != NULL && driver.cuCtxPushCurrent_v2 != NULL &&
           driver.cuCtxPopCurrent_v2 != NULL && driver.cuCtxPushCurrent_v2(wanted) == CUDA_SUCCESS;
}

void context_leave(bool entered) {
    context was;

    if (entered)
        driver.cuCtxPopCurrent_v2(&was);
}

static int created(int result, const context *new, int device, bool primary) {
    if (result == CUDA_SUCCESS)
        note(*new, device, primary);
    gate_leave();
    return result;
}

#define CREATE(symbol, parameters, arguments, device, primary)                                     \
    int symbol parameters {                                                                        \
        REAL(symbol);                                                                              \
        gate_enter();                                                                              \
        return created(driver.symbol arguments, new, device, primary);                             \
    }

CREATE(cuCtxCreate_v2, (context * new, number flags, int device), (new, flags, device), device,
       false)
CREATE(cuCtxCreate_v3, (context * new, void *affinity, int n, number flags, int device),
       (new, affinity, n, flags, device), device, false)
CREATE(cuCtxCreate_v4, (context * new, void *how, number flags, int device),
       (new, how, flags, device), device, false)
CREATE(cuDevicePrimaryCtxRetain, (context * new, int device), (new, device), device, true)

int cuCtxFromGreenCtx(context *new, void *green) {
    int result, device = -1;

    REAL(cuCtxFromGreenCtx);
    gate_enter();
    result = driver.cuCtxFromGreenCtx(new, green);
    if (result == CUDA_SUCCESS && context_enter(*new)) {
        if (driver.cuCtxGetDevice(&device) == CUDA_SUCCESS)
            note(*new, device, false);
        context_leave(true);
    }
    gate_leave();
    return result;
}

int cuCtxDestroy_v2(context old) {
    int result;

    REAL(cuCtxDestroy_v2);
    gate_enter();
    result = driver.cuCtxDestroy_v2(old);
    if (result == CUDA_SUCCESS)
        forget(old);
    gate_leave();
    return result;
}

/* Whoever retained it last has gone: so have the context and all that is in it. */
static int released(int result, int device) {
    context primary = primary_of(device);
    number flags;
    int active = 1;

    if (result == CUDA_SUCCESS && primary != NULL && driver.cuDevicePrimaryCtxGetState != NULL &&
        driver.cuDevicePrimaryCtxGetState(device, &flags, &active) == CUDA_SUCCESS && !active)
        forget(primary);
    gate_leave();
    return result;
}

#define RELEASE(symbol)                                                                            \
    int symbol(int device) {                                                                       \
        REAL(symbol);                                                                              \
        gate_enter();                                                                              \
        return released(driver.symbol(device), device);                                            \
    }

RELEASE(cuDevicePrimaryCtxRelease)
RELEASE(cuDevicePrimaryCtxRelease_v2)
RELEASE(cuDevicePrimaryCtxReset)
RELEASE(cuDevicePrimaryCtxReset_v2)
