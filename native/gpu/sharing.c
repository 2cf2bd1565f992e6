/*
 * Memory that more than one process has, or more than the table knows of. What the program has
 * handed out cannot be moved: the others would go on with what they have. What it has got cannot
 * even be restored by the driver.
 */
#include "contexts.h"
#include "control.h"
#include "counted.h"
#include "entries.h"
#include "gate.h"
#include "system.h"
#include "table.h"

static void keep(struct piece *piece, enum thaw_gpu_left why) {
    if (piece->kept == MOVABLE)
        piece->kept = why;
}

/* With the lock: all pieces that are mapped somewhere in there. */
static void keep_all(address at, size_t size, enum thaw_gpu_left why) {
    for (size_t n = range_from(at); n < table.range_count && table.ranges[n]->at < at + size; n++)
        keep(table.ranges[n]->piece, why);
}

/* With the lock. What was not asked for when it was made cannot be had, as with the driver. */
static int export(struct piece *piece, void *shared, number type, flags64 flags) {
    int result;

    if (piece->kept != THAW_GPU_LEFT_IMPORTED && (piece->asked.handle_types & type) == 0)
        return CUDA_INVALID_VALUE;
    result = driver.cuMemExportToShareableHandle(shared, piece->real, type, flags);
    if (result == CUDA_SUCCESS)
        keep(piece, THAW_GPU_LEFT_EXPORTED);
    return result;
}

int cuMemExportToShareableHandle(void *shared, handle memory, number type, flags64 flags) {
    struct piece *piece;
    int result;

    REAL(cuMemExportToShareableHandle);
    gate_enter();
    lock_write(&table.lock);
    piece = piece_by_handle(memory);
    if (piece != NULL)
        result = export(piece, shared, type, flags);
    else
        result = driver.cuMemExportToShareableHandle(shared, memory, type, flags);
    unlock_write(&table.lock);
    gate_leave();
    return result;
}

/* Into the table, so that it is known for as long as it is there. */
static int take_note(handle *memory) {
    struct properties wanted;
    struct piece *piece;

    __builtin_memset(&wanted, 0, sizeof(wanted));
    if (driver.cuMemGetAllocationPropertiesFromHandle != NULL)
        driver.cuMemGetAllocationPropertiesFromHandle(&wanted, *memory);
    lock_write(&table.lock);
    piece = add_piece(0, *memory, &wanted);
    if (piece != NULL) {
        piece->users = 1;
        piece->kept = THAW_GPU_LEFT_IMPORTED;
        *memory = handle_of(piece);
    }
    unlock_write(&table.lock);
    if (piece != NULL)
        return CUDA_SUCCESS;
    driver.cuMemRelease(*memory);
    return CUDA_OUT_OF_MEMORY;
}

int cuMemImportFromShareableHandle(handle *memory, void *shared, number type) {
    int result;

    REAL(cuMemImportFromShareableHandle);
    gate_enter();
    result = driver.cuMemImportFromShareableHandle(memory, shared, type);
    if (result == CUDA_SUCCESS && !opted_out() && control_ready())
        result = take_note(memory);
    gate_leave();
    return result;
}

int cuMemGetHandleForAddressRange(void *shared, address at, size_t size, number type,
                                  flags64 flags) {
    int result;

    REAL(cuMemGetHandleForAddressRange);
    gate_enter();
    lock_write(&table.lock);
    result = driver.cuMemGetHandleForAddressRange(shared, at, size, type, flags);
    if (result == CUDA_SUCCESS)
        keep_all(at, size, THAW_GPU_LEFT_EXPORTED);
    unlock_write(&table.lock);
    if (result == CUDA_SUCCESS)
        count_as(at, THAW_GPU_LEFT_EXPORTED);
    gate_leave();
    return result;
}

/*
 * A multicast group of another process's has a handle of ours here. Calls for groups may wait for
 * what another thread does for another device, so the lock is not held then.
 */
static handle real_of(handle group) {
    const struct piece *piece;

    lock_read(&table.lock);
    piece = piece_by_handle(group);
    if (piece != NULL)
        group = piece->real;
    unlock_read(&table.lock);
    return group;
}

/* A group binds memory for good. */
static handle bound(handle memory) {
    struct piece *piece;

    lock_write(&table.lock);
    piece = piece_by_handle(memory);
    if (piece != NULL) {
        keep(piece, THAW_GPU_LEFT_OTHER);
        memory = piece->real;
    }
    unlock_write(&table.lock);
    return memory;
}

static void bound_at(address at, size_t size) {
    lock_write(&table.lock);
    keep_all(at, size, THAW_GPU_LEFT_OTHER);
    unlock_write(&table.lock);
}

int cuMulticastAddDevice(handle group, int device) {
    int result;

    REAL(cuMulticastAddDevice);
    gate_enter();
    result = driver.cuMulticastAddDevice(real_of(group), device);
    gate_leave();
    return result;
}

int cuMulticastUnbind(handle group, int device, size_t at, size_t size) {
    int result;

    REAL(cuMulticastUnbind);
    gate_enter();
    result = driver.cuMulticastUnbind(real_of(group), device, at, size);
    gate_leave();
    return result;
}

int cuMulticastBindMem(handle group, size_t at, handle memory, size_t from, size_t size,
                       flags64 flags) {
    int result;

    REAL(cuMulticastBindMem);
    gate_enter();
    result = driver.cuMulticastBindMem(real_of(group), at, bound(memory), from, size, flags);
    gate_leave();
    return result;
}

