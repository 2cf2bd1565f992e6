/*
 * A libcuda for tests: the driver's checkpoint calls on a world of files, in the folder that the
 * environment variable THAW_FAKE_CUDA names (tests/fakes/cuda.py writes and reads it):
 *
 *     processes/PID         the process's state
 *     answers/CALL[.PID]    lines "RESULT once|always [STATE]": what the call answers instead of
 *                           doing its work; STATE is what the process is left in
 *     delays/CALL[.PID]     how many seconds the call takes
 *     holds/CALL            the call waits for as long as there is such a file
 *     version               the CUDA version; 13000 without it
 *     gpus                  the numbers of those that there are, with commas between them: "0"
 *     memory                bytes that each has for one process: 80 GiB
 *     no-rdma               if it is there: network cards reach no VMM memory
 *     own-only              the same: nothing is exported that came from another process
 *     aliases               the same: cuGetProcAddress knows cuMemAlloc under a name of its own
 *     log                   "begin|end THREAD NANOSECONDS CALL PID RESULT DETAIL", as it happens
 *     calls                 if it is there: a line "CALL PID" for every call that is about the
 *                           calling process itself
 *
 * Those have answers, delays and holds, too; PID is their own there. The result -1 stands for what
 * the call really does.
 *
 * A process without such a file, and without the variable, uses CUDA if it has called cuInit of
 * this library: its state is in its own memory then, and is dumped and restored with it. The
 * variable THAW_FAKE_WORKER names the folder for such a one; THAW_FAKE_GPUS and THAW_FAKE_MEMORY do
 * for the files gpus and memory.
 *
 * Device memory is memory of the process, or a memfd (libcuda_vmm.c), at the address that the
 * device has it at. What a stream is asked for it does as late as may be (libcuda_stream.c).
 *
 * It is as strict as the real one: nothing goes before cuInit, nothing in the wrong state, no byte
 * of an argument may be set that this version does not know. What it answers for processes that use
 * no CUDA, have ended or are killed meanwhile is what driver 580.159.04 was seen to answer.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- how every call goes ----------------------------------------------------------------- */

/* What it answers at once, or -1: it has its work to do. */
static int begin(const char *call, int pid, const char *detail) {
    int result;

    log_line("begin", call, pid, 0, detail);
    if (!delay(call, pid))
        return OPERATING_SYSTEM;
    return answer(call, pid, &result) ? result : -1;
}

static int end(const char *call, int pid, int result) {
    log_line("end", call, pid, result, "");
    return result;
}

/* From one state to the other. */
static int move(const char *call, int pid, bool sane, int from, int to, const char *detail) {
    int result = begin(call, pid, detail);

    if (result >= 0)
        return end(call, pid, result);
    if (!atomic_load(&initialized))
        return end(call, pid, NOT_INITIALIZED);
    if (!sane)
        return end(call, pid, INVALID_VALUE);
    if (state_of(pid) == NOBODY)
        return end(call, pid, unknown(pid));
    if (state_of(pid) != from)
        return end(call, pid, ILLEGAL_STATE);
    if ((from == LOCKED && to != RUNNING && !move_memory(pid, GO, AWAY)) ||
        (from == CHECKPOINTED && !move_memory(pid, COME, HERE)))
        return end(call, pid, OPERATING_SYSTEM);
    set_state(pid, names[to]);
    return end(call, pid, SUCCESS);
}

static bool zero(const void *data, size_t size) {
    const unsigned char *bytes = data;

    for (size_t at = 0; at < size; at++)
        if (bytes[at] != 0)
            return false;
    return true;
}

/* ---- the functions ----------------------------------------------------------------------- */

/* A child of fork does not use CUDA. */
static void no_cuda(void) {
    memset(&own, 0, sizeof(own));
}

CALL(cuInit, unsigned int flags) {
    int result = begin("cuInit", 0, "");

    if (result < 0)
        result = flags == 0 ? SUCCESS : INVALID_VALUE;
    if (result == SUCCESS) {
        note_init();
        if (getenv("THAW_FAKE_CUDA") == NULL) { /* whoever has it asks about others */
            memcpy(own.mark, mark, sizeof(mark));
            pthread_atfork(NULL, NULL, no_cuda);
        }
    }
    return end("cuInit", 0, result);
}

/* For tests: what a process is, without a word in the log. */
CALL(fakeState, int pid) {
    return state_of(pid);
}

CALL(cuDriverGetVersion, int *number) {
    int result = begin("cuDriverGetVersion", 0, "");

    if (result < 0) {
        *number = version();
        result = SUCCESS;
    }
    return end("cuDriverGetVersion", 0, result);
}

static int ask(const char *call, int pid, int *value, int truth) {
    int result = begin(call, pid, "");

    if (result < 0)
        result = !atomic_load(&initialized) ? NOT_INITIALIZED
                 : state_of(pid) == NOBODY  ? unknown(pid)
                                            : SUCCESS;
    if (result == SUCCESS)
        *value = truth;
    return end(call, pid, result);
}

CALL(cuCheckpointProcessGetState, int pid, int *state) {
    return ask("cuCheckpointProcessGetState", pid, state, state_of(pid));
}

