/*
 * Memory for which the driver makes no descriptor: it is copied, on its device, into new memory,
 * which takes its place at all of its addresses. Its old memory goes before the next piece's turn
 * comes, so no more room is needed than for the largest piece.
 */
#include "allocations.h"
#include "contexts.h"
#include "entries.h"
#include "moving.h"

/* At an address where nobody else looks. */
static int show(address at, handle memory, const struct piece *piece, const char **call) {
    const struct access all = {{LOCATION_DEVICE, piece->device}, ACCESS_WRITE};
    int result = driver.cuMemMap(at, piece->size, 0, memory, 0);

    *call = "cuMemMap";
    if (result != CUDA_SUCCESS)
        return result;
    *call = "cuMemSetAccess";
    result = driver.cuMemSetAccess(at, piece->size, &all, 1);
    if (result != CUDA_SUCCESS)
        driver.cuMemUnmap(at, piece->size);
    return result;
}

/* Nothing else is at work on the GPU. */
static int copy(address to, address from, uint64_t size, const char **call) {
    int result = driver.cuMemcpyDtoDAsync_v2(to, from, size, NULL);

    *call = "cuMemcpyDtoDAsync";
    if (result != CUDA_SUCCESS)
        return result;
    *call = "cuCtxSynchronize";
    return driver.cuCtxSynchronize();
}

/* What is still mapped somewhere would take its room for ever. The first failure. */
static int hide(address at, uint64_t size, int before, const char **call) {
    int result = driver.cuMemUnmap(at, size);

    if (before != CUDA_SUCCESS)
        return before;
    *call = "cuMemUnmap";
    return result;
}

static int fill(const struct piece *piece, handle fresh, const char **call) {
    address from, to;
    uint64_t size = piece->size;
    int result = driver.cuMemAddressReserve(&from, 2 * size, granularity_of(piece->device), 0, 0);

    *call = "cuMemAddressReserve";
    if (result != CUDA_SUCCESS)
        return result;
    to = from + size;
    result = show(from, piece->real, piece, call);
    if (result == CUDA_SUCCESS) {
        result = show(to, fresh, piece, call);
        if (result == CUDA_SUCCESS)
            result = hide(to, size, copy(to, from, size, call), call);
        result = hide(from, size, result, call);
    }
    driver.cuMemAddressFree(from, 2 * size);
    return result;
}

static int replace(struct piece *piece, handle fresh, const char **call) {
    const char *ignored;
    handle old = piece->real;
    int result = unmap_piece(piece);

    *call = "cuMemUnmap";
    if (result != CUDA_SUCCESS)
        return result;
    piece->real = fresh;
    result = map_piece(piece, call);
    if (result != CUDA_SUCCESS) {
        piece->real = old;
        piece->away = map_piece(piece, &ignored) != CUDA_SUCCESS;
        return result;
    }
    driver.cuMemRelease(old);
    piece->given = false;
    return CUDA_SUCCESS;
}

int rehome(struct piece *piece, const char **call) {
    struct properties wanted = piece->asked;
    bool entered = context_enter(context_on(piece->device));
    handle fresh;
    int result = CUDA_INVALID_CONTEXT;

    *call = "cuCtxPushCurrent";
    if (entered && driver.cuMemcpyDtoDAsync_v2 != NULL) {
        *call = "cuMemCreate";
        wanted.handle_types |= TYPE_DESCRIPTOR;
        result = driver.cuMemCreate(&fresh, piece->size, &wanted, 0);
        if (result == CUDA_SUCCESS) {
            result = fill(piece, fresh, call);
            if (result == CUDA_SUCCESS)
                result = replace(piece, fresh, call);
            if (result != CUDA_SUCCESS)
                driver.cuMemRelease(fresh);
        }
    }
    context_leave(entered);
    return result;
}
