/*
 * The driver's functions that the library takes over, in one table: what a program gets that asks
 * for one, and where the real one is.
 *
 * A line: the exported symbol; its name and version for cuGetProcAddress (1000 * major + 10 * minor
 * of the CUDA that brought it); its parameters and how they are passed on. BOTH is two symbols: the
 * second, with the suffix, is for programs whose default stream is each thread's own.
 */
#pragma once

#include "driver.h"
#include "graphs.h"

#include <stdbool.h>

#define BOTH(X, suffix, symbol, name, version, parameters, arguments)                              \
    X(symbol, name, version, STREAM_LEGACY, parameters, arguments)                                 \
    X(symbol##suffix, name, version, STREAM_THREAD, parameters, arguments)

/* Passed on as they are, once the gate is open: they give the GPU work or ask it (calls.c). */
#define LAUNCHES(X)                                                                                \
    X(cuLaunch, cuLaunch, 2000, STREAM_ANY, (void *f), (f))                                        \
    X(cuLaunchGrid, cuLaunchGrid, 2000, STREAM_ANY, (void *f, int w, int h), (f, w, h))            \
    X(cuLaunchGridAsync, cuLaunchGridAsync, 2000, STREAM_ANY, (void *f, int w, int h, stream s),   \
      (f, w, h, s))                                                                                \
    BOTH(X, _ptsz, cuLaunchKernel, cuLaunchKernel, 4000,                                           \
         (void *f, number gx, number gy, number gz, number bx, number by, number bz, number bytes, \
          stream s, void **parameters, void **extra),                                              \
         (f, gx, gy, gz, bx, by, bz, bytes, s, parameters, extra))                                 \
    BOTH(X, _ptsz, cuLaunchKernelEx, cuLaunchKernelEx, 11060,                                      \
         (const void *config, void *f, void **parameters, void **extra),                           \
         (config, f, parameters, extra))                                                           \
    BOTH(X, _ptsz, cuLaunchCooperativeKernel, cuLaunchCooperativeKernel, 9000,                     \
         (void *f, number gx, number gy, number gz, number bx, number by, number bz, number bytes, \
          stream s, void **parameters),                                                            \
         (f, gx, gy, gz, bx, by, bz, bytes, s, parameters))                                        \
    X(cuLaunchCooperativeKernelMultiDevice, cuLaunchCooperativeKernelMultiDevice, 9000,            \
      STREAM_ANY, (void *list, number count, number flags), (list, count, flags))                  \
    BOTH(X, _ptsz, cuLaunchHostFunc, cuLaunchHostFunc, 10000, (stream s, void *f, void *data),     \
         (s, f, data))                                                                             \
    BOTH(X, _ptsz, cuGraphLaunch, cuGraphLaunch, 10000, (void *graph, stream s), (graph, s))       \
    BOTH(X, _ptsz, cuGraphUpload, cuGraphUpload, 11010, (void *graph, stream s), (graph, s))

#define STREAM_WORDS(X)                                                                            \
    BOTH(X, _ptsz, cuStreamWriteValue32, cuStreamWriteValue32, 8000,                               \
         (stream s, address at, uint32_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWriteValue32_v2, cuStreamWriteValue32, 11070,                           \
         (stream s, address at, uint32_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWriteValue64, cuStreamWriteValue64, 9000,                               \
         (stream s, address at, uint64_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWriteValue64_v2, cuStreamWriteValue64, 11070,                           \
         (stream s, address at, uint64_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWaitValue32, cuStreamWaitValue32, 8000,                                 \
         (stream s, address at, uint32_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWaitValue32_v2, cuStreamWaitValue32, 11070,                             \
         (stream s, address at, uint32_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWaitValue64, cuStreamWaitValue64, 9000,                                 \
         (stream s, address at, uint64_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamWaitValue64_v2, cuStreamWaitValue64, 11070,                             \
         (stream s, address at, uint64_t value, number flags), (s, at, value, flags))              \
    BOTH(X, _ptsz, cuStreamBatchMemOp, cuStreamBatchMemOp, 8000,                                   \
         (stream s, number count, void *list, number flags), (s, count, list, flags))              \
    BOTH(X, _ptsz, cuStreamBatchMemOp_v2, cuStreamBatchMemOp, 11070,                               \
         (stream s, number count, void *list, number flags), (s, count, list, flags))

#define COPIES(X)                                                                                  \
    BOTH(X, _ptds, cuMemcpy, cuMemcpy, 4000, (address to, address from, size_t size),              \
         (to, from, size))                                                                         \
    BOTH(X, _ptds, cuMemcpyPeer, cuMemcpyPeer, 4000,                                               \
         (address to, context there, address from, context here, size_t size),                     \
         (to, there, from, here, size))                                                            \
    BOTH(X, _ptds, cuMemcpyHtoD_v2, cuMemcpyHtoD, 3020,                                            \
         (address to, const void *from, size_t size), (to, from, size))                            \
    BOTH(X, _ptds, cuMemcpyDtoH_v2, cuMemcpyDtoH, 3020, (void *to, address from, size_t size),     \
         (to, from, size))                                                                         \
    BOTH(X, _ptds, cuMemcpyDtoD_v2, cuMemcpyDtoD, 3020, (address to, address from, size_t size),   \
         (to, from, size))                                                                         \
    BOTH(X, _ptds, cuMemcpyDtoA_v2, cuMemcpyDtoA, 3020,                                            \
         (void *to, size_t at, address from, size_t size), (to, at, from, size))                   \
    BOTH(X, _ptds, cuMemcpyAtoD_v2, cuMemcpyAtoD, 3020,                                            \
         (address to, void *from, size_t at, size_t size), (to, from, at, size))                   \
    BOTH(X, _ptds, cuMemcpy2D_v2, cuMemcpy2D, 3020, (const void *copy), (copy))                    \
    BOTH(X, _ptds, cuMemcpy2DUnaligned_v2, cuMemcpy2DUnaligned, 3020, (const void *copy), (copy))  \
    BOTH(X, _ptds, cuMemcpy3D_v2, cuMemcpy3D, 3020, (const void *copy), (copy))                    \
    BOTH(X, _ptds, cuMemcpy3DPeer, cuMemcpy3DPeer, 4000, (const void *copy), (copy))

#define COPIES_ASYNC(X)                                                                            \
    BOTH(X, _ptsz, cuMemcpyAsync, cuMemcpyAsync, 4000,                                             \
         (address to, address from, size_t size, stream s), (to, from, size, s))                   \
    BOTH(X, _ptsz, cuMemcpyPeerAsync, cuMemcpyPeerAsync, 4000,                                     \
         (address to, context there, address from, context here, size_t size, stream s),           \
         (to, there, from, here, size, s))                                                         \
    BOTH(X, _ptsz, cuMemcpyHtoDAsync_v2, cuMemcpyHtoDAsync, 3020,                                  \
         (address to, const void *from, size_t size, stream s), (to, from, size, s))               \
    BOTH(X, _ptsz, cuMemcpyDtoHAsync_v2, cuMemcpyDtoHAsync, 3020,                                  \
         (void *to, address from, size_t size, stream s), (to, from, size, s))                     \
    BOTH(X, _ptsz, cuMemcpyDtoDAsync_v2, cuMemcpyDtoDAsync, 3020,                                  \
         (address to, address from, size_t size, stream s), (to, from, size, s))                   \
    BOTH(X, _ptsz, cuMemcpy2DAsync_v2, cuMemcpy2DAsync, 3020, (const void *copy, stream s),        \
         (copy, s))                                                                                \
    BOTH(X, _ptsz, cuMemcpy3DAsync_v2, cuMemcpy3DAsync, 3020, (const void *copy, stream s),        \
         (copy, s))                                                                                \
    BOTH(X, _ptsz, cuMemcpy3DPeerAsync, cuMemcpy3DPeerAsync, 4000, (const void *copy, stream s),   \
         (copy, s))                                                                                \
    BOTH(X, _ptsz, cuMemcpyBatchAsync, cuMemcpyBatchAsync, 12080,                                  \
         (address * to, address * from, size_t * sizes, size_t count, void *attributes,            \
          size_t *which, size_t kinds, size_t *failed, stream s),                                  \
         (to, from, sizes, count, attributes, which, kinds, failed, s))                            \
    BOTH(X, _ptsz, cuMemcpyBatchAsync_v2, cuMemcpyBatchAsync, 13000,                               \
         (address * to, address * from, size_t * sizes, size_t count, void *attributes,            \
          size_t *which, size_t kinds, stream s),                                                  \
         (to, from, sizes, count, attributes, which, kinds, s))                                    \
    BOTH(X, _ptsz, cuMemcpy3DBatchAsync, cuMemcpy3DBatchAsync, 12080,                              \
         (size_t count, void *list, size_t *failed, flags64 flags, stream s),                      \
         (count, list, failed, flags, s))                                                          \
    BOTH(X, _ptsz, cuMemcpy3DBatchAsync_v2, cuMemcpy3DBatchAsync, 13000,                           \
         (size_t count, void *list, flags64 flags, stream s), (count, list, flags, s))             \
    BOTH(X, _ptsz, cuMemPrefetchAsync, cuMemPrefetchAsync, 8000,                                   \
         (address at, size_t size, int device, stream s), (at, size, device, s))                   \
    BOTH(X, _ptsz, cuMemPrefetchAsync_v2, cuMemPrefetchAsync, 12020,                               \
         (address at, size_t size, struct location to, number flags, stream s),                    \
         (at, size, to, flags, s))                                                                 \
    BOTH(X, _ptsz, cuMemBatchDecompressAsync, cuMemBatchDecompressAsync, 12060,                    \
         (void *list, size_t count, number flags, size_t *failed, stream s),                       \
         (list, count, flags, failed, s))

#define MEMSETS(X)                                                                                 \
    BOTH(X, _ptds, cuMemsetD8_v2, cuMemsetD8, 3020, (address at, unsigned char value, size_t n),   \
         (at, value, n))                                                                           \
    BOTH(X, _ptds, cuMemsetD16_v2, cuMemsetD16, 3020,                                              \
         (address at, unsigned short value, size_t n), (at, value, n))                             \
    BOTH(X, _ptds, cuMemsetD32_v2, cuMemsetD32, 3020, (address at, number value, size_t n),        \
         (at, value, n))                                                                           \
    BOTH(X, _ptds, cuMemsetD2D8_v2, cuMemsetD2D8, 3020,                                            \
         (address at, size_t pitch, unsigned char value, size_t width, size_t height),             \
         (at, pitch, value, width, height))                                                        \
    BOTH(X, _ptds, cuMemsetD2D16_v2, cuMemsetD2D16, 3020,                                          \
         (address at, size_t pitch, unsigned short value, size_t width, size_t height),            \
         (at, pitch, value, width, height))                                                        \
    BOTH(X, _ptds, cuMemsetD2D32_v2, cuMemsetD2D32, 3020,                                          \
         (address at, size_t pitch, number value, size_t width, size_t height),                    \
         (at, pitch, value, width, height))                                                        \
    BOTH(X, _ptsz, cuMemsetD8Async, cuMemsetD8Async, 3020,                                         \
         (address at, unsigned char value, size_t n, stream s), (at, value, n, s))                 \
    BOTH(X, _ptsz, cuMemsetD16Async, cuMemsetD16Async, 3020,                                       \
         (address at, unsigned short value, size_t n, stream s), (at, value, n, s))                \
    BOTH(X, _ptsz, cuMemsetD32Async, cuMemsetD32Async, 3020,                                       \
         (address at, number value, size_t n, stream s), (at, value, n, s))                        \
    BOTH(X, _ptsz, cuMemsetD2D8Async, cuMemsetD2D8Async, 3020,                                     \
         (address at, size_t pitch, unsigned char value, size_t width, size_t height, stream s),   \
         (at, pitch, value, width, height, s))                                                     \
    BOTH(X, _ptsz, cuMemsetD2D16Async, cuMemsetD2D16Async, 3020,                                   \
         (address at, size_t pitch, unsigned short value, size_t width, size_t height, stream s),  \
         (at, pitch, value, width, height, s))                                                     \
    BOTH(X, _ptsz, cuMemsetD2D32Async, cuMemsetD2D32Async, 3020,                                   \
         (address at, size_t pitch, number value, size_t width, size_t height, stream s),          \
         (at, pitch, value, width, height, s))

/* An address that is free while memory is away must not be taken for something else. */
#define RESERVATIONS(X)                                                                            \
    X(cuMemAddressReserve, cuMemAddressReserve, 10020, STREAM_ANY,                                 \
      (address * at, size_t size, size_t alignment, address wish, flags64 flags),                  \
      (at, size, alignment, wish, flags))                                                          \
    X(cuMemAddressFree, cuMemAddressFree, 10020, STREAM_ANY, (address at, size_t size),            \
      (at, size))                                                                                  \
    X(cuMemGetAccess, cuMemGetAccess, 10020, STREAM_ANY,                                           \
      (flags64 * flags, const struct location *location, address at), (flags, location, at))

/*
 * While a process is checkpointed the driver lets nobody in, but for those that ask whether work is
 * done: they read what it has mapped for that, which is gone then. A thread of JAX's that asks of
 * its streams again and again ended in cuStreamQuery, where /dev/nvidiactl had been (H100,
 * 580.159.04; one of 26 processes without this library). Whoever waits may ask the same way.
 */
#define WAITS(X)                                                                                   \
    BOTH(X, _ptsz, cuStreamQuery, cuStreamQuery, 2000, (stream s), (s))                            \
    BOTH(X, _ptsz, cuStreamSynchronize, cuStreamSynchronize, 2000, (stream s), (s))                \
    BOTH(X, _ptsz, cuStreamWaitEvent, cuStreamWaitEvent, 3020,                                     \
         (stream s, void *event, number flags), (s, event, flags))                                 \
    BOTH(X, _ptsz, cuEventRecord, cuEventRecord, 2000, (void *event, stream s), (event, s))        \
    BOTH(X, _ptsz, cuEventRecordWithFlags, cuEventRecordWithFlags, 11010,                          \
         (void *event, stream s, number flags), (event, s, flags))                                 \
    X(cuEventQuery, cuEventQuery, 2000, STREAM_ANY, (void *event), (event))                        \
    X(cuEventSynchronize, cuEventSynchronize, 2000, STREAM_ANY, (void *event), (event))            \
    X(cuEventElapsedTime, cuEventElapsedTime, 2000, STREAM_ANY,                                    \
      (float *milliseconds, void *first, void *last), (milliseconds, first, last))                 \
    X(cuEventElapsedTime_v2, cuEventElapsedTime, 12080, STREAM_ANY,                                \
      (float *milliseconds, void *first, void *last), (milliseconds, first, last))                 \
    X(cuCtxSynchronize, cuCtxSynchronize, 2000, STREAM_ANY, (void), ())                            \
    X(cuCtxSynchronize_v2, cuCtxSynchronize, 13000, STREAM_ANY, (context one), (one))

#define GATED(X)                                                                                   \
    LAUNCHES(X) STREAM_WORDS(X) COPIES(X) COPIES_ASYNC(X) MEMSETS(X) GRAPHS(X) RESERVATIONS(X)     \
    WAITS(X)

/* Looking up: lookup.c. */
#define LOOKUPS(X)                                                                                 \
    X(cuGetProcAddress, cuGetProcAddress, 11030, STREAM_ANY,                                       \
      (const char *name, void **function, int version, flags64 flags), )                           \
    X(cuGetProcAddress_v2, cuGetProcAddress, 12000, STREAM_ANY,                                    \
      (const char *name, void **function, int version, flags64 flags, int *status), )

/* allocations.c and drawn.c */
#define ALLOCATIONS(X)                                                                             \
    X(cuMemAlloc_v2, cuMemAlloc, 3020, STREAM_ANY, (address * at, size_t size), )                  \
    X(cuMemFree_v2, cuMemFree, 3020, STREAM_ANY, (address at), )                                   \
    X(cuMemGetAddressRange_v2, cuMemGetAddressRange, 3020, STREAM_ANY,                             \
      (address * base, size_t * size, address at), )                                               \
    X(cuMemAllocPitch_v2, cuMemAllocPitch, 3020, STREAM_ANY,                                       \
      (address * at, size_t * pitch, size_t width, size_t height, number element), )               \
    X(cuMemAllocManaged, cuMemAllocManaged, 6000, STREAM_ANY,                                      \
      (address * at, size_t size, number flags), )                                                 \
    BOTH(X, _ptsz, cuMemAllocAsync, cuMemAllocAsync, 11020,                                        \
         (address * at, size_t size, stream s), )                                                  \
    BOTH(X, _ptsz, cuMemAllocFromPoolAsync, cuMemAllocFromPoolAsync, 11020,                        \
         (address * at, size_t size, void *pool, stream s), )                                      \
    BOTH(X, _ptsz, cuMemFreeAsync, cuMemFreeAsync, 11020, (address at, stream s), )

/* Memory of other processes, or for them: sharing.c. */
#define SHARING(X)                                                                                 \
    X(cuIpcGetMemHandle, cuIpcGetMemHandle, 4010, STREAM_ANY,                                      \
      (struct ipc_handle * ipc, address at), )                                                     \
    X(cuIpcOpenMemHandle, cuIpcOpenMemHandle, 4010, STREAM_ANY,                                    \
      (address * at, struct ipc_handle ipc, number flags), )                                       \
    X(cuIpcOpenMemHandle_v2, cuIpcOpenMemHandle, 11000, STREAM_ANY,                                \
      (address * at, struct ipc_handle ipc, number flags), )                                       \
    X(cuIpcCloseMemHandle, cuIpcCloseMemHandle, 4010, STREAM_ANY, (address at), )                  \
    X(cuMemPoolImportPointer, cuMemPoolImportPointer, 11020, STREAM_ANY,                           \
      (address * at, void *pool, void *data), )                                                    \
    X(cuMemExportToShareableHandle, cuMemExportToShareableHandle, 10020, STREAM_ANY,               \
      (void *shared, handle memory, number type, flags64 flags), )                                 \
    X(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle, 10020, STREAM_ANY,           \
      (handle * memory, void *shared, number type), )                                              \
    X(cuMemGetHandleForAddressRange, cuMemGetHandleForAddressRange, 11070, STREAM_ANY,             \
      (void *shared, address at, size_t size, number type, flags64 flags), )

/* The program's own VMM memory: handles.c. */
#define HANDLES(X)                                                                                 \
    X(cuMemCreate, cuMemCreate, 10020, STREAM_ANY,                                                 \
      (handle * memory, size_t size, const struct properties *wanted, flags64 flags), )            \
    X(cuMemRelease, cuMemRelease, 10020, STREAM_ANY, (handle memory), )                            \
    X(cuMemRetainAllocationHandle, cuMemRetainAllocationHandle, 11000, STREAM_ANY,                 \
      (handle * memory, void *at), )                                                               \
    X(cuMemGetAllocationPropertiesFromHandle, cuMemGetAllocationPropertiesFromHandle, 10020,       \
      STREAM_ANY, (struct properties * wanted, handle memory), )                                   \
    X(cuMemMap, cuMemMap, 10020, STREAM_ANY,                                                       \
      (address at, size_t size, size_t offset, handle memory, flags64 flags), )                    \
    X(cuMemUnmap, cuMemUnmap, 10020, STREAM_ANY, (address at, size_t size), )                      \
    X(cuMemSetAccess, cuMemSetAccess, 10020, STREAM_ANY,                                           \
      (address at, size_t size, const struct access *list, size_t count), )                        \
    X(cuMulticastBindMem, cuMulticastBindMem, 12010, STREAM_ANY,                                   \
      (handle group, size_t at, handle memory, size_t from, size_t size, flags64 flags), )         \
    X(cuMulticastBindAddr, cuMulticastBindAddr, 12010, STREAM_ANY,                                 \
      (handle group, size_t at, address memory, size_t size, flags64 flags), )                     \
    X(cuMulticastBindMem_v2, cuMulticastBindMem, 13010, STREAM_ANY,                                \
      (handle group, int device, size_t at, handle memory, size_t from, size_t size,               \
       flags64 flags), )                                                                           \
    X(cuMulticastBindAddr_v2, cuMulticastBindAddr, 13010, STREAM_ANY,                              \
      (handle group, int device, size_t at, address memory, size_t size, flags64 flags), )         \
    BOTH(X, _ptsz, cuMemMapArrayAsync, cuMemMapArrayAsync, 11010,                                  \
         (struct array_mapping * list, number count, stream s), )                                  \
    X(cuMulticastAddDevice, cuMulticastAddDevice, 12010, STREAM_ANY,                               \
      (handle group, int device), )                                                                \
    X(cuMulticastUnbind, cuMulticastUnbind, 12010, STREAM_ANY,                                     \
      (handle group, int device, size_t at, size_t size), )

/* What programs ask of an address: attributes.c. */
#define ATTRIBUTES(X)                                                                              \
    X(cuPointerGetAttribute, cuPointerGetAttribute, 4000, STREAM_ANY,                              \
      (void *data, int attribute, address at), )                                                   \
    X(cuPointerGetAttributes, cuPointerGetAttributes, 7000, STREAM_ANY,                            \
      (number count, int *attributes, void **data, address at), )                                  \
    X(cuPointerSetAttribute, cuPointerSetAttribute, 6000, STREAM_ANY,                              \
      (const void *value, int attribute, address at), )

/* Contexts, and who may reach whose memory: contexts.c, peers.c. */
#define CONTEXTS(X)                                                                                \
    X(cuCtxCreate_v2, cuCtxCreate, 3020, STREAM_ANY, (context * new, number flags, int device), )  \
    X(cuCtxCreate_v3, cuCtxCreate, 11040, STREAM_ANY,                                              \
      (context * new, void *affinity, int count, number flags, int device), )                      \
    X(cuCtxCreate_v4, cuCtxCreate, 12050, STREAM_ANY,                                              \
      (context * new, void *how, number flags, int device), )                                      \
    X(cuCtxFromGreenCtx, cuCtxFromGreenCtx, 12040, STREAM_ANY, (context * new, void *green), )     \
    X(cuCtxDestroy_v2, cuCtxDestroy, 4000, STREAM_ANY, (context old), )                            \
    X(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, 7000, STREAM_ANY,                        \
      (context * new, int device), )                                                               \
    X(cuDevicePrimaryCtxRelease, cuDevicePrimaryCtxRelease, 7000, STREAM_ANY, (int device), )      \
    X(cuDevicePrimaryCtxRelease_v2, cuDevicePrimaryCtxRelease, 11000, STREAM_ANY, (int device), )  \
    X(cuDevicePrimaryCtxReset, cuDevicePrimaryCtxReset, 7000, STREAM_ANY, (int device), )          \
    X(cuDevicePrimaryCtxReset_v2, cuDevicePrimaryCtxReset, 11000, STREAM_ANY, (int device), )      \
    X(cuCtxEnablePeerAccess, cuCtxEnablePeerAccess, 4000, STREAM_ANY,                              \
      (context peer, number flags), )                                                              \
    X(cuCtxDisablePeerAccess, cuCtxDisablePeerAccess, 4000, STREAM_ANY, (context peer), )

/* What must not be disturbed: captures.c. */
#define CAPTURES(X)                                                                                \
    BOTH(X, _ptsz, cuStreamBeginCapture, cuStreamBeginCapture, 10000, (stream s), )                \
    BOTH(X, _ptsz, cuStreamBeginCapture_v2, cuStreamBeginCapture, 10010, (stream s, int mode), )   \
    BOTH(X, _ptsz, cuStreamBeginCaptureToGraph, cuStreamBeginCaptureToGraph, 12030,                \
         (stream s, void *graph, const void *nodes, const void *edges, size_t count, int mode), )  \
    BOTH(X, _ptsz, cuStreamEndCapture, cuStreamEndCapture, 10000, (stream s, void **graph), )      \
    X(cuStreamDestroy_v2, cuStreamDestroy, 4000, STREAM_ANY, (stream s), )

#define TAKEN(X)                                                                                   \
    LOOKUPS(X) ALLOCATIONS(X) SHARING(X) HANDLES(X) ATTRIBUTES(X) CONTEXTS(X) CAPTURES(X)

/* Only called. */
#define CALLED(X)                                                                                  \
    X(cuCtxGetCurrent, cuCtxGetCurrent, 4000, STREAM_ANY, (context * current), )                   \
    X(cuCtxPushCurrent_v2, cuCtxPushCurrent, 4000, STREAM_ANY, (context wanted), )                 \
    X(cuCtxPopCurrent_v2, cuCtxPopCurrent, 4000, STREAM_ANY, (context * was), )                    \
    X(cuCtxGetDevice, cuCtxGetDevice, 2000, STREAM_ANY, (int *device), )                           \
    X(cuCtxGetFlags, cuCtxGetFlags, 7000, STREAM_ANY, (number * flags), )                          \
    X(cuCtxSetFlags, cuCtxSetFlags, 12010, STREAM_ANY, (number flags), )                           \
    X(cuDeviceGetCount, cuDeviceGetCount, 2000, STREAM_ANY, (int *count), )                        \
    X(cuDeviceGetAttribute, cuDeviceGetAttribute, 2000, STREAM_ANY,                                \
      (int *value, int attribute, int device), )                                                   \
    X(cuDeviceGetUuid, cuDeviceGetUuid, 9020, STREAM_ANY, (unsigned char *uuid, int device), )     \
    X(cuDeviceGetUuid_v2, cuDeviceGetUuid, 11040, STREAM_ANY, (unsigned char *uuid, int device), ) \
    X(cuDevicePrimaryCtxGetState, cuDevicePrimaryCtxGetState, 7000, STREAM_ANY,                    \
      (int device, number *flags, int *active), )                                                  \
    X(cuMemGetAllocationGranularity, cuMemGetAllocationGranularity, 10020, STREAM_ANY,             \
      (size_t * size, const struct properties *wanted, int option), )                              \
    X(cuThreadExchangeStreamCaptureMode, cuThreadExchangeStreamCaptureMode, 10010, STREAM_ANY,     \
      (int *mode), )

/* The real functions; NULL: this driver has no such one. Valid once driver_found() was true. */
struct driver {
#define MEMBER(symbol, name, version, which, parameters, arguments) int(*symbol) parameters;
    GATED(MEMBER) TAKEN(MEMBER) CALLED(MEMBER)
#undef MEMBER
};

extern struct driver driver;

/* Whether the real functions are known: the driver's library is loaded. Cheap. */
bool driver_found(void);

/* What a function of ours answers that the driver has not got. */
int driver_lacks(void);

/* True if the variable THAW_GPU_MEMORY says that this process is to be left alone: it gets nothing
   of ours, as far as that can be avoided, and nothing is taken over. */
bool opted_out(void);

/* Whether there is one of ours by this name. */
bool taken_over(const char *symbol);

/*
 * What a program is to get for a symbol that dlsym(3) has found as `function`: ours for the
 * driver's, and also where ours was found, as among all that is loaded (RTLD_DEFAULT), if the
 * driver's is there.
 */
void *instead_of(const char *symbol, void *function);

/* Of ours. */
#define EXPORTED __attribute__((visibility("default")))
#define PROTOTYPE(symbol, name, version, which, parameters, arguments)                             \
    EXPORTED int symbol parameters;
GATED(PROTOTYPE)
TAKEN(PROTOTYPE)
#undef PROTOTYPE

/* Makes sure of the real function, for the functions that are called by programs. */
#define REAL(symbol)                                                                               \
    do {                                                                                           \
        if (!driver_found() || driver.symbol == NULL)                                              \
            return driver_lacks();                                                                 \
    } while (0)
