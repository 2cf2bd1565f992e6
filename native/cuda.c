/*
 * The CUDA driver, without its toolkit: libcuda is loaded when it is asked for, and what of its
 * interface is needed is declared here, after cuda.h of CUDA 12.8 to 13.5.
 *
 * Argument structs are always passed, zeroed, in their full 64 bytes: the driver rejects what it
 * does not know there. Their size has never changed, what is named in them has: GPU pairs came
 * with CUDA 13.0 (driver 580), custom storage with 13.4, at offsets that were reserved before.
 */
#define _GNU_SOURCE

#include "checkpoint.h"
#include "driver.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lock_args {
    unsigned int milliseconds;
    unsigned int reserved;
    uint64_t reserved_too[7];
};

struct storage_info {
    void *handle;
    struct thaw_cuda_mapping *mappings; /* their layout is the driver's, too */
    unsigned int count;
};

struct checkpoint_args {
    struct storage_info **storage;
    char reserved[56];
};

struct restore_args {
    struct thaw_cuda_pair *pairs;
    unsigned int count;
    unsigned int padding;
    struct storage_info **storage;
    char reserved[40];
};

struct unlock_args {
    uint64_t reserved[8];
};

_Static_assert(sizeof(struct lock_args) == 64 && sizeof(struct checkpoint_args) == 64 &&
                   sizeof(struct restore_args) == 64 && sizeof(struct unlock_args) == 64,
               "the driver's argument structs");
_Static_assert(offsetof(struct restore_args, count) == 8 &&
                   offsetof(struct restore_args, storage) == 16,
               "CUcheckpointRestoreArgs");
_Static_assert(sizeof(struct thaw_cuda_pair) == 32, "CUcheckpointGpuPair");
_Static_assert(sizeof(struct thaw_cuda_mapping) == 24 && sizeof(size_t) == sizeof(uint64_t),
               "CUcheckpointCustomStoragePerDeviceData");

/* One pointer per function of the driver; all return a CUresult. */
struct thaw_cuda {
    int (*init)(unsigned int flags);
    int (*version)(int *version);
    int (*state)(int pid, int *state);
    int (*restore_thread)(int pid, int *thread);
    int (*lock)(int pid, struct lock_args *args);
    int (*checkpoint)(int pid, struct checkpoint_args *args);
    int (*restore)(int pid, struct restore_args *args);
    int (*unlock)(int pid, struct unlock_args *args);
    int (*complete)(void *handle); /* NULL before CUDA 13.4 */
};

static const struct cuda_symbol symbols[] = {
    {"cuInit", offsetof(struct thaw_cuda, init), false},
    {"cuDriverGetVersion", offsetof(struct thaw_cuda, version), false},
    {"cuCheckpointProcessGetState", offsetof(struct thaw_cuda, state), false},
    {"cuCheckpointProcessGetRestoreThreadId", offsetof(struct thaw_cuda, restore_thread), false},
    {"cuCheckpointProcessLock", offsetof(struct thaw_cuda, lock), false},
    {"cuCheckpointProcessCheckpoint", offsetof(struct thaw_cuda, checkpoint), false},
    {"cuCheckpointProcessRestore", offsetof(struct thaw_cuda, restore), false},
    {"cuCheckpointProcessUnlock", offsetof(struct thaw_cuda, unlock), false},
    {"cuCheckpointOperationComplete", offsetof(struct thaw_cuda, complete), true},
};

/* Zero, or -ENOSYS with the names of all that are missing. */
static int find_symbols(void *library, const struct cuda_symbol *wanted, size_t count,
                        void *pointers, char *why, size_t size) {
    size_t length = 0;
    int err = 0;

    for (size_t n = 0; n < count; n++) {
        void *found = dlsym(library, wanted[n].name);

        /* A function pointer is as large as any other: POSIX asks for that, for dlsym's sake. */
        memcpy((char *)pointers + wanted[n].place, &found, sizeof(found));
        if (found != NULL || wanted[n].optional)
            continue;
        snprintf(why + length, size - length, "%s%s", length > 0 ? ", " : "", wanted[n].name);
        length += strlen(why + length);
        err = -ENOSYS;
    }
    return err;
}

/* Only a library that is not to be used is given back. */
int cuda_load(const char *library, const struct cuda_symbol *wanted, size_t count, void *pointers,
              char *why, size_t size) {
    void *loaded;
    int err;

    if (size == 0)
        return -EINVAL;
    why[0] = '\0';
    loaded = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (loaded == NULL) {
        const char *reason = dlerror();

        snprintf(why, size, "%s", reason != NULL ? reason : "no reason given");
        return -ELIBACC;
    }
    err = find_symbols(loaded, wanted, count, pointers, why, size);
    if (err < 0)
        dlclose(loaded);
    return err;
}

