/*
 * What the files of gpu_program.c share; first the CUDA functions, found in one of three ways:
 *
 *     -DLINKED      they are symbols of libcuda.so.1, which the program is linked with
 *     -DBY_DLSYM    dlopen and dlsym, as ctypes and many others do
 *     -DBY_ENTRY    cuGetProcAddress_v2 by dlsym and all else by that, as the CUDA runtime does;
 *                   for the default stream of each thread with the variable PER_THREAD
 *
 * The library is libcuda.so.1, or what the variable CUDA_LIBRARY names.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef uint64_t device_pointer, handle;
typedef void *context, *stream, *event, *function, *module, *graph, *ready_graph, *node;

struct location {
    int type, id;
};

struct properties {
    int type, handle_types;
    struct location location;
    void *win32;
    unsigned char flags[8];
};

struct access {
    struct location location;
    int flags;
};

struct set_node {
    device_pointer at;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};

/* Name as cuGetProcAddress knows it, as it is exported, arguments. */
#define FUNCTIONS(F)                                                                               \
    F(cuInit, cuInit, (unsigned flags))                                                            \
    F(cuDevicePrimaryCtxRetain, cuDevicePrimaryCtxRetain, (context * out, int device))             \
    F(cuCtxSetCurrent, cuCtxSetCurrent, (context))                                                 \
    F(cuCtxGetDevice, cuCtxGetDevice, (int *device))                                               \
    F(cuCtxSynchronize, cuCtxSynchronize, (void))                                                  \
    F(cuCtxEnablePeerAccess, cuCtxEnablePeerAccess, (context peer, unsigned flags))                \
    F(cuCtxDisablePeerAccess, cuCtxDisablePeerAccess, (context peer))                              \
    F(cuMemAlloc, cuMemAlloc_v2, (device_pointer * out, size_t size))                              \
    F(cuMemAllocPitch, cuMemAllocPitch_v2,                                                         \
      (device_pointer * out, size_t *pitch, size_t width, size_t height, unsigned element))        \
    F(cuMemAllocManaged, cuMemAllocManaged, (device_pointer * out, size_t size, unsigned flags))   \
    F(cuMemFree, cuMemFree_v2, (device_pointer))                                                   \
    F(cuMemAllocAsync, cuMemAllocAsync, (device_pointer * out, size_t size, stream))               \
    F(cuMemFreeAsync, cuMemFreeAsync, (device_pointer, stream))                                    \
    F(cuMemGetInfo, cuMemGetInfo_v2, (size_t *left, size_t *all))                                  \
    F(cuMemGetAddressRange, cuMemGetAddressRange_v2,                                               \
      (device_pointer * start, size_t *size, device_pointer at))                                   \
    F(cuPointerGetAttribute, cuPointerGetAttribute, (void *out, int attribute, device_pointer at)) \
    F(cuPointerGetAttributes, cuPointerGetAttributes,                                              \
      (unsigned count, int *attributes, void **out, device_pointer at))                            \
    F(cuIpcGetMemHandle, cuIpcGetMemHandle, (void *out, device_pointer at))                        \
    F(cuMemAddressReserve, cuMemAddressReserve,                                                    \
      (device_pointer * out, size_t size, size_t alignment, device_pointer hint, uint64_t flags))  \
    F(cuMemAddressFree, cuMemAddressFree, (device_pointer, size_t size))                           \
    F(cuMemCreate, cuMemCreate,                                                                    \
      (handle * out, size_t size, const struct properties *wanted, uint64_t flags))                \
    F(cuMemRelease, cuMemRelease, (handle))                                                        \
    F(cuMemMap, cuMemMap,                                                                          \
      (device_pointer at, size_t size, size_t offset, handle memory, uint64_t flags))              \
    F(cuMemUnmap, cuMemUnmap, (device_pointer at, size_t size))                                    \
    F(cuMemSetAccess, cuMemSetAccess,                                                              \
      (device_pointer at, size_t size, const struct access *wanted, size_t count))                 \
    F(cuMemGetAccess, cuMemGetAccess,                                                              \
      (unsigned long long *flags, const struct location *who, device_pointer at))                  \
    F(cuMemRetainAllocationHandle, cuMemRetainAllocationHandle, (handle * out, void *at))          \
    F(cuMemGetAllocationPropertiesFromHandle, cuMemGetAllocationPropertiesFromHandle,              \
      (struct properties * out, handle memory))                                                    \
    F(cuMemExportToShareableHandle, cuMemExportToShareableHandle,                                  \
      (void *out, handle memory, int type, uint64_t flags))                                        \
    F(cuMemImportFromShareableHandle, cuMemImportFromShareableHandle,                              \
      (handle * out, void *descriptor, int type))                                                  \
    F(cuMemcpyDtoH, cuMemcpyDtoH_v2, (void *to, device_pointer from, size_t size))                 \
    F(cuMemcpyHtoD, cuMemcpyHtoD_v2, (device_pointer to, const void *from, size_t size))           \
    F(cuMemcpyDtoDAsync, cuMemcpyDtoDAsync_v2,                                                     \
      (device_pointer to, device_pointer from, size_t size, stream))                               \
    F(cuMemsetD8, cuMemsetD8_v2, (device_pointer to, unsigned char value, size_t count))           \
    F(cuStreamCreate, cuStreamCreate, (stream * out, unsigned flags))                              \
    F(cuStreamSynchronize, cuStreamSynchronize, (stream))                                          \
    F(cuStreamQuery, cuStreamQuery, (stream))                                                      \
    F(cuEventCreate, cuEventCreate, (event * out, unsigned flags))                                 \
    F(cuEventRecord, cuEventRecord, (event, stream))                                               \
    F(cuEventSynchronize, cuEventSynchronize, (event))                                             \
    F(cuStreamBeginCapture, cuStreamBeginCapture_v2, (stream, int mode))                           \
    F(cuStreamEndCapture, cuStreamEndCapture, (stream, graph * out))                               \
    F(cuGraphCreate, cuGraphCreate, (graph * out, unsigned flags))                                 \
    F(cuGraphAddMemsetNode, cuGraphAddMemsetNode,                                                  \
      (node * out, graph, const node *after, size_t count, const struct set_node *, context))      \
    F(cuGraphInstantiate, cuGraphInstantiateWithFlags,                                             \
      (ready_graph * out, graph, unsigned long long flags))                                        \
    F(cuGraphExecMemsetNodeSetParams, cuGraphExecMemsetNodeSetParams,                              \
      (ready_graph, node, const struct set_node *, context))                                       \
    F(cuGraphLaunch, cuGraphLaunch, (ready_graph, stream))                                         \
    F(cuModuleLoadData, cuModuleLoadData, (module * out, const void *image))                       \
    F(cuModuleGetFunction, cuModuleGetFunction, (function * out, module, const char *name))        \
    F(cuLaunchKernel, cuLaunchKernel,                                                              \
      (function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,        \
       unsigned shared, stream, void **arguments, void **extra))

