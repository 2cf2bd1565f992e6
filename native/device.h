/*
 * What device.c, lane.c, pinned.c, scan.c and those who copy (delivery.c, pieces.c) have in common.
 *
 * Functions return zero, what the driver answered (above zero) and then the name of the call that
 * did, or -errno of our own.
 */
#pragma once

#include "thaw.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { GPUS = 64 }; /* of one process; a machine has up to 16 */

/* Flags of the driver's: of memory, of streams and of pinned memory. */
enum { PINNED = 1, ON_GPU = 1, DESCRIPTOR = 1, READ_WRITE = 3, NOT_BLOCKING = 1, PORTABLE = 1 };
enum { NO_ROOM = 2 };                    /* what it answers */
enum { SLEEPING = 1, WITHOUT_TIME = 2 }; /* of events: who waits for one leaves its processor */

/* The driver's handles: pointers to what only it knows. */
typedef void *driver_handle;

struct memory_location {
    int type; /* ON_GPU */
    int id;   /* its ordinal */
};

/* CUmemAllocationProp */
struct memory_properties {
    int type;         /* PINNED, as all are */
    int handle_types; /* DESCRIPTOR */
    struct memory_location location;
    void *windows;
    unsigned char compression;
    unsigned char rdma; /* 1: network cards may reach it */
    unsigned char others[6];
};

/* CUmemAccessDesc */
struct memory_access {
    struct memory_location location;
    int flags; /* READ_WRITE */
};

_Static_assert(sizeof(struct memory_properties) == 32 && sizeof(struct memory_access) == 12,
               "the driver's structs for memory");

/* One pointer per function of the driver; all return a CUresult. */
struct memory_calls {
    int (*init)(unsigned int flags);
    int (*device_count)(int *count);
    int (*device_get)(int *device, int ordinal);
    int (*device_uuid)(unsigned char *uuid, int device);
    int (*context_retain)(driver_handle *context, int device);
    int (*context_release)(int device);
    int (*context_set)(driver_handle context);
    int (*create)(uint64_t *handle, size_t size, const struct memory_properties *properties,
                  unsigned long long flags);
    int (*release)(uint64_t handle);
    int (*reserve)(uint64_t *address, size_t size, size_t alignment, uint64_t wanted,
                   unsigned long long flags);
    int (*unreserve)(uint64_t address, size_t size);
    int (*map)(uint64_t address, size_t size, size_t offset, uint64_t handle,
               unsigned long long flags);
    int (*unmap)(uint64_t address, size_t size);
    int (*set_access)(uint64_t address, size_t size, const struct memory_access *access,
                      size_t count);
    int (*export)(void *handle, uint64_t memory, int type, unsigned long long flags);
    int (*import)(uint64_t *memory, void *handle, int type);
    int (*stream_create)(driver_handle *stream, unsigned int flags);
    int (*stream_destroy)(driver_handle stream);
    int (*stream_wait)(driver_handle stream);
    int (*event_create)(driver_handle *event, unsigned int flags);
    int (*event_destroy)(driver_handle event);
    int (*event_record)(driver_handle event, driver_handle stream);
    int (*event_wait)(driver_handle event);
    int (*copy_in)(uint64_t to, const void *from, size_t size, driver_handle stream);
    int (*copy_out)(void *to, uint64_t from, size_t size, driver_handle stream);
    int (*copy_within)(uint64_t to, uint64_t from, size_t size, driver_handle stream);
    int (*set_bytes)(uint64_t to, unsigned char byte, size_t size, driver_handle stream);
    int (*pin)(void *memory, size_t size, unsigned int flags);
    int (*unpin)(void *memory);
    int (*allocate)(uint64_t *address, size_t size);
    int (*free)(uint64_t address);
    int (*module_load)(driver_handle *module, const void *image);
    int (*module_function)(driver_handle *function, driver_handle module, const char *name);
    int (*module_unload)(driver_handle module);
    int (*launch)(driver_handle function, unsigned int grid_x, unsigned int grid_y,
                  unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                  unsigned int block_z, unsigned int shared, driver_handle stream,
                  void **parameters, void **extra);
};

/* A GPU whose primary context we hold. */
struct gpu {
    unsigned char uuid[16];
    int ordinal;
    int device;
    driver_handle context;
    driver_handle stream; /* for what is not a thread's own */
    pthread_mutex_t scanning; /* of all that follows, which is scan.c's */
    bool looked;              /* whether it can run our kernel is known */
    driver_handle module;
    driver_handle nonzero; /* the kernel; NULL: it cannot */
    uint64_t flags;        /* a device pointer; 0: none so far */
    size_t flags_size;     /* bytes */
};

struct thaw_device {
    struct memory_calls calls;
    pthread_mutex_t lock; /* of all that follows; a GPU that is there stays what it is */
    bool ready;
    _Atomic uint32_t count;
    struct gpu gpus[GPUS];
};

struct thaw_region {
    struct thaw_device *device;
    uint32_t gpu;
    uint64_t size; /* bytes */
    uint64_t handle;
    uint64_t address; /* a device pointer of ours */
};

/* Keeps the name of a call that failed; returns `result`. */
int device_said(const char **call, const char *name, int result);

/* Anonymous memory of our own that no child of ours gets; NULL if there is none: pool.c. */
unsigned char *memory_map(size_t size);

/* The calling thread's calls are for this GPU. */
int device_enter(struct thaw_device *device, uint32_t gpu, const char **call);

/* Whether `length` bytes from `offset` on lie in the region. */
bool region_holds(const struct thaw_region *region, uint64_t offset, uint64_t length);

/* lane.c: one thread's copies, on a stream of its own for every GPU. All zeros: not used yet. */
struct lane {
    struct thaw_device *device;
    uint32_t entered;    /* the thread's GPU, plus one */
    uint64_t begun;      /* GPUs with copies that no mark covers, a bit each */
    const char *call;    /* of the last failure */
    driver_handle streams[GPUS];
};

/* The end of what was begun before, on several GPUs. All zeros: there was nothing. */
struct mark {
    uint64_t gpus;
    driver_handle events[GPUS];
};

/* Both copies go on when these return; `data` should be pinned. */
int lane_in(struct lane *lane, const struct thaw_region *region, uint64_t offset,
            const unsigned char *data, size_t length);
int lane_out(struct lane *lane, const struct thaw_region *region, uint64_t offset, void *data,
             size_t length);

/* Marks where the lane is now, to be waited for once. */
int lane_mark(struct lane *lane, struct mark *mark);
int lane_wait(struct lane *lane, struct mark *mark);

/* Gives up a mark that nobody waits for any more. */
void mark_drop(struct thaw_device *device, struct mark *mark);

/* Waits for all copies, whatever becomes of them, and gives everything back. */
void lane_close(struct lane *lane);

/*
 * pinned.c: thaw_memory_pin, where it matters little. False: it is not pinned, which only makes
 * copies slower (the driver takes them through memory of its own, and waits).
 */
bool device_pin(struct thaw_device *device, uint32_t gpu, void *memory, size_t size);
void device_unpin(struct thaw_device *device, uint32_t gpu, void *memory);
