/* Allocations that the driver keeps, whatever their size: they are only counted. */
#include "counted.h"
#include "entries.h"
#include "gate.h"

#define DRAW(symbol, parameters, arguments, size, kind)                                            \
    int symbol parameters {                                                                        \
        int result;                                                                                \
                                                                                                   \
        REAL(symbol);                                                                              \
        gate_enter();                                                                              \
        result = driver.symbol arguments;                                                          \
        if (result == CUDA_SUCCESS)                                                                \
            count_in(*at, size, kind);                                                             \
        gate_leave();                                                                              \
        return result;                                                                             \
    }

DRAW(cuMemAllocPitch_v2,
     (address * at, size_t *pitch, size_t width, size_t height, number element),
     (at, pitch, width, height, element), *pitch *height, THAW_GPU_LEFT_OTHER)
DRAW(cuMemAllocManaged, (address * at, size_t size, number flags), (at, size, flags), size,
     THAW_GPU_LEFT_MANAGED)
DRAW(cuMemAllocAsync, (address * at, size_t size, stream s), (at, size, s), size,
     THAW_GPU_LEFT_POOL)
DRAW(cuMemAllocAsync_ptsz, (address * at, size_t size, stream s), (at, size, s), size,
     THAW_GPU_LEFT_POOL)
DRAW(cuMemAllocFromPoolAsync, (address * at, size_t size, void *pool, stream s),
     (at, size, pool, s), size, THAW_GPU_LEFT_POOL)
DRAW(cuMemAllocFromPoolAsync_ptsz, (address * at, size_t size, void *pool, stream s),
     (at, size, pool, s), size, THAW_GPU_LEFT_POOL)