int thaw_cuda_open(const char *library, struct thaw_cuda **cuda, char *why, size_t size) {
    int err;

    *cuda = calloc(1, sizeof(**cuda));
    if (*cuda == NULL)
        return -ENOMEM;
    err = cuda_load(library, symbols, sizeof(symbols) / sizeof(symbols[0]), *cuda, why, size);
    if (err < 0) {
        free(*cuda);
        *cuda = NULL;
    }
    return err;
}

int thaw_cuda_has_storage(const struct thaw_cuda *cuda) {
    return cuda->complete != NULL;
}

/*
 * The driver talks to its other half in the process; a signal that interrupts it leaves the two
 * out of step (checkpoint-restore/criu, pull request 2547). What a thread does to itself is not
 * held back: it would end the process without a word.
 */
void cuda_hold_signals(sigset_t *before) {
    static const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t all;

    sigfillset(&all);
    for (size_t n = 0; n < sizeof(own) / sizeof(own[0]); n++)
        sigdelset(&all, own[n]);
    pthread_sigmask(SIG_BLOCK, &all, before);
}

int cuda_release_signals(const sigset_t *before, int result) {
    pthread_sigmask(SIG_SETMASK, before, NULL);
    return result;
}

int thaw_cuda_version(struct thaw_cuda *cuda, int *version) {
    *version = 0;
    return cuda->version(version);
}

/* The threads that the driver starts here get no signals either, for good. */
int thaw_cuda_init(struct thaw_cuda *cuda) {
    sigset_t before;

    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->init(0));
}

int thaw_cuda_state(struct thaw_cuda *cuda, int pid, int *state) {
    sigset_t before;

    *state = -1;
    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->state(pid, state));
}

int thaw_cuda_restore_thread(struct thaw_cuda *cuda, int pid, int *thread) {
    sigset_t before;

    *thread = 0;
    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->restore_thread(pid, thread));
}

int thaw_cuda_lock(struct thaw_cuda *cuda, int pid, uint32_t milliseconds) {
    struct lock_args args;
    sigset_t before;

    memset(&args, 0, sizeof(args));
    args.milliseconds = milliseconds;
    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->lock(pid, &args));
}

static int checkpoint(struct thaw_cuda *cuda, int pid, struct storage_info **storage) {
    struct checkpoint_args args;
    sigset_t before;

    memset(&args, 0, sizeof(args));
    args.storage = storage;
    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->checkpoint(pid, &args));
}

static int restore(struct thaw_cuda *cuda, int pid, struct thaw_cuda_pair *pairs, size_t count,
                   struct storage_info **storage) {
    struct restore_args args;
    sigset_t before;

    if (count > UINT32_MAX || (count > 0 && pairs == NULL))
        return -EINVAL;
    memset(&args, 0, sizeof(args));
    args.pairs = count > 0 ? pairs : NULL;
    args.count = (unsigned int)count;
    args.storage = storage;
    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->restore(pid, &args));
}

int thaw_cuda_checkpoint(struct thaw_cuda *cuda, int pid) {
    return checkpoint(cuda, pid, NULL);
}

int thaw_cuda_restore(struct thaw_cuda *cuda, int pid, struct thaw_cuda_pair *pairs, size_t count) {
    return restore(cuda, pid, pairs, count, NULL);
}

int thaw_cuda_unlock(struct thaw_cuda *cuda, int pid) {
    struct unlock_args args;
    sigset_t before;

    memset(&args, 0, sizeof(args));
    cuda_hold_signals(&before);
    return cuda_release_signals(&before, cuda->unlock(pid, &args));
}

/* What the driver has made of `info` is its own, and gone with the operation. */
static int started(int result, const struct storage_info *info,
                   struct thaw_cuda_operation *operation) {
    memset(operation, 0, sizeof(*operation));
    if (result != 0)
        return result;
    if (info == NULL)
        return -EPROTO;
    operation->handle = info->handle;
    operation->mappings = info->mappings;
    operation->count = info->count;
    return 0;
}

int thaw_cuda_checkpoint_start(struct thaw_cuda *cuda, int pid,
                               struct thaw_cuda_operation *operation) {
    struct storage_info *info = NULL;
    int result;

    if (cuda->complete == NULL)
        return -ENOSYS;
    result = checkpoint(cuda, pid, &info);
    return started(result, info, operation);
}

int thaw_cuda_restore_start(struct thaw_cuda *cuda, int pid, struct thaw_cuda_pair *pairs,
                            size_t count, struct thaw_cuda_operation *operation) {
    struct storage_info *info = NULL;
    int result;

    if (cuda->complete == NULL)
        return -ENOSYS;
    result = restore(cuda, pid, pairs, count, &info);
    return started(result, info, operation);
}

int thaw_cuda_complete(struct thaw_cuda *cuda, struct thaw_cuda_operation *operation) {
    sigset_t before;
    int result;

    if (cuda->complete == NULL)
        return -ENOSYS;
    cuda_hold_signals(&before);
    result = cuda_release_signals(&before, cuda->complete(operation->handle));
    if (result == 0)
        memset(operation, 0, sizeof(*operation));
    return result;
}
