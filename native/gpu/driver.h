/*
 * The CUDA driver's interface, as far as the library has to do with it; after cuda.h of CUDA 12.8
 * to 13.0. All functions return a CUresult.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum result {
    CUDA_SUCCESS = 0,
    CUDA_INVALID_VALUE = 1,
    CUDA_OUT_OF_MEMORY = 2,
    CUDA_INVALID_CONTEXT = 201,
    CUDA_NO_LIBRARY = 303, /* SHARED_OBJECT_INIT_FAILED */
    CUDA_CONTEXT_IS_DESTROYED = 709,
    CUDA_NOT_PERMITTED = 800,
    CUDA_NOT_SUPPORTED = 801,
    CUDA_CAPTURE_WRONG_THREAD = 908,
};

typedef uint64_t address; /* CUdeviceptr */
typedef void *context;    /* CUcontext */
typedef void *stream;     /* CUstream */
typedef uint64_t handle;  /* CUmemGenericAllocationHandle */
typedef unsigned int number;
typedef unsigned long long flags64;

enum { LOCATION_DEVICE = 1, TYPE_PINNED = 1, TYPE_DESCRIPTOR = 1 };
enum { ACCESS_READ = 1, ACCESS_WRITE = 3 };

struct location { /* CUmemLocation */
    int type;
    int id;
};

struct properties { /* CUmemAllocationProp */
    int type;
    unsigned int handle_types;
    struct location location;
    void *meta; /* Windows' */
    struct {
        unsigned char compression;
        unsigned char rdma; /* gpuDirectRDMACapable */
        unsigned short usage;
        unsigned char reserved[4];
    } flags;
};

struct access { /* CUmemAccessDesc */
    struct location location;
    int flags;
};

struct ipc_handle { /* CUipcMemHandle */
    char bytes[64];
};

struct array_mapping { /* CUarrayMapInfo; only the handle matters */
    unsigned char before[64];
    handle memory;
    unsigned char after[24];
};

_Static_assert(sizeof(struct properties) == 32 && sizeof(struct access) == 12 &&
                   sizeof(struct array_mapping) == 96,
               "the driver's structs");

enum { DEVICE_RDMA_WITH_VMM = 110 }; /* CUdevice_attribute */
enum { CONTEXT_SYNC_MEMOPS = 0x80 }; /* CUctx_flags */

enum attribute { /* CUpointer_attribute */
    ATTRIBUTE_CONTEXT = 1,
    ATTRIBUTE_SYNC_MEMOPS = 6,
    ATTRIBUTE_RANGE_START = 11,
    ATTRIBUTE_RANGE_SIZE = 12,
    ATTRIBUTE_HANDLE_TYPES = 14,
};
