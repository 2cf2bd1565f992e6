/*
 * What programs ask of an address. The driver answers for the mapping; where that differs from what
 * the program has allocated, the answer is put right.
 */
#include "captures.h"
#include "contexts.h"
#include "entries.h"
#include "gate.h"
#include "table.h"

/*
 * With the table's lock. True: answered, whatever the driver said. Which handle types an allocation
 * allows is an int for some programs and 64 bits for others: only what both have is changed.
 */
static bool put_right(int result, void *data, int attribute, address at) {
    const struct range *range = range_at(at);

    if (data == NULL || range == NULL || range->freed)
        return false;
    if (attribute == ATTRIBUTE_HANDLE_TYPES && result == CUDA_SUCCESS)
        *(uint32_t *)data = range->piece->asked.handle_types;
    if (range->requested == 0)
        return false;
    if (attribute == ATTRIBUTE_CONTEXT)
        *(context *)data = range->piece->context;
    else if (attribute == ATTRIBUTE_RANGE_START)
        *(address *)data = range->at;
    else if (attribute == ATTRIBUTE_RANGE_SIZE)
        *(size_t *)data = range->requested;
    else if (attribute == ATTRIBUTE_SYNC_MEMOPS && result == CUDA_SUCCESS)
        *(unsigned char *)data = range->synchronous;
    else
        return false;
    return true;
}

int cuPointerGetAttribute(void *data, int attribute, address at) {
    int result;

    REAL(cuPointerGetAttribute);
    gate_enter();
    result = driver.cuPointerGetAttribute(data, attribute, at);
    lock_read(&table.lock);
    if (put_right(result, data, attribute, at))
        result = CUDA_SUCCESS;
    unlock_read(&table.lock);
    gate_leave();
    return result;
}

int cuPointerGetAttributes(number count, int *attributes, void **data, address at) {
    int result;

    REAL(cuPointerGetAttributes);
    gate_enter();
    result = driver.cuPointerGetAttributes(count, attributes, data, at);
    lock_read(&table.lock);
    for (number n = 0; result == CUDA_SUCCESS && n < count; n++)
        put_right(result, data[n], attributes[n], at);
    unlock_read(&table.lock);
    gate_leave();
    return result;
}

/* A context's copies and memsets that claim to be synchronous are, from now on. */
static int make_synchronous(context owner) {
    bool entered = context_enter(owner);
    number flags = 0;
    int result = driver.cuCtxGetFlags(&flags);

    if (result == CUDA_SUCCESS && (flags & CONTEXT_SYNC_MEMOPS) == 0)
        result = driver.cuCtxSetFlags(flags | CONTEXT_SYNC_MEMOPS);
    if (result == CUDA_SUCCESS && !captures_under_way())
        result = driver.cuCtxSynchronize();
    context_leave(entered);
    return result;
}

/*
 * The driver knows this of what cuMemAlloc gives, and refuses it for VMM memory; for all memory of
 * a context it can be had, and stays with that.
 */
static int set_synchronous(const void *value, address at) {
    bool wanted = value != NULL && *(const int *)value != 0, ours;
    struct range *range;
    context owner = NULL;
    int result = CUDA_SUCCESS;

    lock_read(&table.lock);
    range = range_at(at);
    ours = range != NULL && range->requested > 0 && !range->freed && value != NULL &&
           driver.cuCtxGetFlags != NULL && driver.cuCtxSetFlags != NULL;
    if (ours)
        owner = range->piece->context;
    unlock_read(&table.lock);
    if (!ours)
        return driver.cuPointerSetAttribute(value, ATTRIBUTE_SYNC_MEMOPS, at);
    if (wanted)
        result = make_synchronous(owner);
    lock_write(&table.lock);
    range = range_at(at);
    if (result == CUDA_SUCCESS && range != NULL)
        range->synchronous = wanted;
    unlock_write(&table.lock);
    return result;
}

int cuPointerSetAttribute(const void *value, int attribute, address at) {
    int result;

    REAL(cuPointerSetAttribute);
    gate_enter();
    result = attribute == ATTRIBUTE_SYNC_MEMOPS
                 ? set_synchronous(value, at)
                 : driver.cuPointerSetAttribute(value, attribute, at);
    gate_leave();
    return result;
}