int cuMulticastBindMem_v2(handle group, int device, size_t at, handle memory, size_t from,
                          size_t size, flags64 flags) {
    int result;

    REAL(cuMulticastBindMem_v2);
    gate_enter();
    result = driver.cuMulticastBindMem_v2(real_of(group), device, at, bound(memory), from, size,
                                          flags);
    gate_leave();
    return result;
}

int cuMulticastBindAddr(handle group, size_t at, address memory, size_t size, flags64 flags) {
    int result;

    REAL(cuMulticastBindAddr);
    gate_enter();
    bound_at(memory, size);
    result = driver.cuMulticastBindAddr(real_of(group), at, memory, size, flags);
    gate_leave();
    return result;
}

int cuMulticastBindAddr_v2(handle group, int device, size_t at, address memory, size_t size,
                           flags64 flags) {
    int result;

    REAL(cuMulticastBindAddr_v2);
    gate_enter();
    bound_at(memory, size);
    result = driver.cuMulticastBindAddr_v2(real_of(group), device, at, memory, size, flags);
    gate_leave();
    return result;
}

/* One after the other, with the real handle in a copy: the list is the program's. */
static int map_arrays(int (*real)(struct array_mapping *list, number count, stream s),
                      const struct array_mapping *list, number count, stream s) {
    int result = CUDA_SUCCESS;

    lock_write(&table.lock);
    for (number n = 0; n < count && result == CUDA_SUCCESS; n++) {
        struct array_mapping one = list[n];
        struct piece *piece = piece_by_handle(one.memory);

        if (piece != NULL) {
            one.memory = piece->real;
            keep(piece, THAW_GPU_LEFT_OTHER);
        }
        result = real(&one, 1, s);
    }
    unlock_write(&table.lock);
    return result;
}

int cuMemMapArrayAsync(struct array_mapping *list, number count, stream s) {
    int result;

    REAL(cuMemMapArrayAsync);
    gate_enter();
    result = map_arrays(driver.cuMemMapArrayAsync, list, count, s);
    gate_leave();
    return result;
}

int cuMemMapArrayAsync_ptsz(struct array_mapping *list, number count, stream s) {
    int result;

    REAL(cuMemMapArrayAsync_ptsz);
    gate_enter();
    result = map_arrays(driver.cuMemMapArrayAsync_ptsz, list, count, s);
    gate_leave();
    return result;
}

/* The driver's words for memory of this kind: it says so of all VMM memory. */
static bool refuses_ipc(address at) {
    static atomic_bool said;
    const struct range *range;
    bool ours;

    lock_read(&table.lock);
    range = range_at(at);
    ours = range != NULL && range->requested > 0;
    unlock_read(&table.lock);
    if (ours && !atomic_exchange(&said, true))
        system_say("device memory that Thaw can move cannot be shared by CUDA IPC "
                   "(set THAW_GPU_MEMORY=driver for programs that need this)");
    return ours;
}

static address base_of(address at, size_t *size) {
    address base = at;

    *size = 0;
    if (driver.cuMemGetAddressRange_v2 == NULL ||
        driver.cuMemGetAddressRange_v2(&base, size, at) != CUDA_SUCCESS)
        return at;
    return base;
}

int cuIpcGetMemHandle(struct ipc_handle *ipc, address at) {
    size_t size;
    int result;

    REAL(cuIpcGetMemHandle);
    gate_enter();
    if (refuses_ipc(at)) {
        result = CUDA_NOT_SUPPORTED;
    } else {
        result = driver.cuIpcGetMemHandle(ipc, at);
        if (result == CUDA_SUCCESS)
            count_as(base_of(at, &size), THAW_GPU_LEFT_EXPORTED);
    }
    gate_leave();
    return result;
}

/* Inside the gate, which is left. */
static int opened(int result, const address *at, context here) {
    if (result == CUDA_SUCCESS) {
        size_t size;

        base_of(*at, &size);
        count_opened(*at, size > 0 ? size : 1, here);
    }
    gate_leave();
    return result;
}

/* What is opened in a context is closed when that goes. */
static context here(void) {
    context current;
    int device;

    return context_here(&current, &device) ? current : NULL;
}

int cuIpcOpenMemHandle(address *at, struct ipc_handle ipc, number flags) {
    REAL(cuIpcOpenMemHandle);
    gate_enter();
    return opened(driver.cuIpcOpenMemHandle(at, ipc, flags), at, here());
}

int cuIpcOpenMemHandle_v2(address *at, struct ipc_handle ipc, number flags) {
    REAL(cuIpcOpenMemHandle_v2);
    gate_enter();
    return opened(driver.cuIpcOpenMemHandle_v2(at, ipc, flags), at, here());
}

/* A pool belongs to a device, not to a context. */
int cuMemPoolImportPointer(address *at, void *pool, void *data) {
    REAL(cuMemPoolImportPointer);
    gate_enter();
    return opened(driver.cuMemPoolImportPointer(at, pool, data), at, NULL);
}

int cuIpcCloseMemHandle(address at) {
    int result;

    REAL(cuIpcCloseMemHandle);
    gate_enter();
    result = driver.cuIpcCloseMemHandle(at);
    if (result == CUDA_SUCCESS)
        count_out(at);
    gate_leave();
    return result;
}
