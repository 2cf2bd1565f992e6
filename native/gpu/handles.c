/*
 * VMM memory that the program makes itself. It gets handles of ours for it: the real one is
 * another after memory has been given back. What stands for itself (a multicast group, what came
 * from before the library was in use) is passed on as it is.
 *
 * As with the driver, memory lives for as long as the program holds a handle of it or has it
 * mapped; the real handle is kept that long, too: memory without one could not be exported any
 * more.
 */
#include "control.h"
#include "entries.h"
#include "gate.h"
#include "table.h"

static bool can_move(size_t size, const struct properties *wanted, flags64 flags) {
    return flags == 0 && size % UNIT == 0 && wanted->type == TYPE_PINNED &&
           wanted->location.type == LOCATION_DEVICE && wanted->location.id >= 0 &&
           wanted->location.id < THAW_GPU_DEVICES && wanted->meta == NULL &&
           (wanted->handle_types == 0 || wanted->handle_types == TYPE_DESCRIPTOR) &&
           wanted->flags.compression == 0 && wanted->flags.usage == 0;
}

static bool taking_over(void) {
    return !opted_out() && driver.cuMemRelease != NULL &&
           driver.cuMemMap != NULL && driver.cuMemUnmap != NULL && driver.cuMemSetAccess != NULL &&
           driver.cuMemExportToShareableHandle != NULL &&
           driver.cuMemImportFromShareableHandle != NULL && control_ready();
}

static int create(handle *memory, size_t size, const struct properties *wanted, flags64 flags) {
    struct properties changed = *wanted;
    bool movable = can_move(size, wanted, flags);
    struct piece *piece;
    handle real;
    int result;

    changed.handle_types |= movable ? TYPE_DESCRIPTOR : 0;
    result = driver.cuMemCreate(&real, size, &changed, flags);
    if (movable && result != CUDA_SUCCESS && result != CUDA_OUT_OF_MEMORY) {
        movable = false;
        result = driver.cuMemCreate(&real, size, wanted, flags);
    }
    if (result != CUDA_SUCCESS)
        return result;
    lock_write(&table.lock);
    piece = add_piece(size, real, wanted);
    if (piece != NULL) {
        piece->users = 1;
        piece->kept = movable ? MOVABLE : THAW_GPU_LEFT_OTHER;
        *memory = handle_of(piece);
    }
    unlock_write(&table.lock);
    if (piece != NULL)
        return CUDA_SUCCESS;
    driver.cuMemRelease(real);
    return CUDA_OUT_OF_MEMORY;
}

int cuMemCreate(handle *memory, size_t size, const struct properties *wanted, flags64 flags) {
    int result;

    REAL(cuMemCreate);
    gate_enter();
    if (memory != NULL && wanted != NULL && taking_over())
        result = create(memory, size, wanted, flags);
    else
        result = driver.cuMemCreate(memory, size, wanted, flags);
    gate_leave();
    return result;
}

/* With the lock. The memory itself, if nothing needs it any more. */
static int drop_unused(struct piece *piece) {
    handle real = piece->real;

    if (!is_unused(piece))
        return CUDA_SUCCESS;
    remove_piece(piece);
    return driver.cuMemRelease(real);
}

int cuMemRelease(handle memory) {
    struct piece *piece;
    int result;

    REAL(cuMemRelease);
    gate_enter();
    lock_write(&table.lock);
    piece = piece_by_handle(memory);
    if (piece != NULL) {
        piece->users--;
        result = drop_unused(piece);
    } else {
        result = driver.cuMemRelease(memory);
    }
    unlock_write(&table.lock);
    gate_leave();
    return result;
}

/* With the lock. Memory from cuMemAlloc has no handle that a program could ask for. */
static int retain(handle *memory, void *at) {
    struct range *range = range_at((address)(uintptr_t)at);

    if (range == NULL)
        return driver.cuMemRetainAllocationHandle(memory, at);
    if (range->requested > 0 || memory == NULL)
        return CUDA_INVALID_VALUE;
    range->piece->users++;
    *memory = handle_of(range->piece);
    return CUDA_SUCCESS;
}

int cuMemRetainAllocationHandle(handle *memory, void *at) {
    int result;

    REAL(cuMemRetainAllocationHandle);
    gate_enter();
    lock_write(&table.lock);
    result = retain(memory, at);
    unlock_write(&table.lock);
    gate_leave();
    return result;
}