CALL(cuCheckpointProcessGetRestoreThreadId, int pid, int *thread) {
    return ask("cuCheckpointProcessGetRestoreThreadId", pid, thread, pid + 1);
}

CALL(cuCheckpointProcessLock, int pid, const unsigned char *args) {
    unsigned int milliseconds = 0;
    char detail[32];

    if (args != NULL)
        memcpy(&milliseconds, args, sizeof(milliseconds));
    snprintf(detail, sizeof(detail), "%u", milliseconds);
    return move("cuCheckpointProcessLock", pid, args == NULL || zero(args + 4, 60), RUNNING,
                LOCKED, detail);
}

CALL(cuCheckpointProcessUnlock, int pid, const unsigned char *args) {
    return move("cuCheckpointProcessUnlock", pid, args == NULL || zero(args, 64), LOCKED, RUNNING,
                "");
}

/* Custom storage: two GPUs that lie at addresses one can recognize, streams that are none. */
struct device {
    unsigned long long pointer;
    size_t size;
    void *stream;
};

struct storage {
    void *handle;
    struct device *devices;
    unsigned int count;
};

struct operation {
    struct storage storage;
    struct device devices[2];
    int pid;
};

/* From CUDA 13.4 on a pointer to a pointer at `args`; before, these bytes are reserved. */
static struct storage **wanted(const unsigned char *args) {
    struct storage **out = NULL;

    if (args != NULL && version() >= 13040)
        memcpy(&out, args, sizeof(void *));
    return out;
}

static void map(int pid, struct storage **out) {
    struct operation *made = calloc(1, sizeof(*made));

    if (made == NULL)
        abort();
    made->pid = pid;
    made->storage.handle = made;
    made->storage.devices = made->devices;
    made->storage.count = 2;
    for (unsigned int n = 0; n < 2; n++) {
        made->devices[n].pointer = 0x7f0000000000ULL + ((unsigned long long)n << 32);
        made->devices[n].size = (n + 1U) << 21;
        made->devices[n].stream = &made->devices[n];
    }
    *out = &made->storage;
}

CALL(cuCheckpointProcessCheckpoint, int pid, const unsigned char *args) {
    struct storage **out = wanted(args);
    size_t known = version() >= 13040 ? 8 : 0;
    int result = move("cuCheckpointProcessCheckpoint", pid,
                      args == NULL || zero(args + known, 64 - known), LOCKED,
                      out != NULL ? CHECKPOINTING : CHECKPOINTED, out != NULL ? "storage" : "");

    if (result == SUCCESS && out != NULL)
        map(pid, out);
    return result;
}

/* OLD>NEW of every pair, 32 hexadecimal digits each, and "storage" if that is wanted. */
static void describe(const unsigned char *pairs, unsigned int count, bool storage, char *detail,
                     size_t size) {
    size_t length = 0;

    detail[0] = '\0';
    for (size_t at = 0; at < (size_t)count * 32 && length + 3 < size; at++)
        length += (size_t)snprintf(detail + length, size - length, "%s%02x",
                                   at % 32 == 16                ? ">"
                                   : at % 32 == 0 && at > 0 ? ","
                                                                : "",
                                   pairs[at]);
    if (storage)
        snprintf(detail + length, size - length, "%sstorage", length > 0 ? "," : "");
}

CALL(cuCheckpointProcessRestore, int pid, const unsigned char *args) {
    struct storage **out = args != NULL ? wanted(args + 16) : NULL;
    size_t known = version() < 13000 ? 0 : version() < 13040 ? 12 : 24;
    bool sane = args == NULL || (zero(args + known, 64 - known) && zero(args + 12, 4));
    const unsigned char *pairs = NULL;
    unsigned int count = 0;
    char detail[2048];
    int result;

    if (version() >= 13000 && args != NULL) {
        memcpy(&pairs, args, sizeof(void *));
        memcpy(&count, args + 8, sizeof(count));
    }
    describe(pairs, pairs != NULL ? count : 0, out != NULL, detail, sizeof(detail));
    if (imported_by(pid) > 0 && state_of(pid) == CHECKPOINTED) { /* as on an H100 */
        int answered = begin("cuCheckpointProcessRestore", pid, detail);

        return end("cuCheckpointProcessRestore", pid, answered >= 0 ? answered : NOT_SUPPORTED);
    }
    if (pairs != NULL && state_of(pid) == CHECKPOINTED)
        change_gpus(pid, pairs, count);
    result = move("cuCheckpointProcessRestore", pid, sane, CHECKPOINTED,
                  out != NULL ? RESTORING : LOCKED, detail);
    if (result == SUCCESS && out != NULL)
        map(pid, out);
    return result;
}

CALL(cuCheckpointOperationComplete, struct operation *handle) {
    int pid = handle != NULL ? handle->pid : 0;
    int result = begin("cuCheckpointOperationComplete", pid, "");
    int state = state_of(pid);

    if (result < 0) {
        result = handle == NULL                                ? INVALID_HANDLE
                 : state != CHECKPOINTING && state != RESTORING ? ILLEGAL_STATE
                                                                : SUCCESS;
        if (result == SUCCESS) {
            set_state(pid, names[state == CHECKPOINTING ? CHECKPOINTED : LOCKED]);
            free(handle);
        }
    }
    return end("cuCheckpointOperationComplete", pid, result);
}