#define POINTER(name, exported, arguments) int(*name) arguments;

extern struct functions {
    FUNCTIONS(POINTER)
} cuda;

void find_functions(void); /* gpu_program_find.c */

/* ---- what all commands have in common: gpu_program.c ---------------------------------------- */

enum { GPUS = 16 };
enum kind { NOTHING, LINEAR, VMM, POOLED, MANAGED };

struct object {
    enum kind kind;
    device_pointer at;
    size_t size;
    handle handle;
};

extern context contexts[GPUS];
extern function fill_kernel;
extern stream own_stream;

/* The answer; -1, and zero. */
int failed(int result, const char *call);
int tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t number(const char *word);
struct object *object(const char *word);
int keep(enum kind kind, device_pointer at, size_t size, handle memory);

/* Answers with an error if the call fails. */
#define TRY(call, ...)                                                                             \
    do {                                                                                           \
        int result_ = cuda.call(__VA_ARGS__);                                                      \
        if (result_ != 0)                                                                          \
            return failed(result_, #call);                                                         \
    } while (0)

/* ---- commands: gpu_program_memory.c, gpu_program_work.c ------------------------------------- */

struct command {
    const char *name;
    int words; /* that it needs */
    int (*run)(char **words);
};

extern const struct command memory_commands[], work_commands[]; /* without a name at the end */