int cuMemGetAllocationPropertiesFromHandle(struct properties *wanted, handle memory) {
    const struct piece *piece;
    int result = CUDA_SUCCESS;

    REAL(cuMemGetAllocationPropertiesFromHandle);
    gate_enter();
    lock_read(&table.lock);
    piece = piece_by_handle(memory);
    if (piece != NULL && piece->kept != THAW_GPU_LEFT_IMPORTED && wanted != NULL)
        *wanted = piece->asked;
    else
        result = driver.cuMemGetAllocationPropertiesFromHandle(
            wanted, piece != NULL ? piece->real : memory);
    unlock_read(&table.lock);
    gate_leave();
    return result;
}

/* With the lock. How large imported memory is shows only here. */
static int mapped(struct piece *piece, address at, size_t size, size_t offset) {
    if (add_range(piece, at, size, offset) == NULL) {
        driver.cuMemUnmap(at, size);
        return CUDA_OUT_OF_MEMORY;
    }
    if (piece->size < offset + size)
        piece->size = offset + size;
    return CUDA_SUCCESS;
}

/*
 * With the lock, which is let go for what may be a multicast group: mapping one may wait until
 * another thread has added its device. The program may release the handle meanwhile.
 */
static int map(struct piece *piece, address at, size_t size, size_t offset, flags64 flags) {
    bool imported = piece->kept == THAW_GPU_LEFT_IMPORTED;
    handle real = piece->real;
    int result;

    piece->calls++;
    if (imported)
        unlock_write(&table.lock);
    result = driver.cuMemMap(at, size, offset, real, flags);
    if (imported)
        lock_write(&table.lock);
    piece->calls--;
    if (result == CUDA_SUCCESS)
        result = mapped(piece, at, size, offset);
    drop_unused(piece);
    return result;
}

int cuMemMap(address at, size_t size, size_t offset, handle memory, flags64 flags) {
    struct piece *piece;
    int result;

    REAL(cuMemMap);
    gate_enter();
    lock_write(&table.lock);
    piece = piece_by_handle(memory);
    if (piece != NULL)
        result = map(piece, at, size, offset, flags);
    unlock_write(&table.lock);
    if (piece == NULL)
        result = driver.cuMemMap(at, size, offset, memory, flags);
    gate_leave();
    return result;
}

/* With the lock: the first range that lies in [at, at + size), from number *n on. */
static struct range *next_range(size_t *n, address at, size_t size) {
    if (*n >= table.range_count || table.ranges[*n]->at < at ||
        table.ranges[*n]->at + table.ranges[*n]->size > at + size)
        return NULL;
    return table.ranges[(*n)++];
}

/* With the lock. What cuMemAlloc gave is not the program's to unmap. */
static int unmap(address at, size_t size) {
    size_t first = range_from(at), n = first;
    int result;

    for (struct range *range; (range = next_range(&n, at, size)) != NULL;)
        if (range->requested > 0)
            return CUDA_INVALID_VALUE;
    result = driver.cuMemUnmap(at, size);
    n = first;
    for (struct range *range;
         result == CUDA_SUCCESS && (range = next_range(&n, at, size)) != NULL; n = first) {
        struct piece *piece = range->piece;

        remove_range(range);
        result = drop_unused(piece);
    }
    return result;
}

int cuMemUnmap(address at, size_t size) {
    int result;

    REAL(cuMemUnmap);
    gate_enter();
    lock_write(&table.lock);
    result = unmap(at, size);
    unlock_write(&table.lock);
    gate_leave();
    return result;
}

/* Memory that the host reaches, too, stays with the driver. */
static void note_access(struct range *range, const struct access *given) {
    uint64_t bit = UINT64_C(1) << (given->location.id & (THAW_GPU_DEVICES - 1));

    if (given->location.type != LOCATION_DEVICE || given->location.id < 0 ||
        given->location.id >= THAW_GPU_DEVICES) {
        if (range->piece->kept == MOVABLE)
            range->piece->kept = THAW_GPU_LEFT_OTHER;
        return;
    }
    range->readers = given->flags != 0 ? range->readers | bit : range->readers & ~bit;
    range->writers =
        given->flags == ACCESS_WRITE ? range->writers | bit : range->writers & ~bit;
}

int cuMemSetAccess(address at, size_t size, const struct access *list, size_t count) {
    size_t n;
    int result;

    REAL(cuMemSetAccess);
    gate_enter();
    lock_write(&table.lock);
    result = driver.cuMemSetAccess(at, size, list, count);
    n = range_from(at);
    for (struct range *range;
         result == CUDA_SUCCESS && (range = next_range(&n, at, size)) != NULL;)
        for (size_t k = 0; k < count; k++)
            note_access(range, &list[k]);
    unlock_write(&table.lock);
    gate_leave();
    return result;
}
