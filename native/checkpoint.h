/*
 * The CUDA driver, found at run time; its functions take the state of *other* processes off their
 * GPUs and back. What the driver itself answers is passed on: 0, or a CUresult, which is above
 * zero. Below zero is -errno, of ours.
 *
 * Any number of threads may call at once, for different processes. A call cannot be given up: no
 * signal is delivered to the thread while the driver works, since an interrupted call leaves the
 * driver and the process with different ideas of the latter's state. `pid` is a process, in our
 * pid namespace, never another thread's id: the driver would take that, too.
 *
 * Seen by cffi, too: what thaw.h says of itself counts here.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

struct thaw_cuda;

/* A GPU's UUID where the process was checkpointed, and where it is restored. */
struct thaw_cuda_pair {
    unsigned char before[16];
    unsigned char after[16];
};

/* All the memory that a process has on one GPU, mapped for us to be copied out or in. */
struct thaw_cuda_mapping {
    uint64_t address; /* a device pointer of ours */
    uint64_t size;    /* bytes */
    void *stream;     /* what is enqueued there is waited for at the end; it tells the GPU, too */
};

/* A checkpoint or restore that waits for its copies. */
struct thaw_cuda_operation {
    void *handle;
    struct thaw_cuda_mapping *mappings; /* the driver's, until the end */
    uint32_t count;
};

/*
 * Loads `library`, by its path or as the loader finds it, for as long as this process lives. The
 * driver does nothing yet. -ELIBACC if it cannot be loaded, with the loader's reason in `why`, a
 * string of at most `size` bytes; -ENOSYS if it lacks functions, with their names.
 */
int thaw_cuda_open(const char *library, struct thaw_cuda **cuda, char *why, size_t size);

/* 1 if the driver can leave the copying of device memory to us, else 0. */
int thaw_cuda_has_storage(const struct thaw_cuda *cuda);

/* The newest CUDA that the driver knows, 13000 for 13.0. May be asked before thaw_cuda_init. */
int thaw_cuda_version(struct thaw_cuda *cuda, int *version);

/* cuInit: to be done before any of what follows. */
int thaw_cuda_init(struct thaw_cuda *cuda);

/* 0 running, 1 locked, 2 checkpointed, 3 failed, 4 being checkpointed, 5 being restored. */
int thaw_cuda_state(struct thaw_cuda *cuda, int pid, int *state);

/* The thread that works for the driver in the process. */
int thaw_cuda_restore_thread(struct thaw_cuda *cuda, int pid, int *thread);

/* Lets the process's CUDA calls come to rest and holds new ones. 0 ms: waits for ever. */
int thaw_cuda_lock(struct thaw_cuda *cuda, int pid, uint32_t milliseconds);

/* Device memory goes into the locked process's own memory; it has nothing to do with GPUs then. */
int thaw_cuda_checkpoint(struct thaw_cuda *cuda, int pid);

/* And back. The process is locked then. Without pairs, each GPU is restored to itself. */
int thaw_cuda_restore(struct thaw_cuda *cuda, int pid, struct thaw_cuda_pair *pairs, size_t count);

/* The process's CUDA calls go on. */
int thaw_cuda_unlock(struct thaw_cuda *cuda, int pid);

/*
 * As thaw_cuda_checkpoint and thaw_cuda_restore, but the memory is mapped for us and the operation
 * goes on until it is completed. We must hold the primary contexts of all GPUs concerned. -ENOSYS
 * without thaw_cuda_has_storage.
 */
int thaw_cuda_checkpoint_start(struct thaw_cuda *cuda, int pid,
                               struct thaw_cuda_operation *operation);
int thaw_cuda_restore_start(struct thaw_cuda *cuda, int pid, struct thaw_cuda_pair *pairs,
                            size_t count, struct thaw_cuda_operation *operation);

/* Waits for the streams and ends the operation: its mappings are gone, unless that fails. */
int thaw_cuda_complete(struct thaw_cuda *cuda, struct thaw_cuda_operation *operation);
