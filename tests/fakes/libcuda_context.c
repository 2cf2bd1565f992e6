/* Devices, contexts and what one may ask about them: see libcuda.c. */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DEPTH = 16 };

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static struct context primaries[DEVICES];
static struct context *made; /* by cuCtxCreate */
static int count; /* of devices */
static pid_t owner; /* a child of fork has no CUDA */
static _Thread_local struct context *stack[DEPTH];
static _Thread_local int depth;

/* ---- how a call of the process itself begins ------------------------------------------------ */

static bool exists(const char *folder, const char *call, int pid) {
    int fd = pid != 0 ? world(O_RDONLY, "%s/%s.%d", folder, call, pid)
                      : world(O_RDONLY, "%s/%s", folder, call);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* Which GPUs there are: FOLDER/gpus or THAW_FAKE_GPUS, numbers with commas between them. */
static void find_gpus(void) {
    const char *variable = getenv("THAW_FAKE_GPUS");
    char text[256];

    if (!content(world(O_RDONLY, "gpus"), text, sizeof(text)))
        snprintf(text, sizeof(text), "%s", variable != NULL ? variable : "0");
    count = 0;
    for (char *rest = text, *word; (word = strsep(&rest, ",")) != NULL && count < DEVICES;)
        if (word[0] >= '0' && word[0] <= '9')
            own.gpus[count++] = atoi(word);
    for (int device = 0; device < DEVICES; device++)
        primaries[device].device = device, primaries[device].primary = true;
}

void note_init(void) {
    pthread_mutex_lock(&guard);
    if (!atomic_load(&initialized)) {
        find_gpus();
        owner = getpid();
        atomic_store(&initialized, true);
    }
    pthread_mutex_unlock(&guard);
}

/* FOLDER/calls has a line "CALL PID" for each, if somebody has made an empty one. */
static void trace(const char *call) {
    int fd = world(O_WRONLY | O_APPEND, "calls");

    if (fd < 0)
        return;
    dprintf(fd, "%s %d\n", call, getpid());
    close(fd);
}

int enter(const char *call) {
    const struct timespec step = {0, 2000000};
    int result;

    if (!atomic_load(&initialized) || getpid() != owner)
        return NOT_INITIALIZED;
    while (own.state != RUNNING)
        nanosleep(&step, NULL);
    if (getenv("THAW_FAKE_CUDA") == NULL && getenv("THAW_FAKE_WORKER") == NULL)
        return -1;
    trace(call);
    while (exists("holds", call, getpid()))
        nanosleep(&step, NULL);
    if (!delay(call, 0))
        return OPERATING_SYSTEM;
    return answer(call, getpid(), &result) ? result : -1;
}

/* ---- devices -------------------------------------------------------------------------------- */

int device_count(void) {
    return count;
}

void uuid_of(int device, unsigned char uuid[16]) {
    static const unsigned char first[16] = {0,    0,    0,    0,    0x11, 0x11, 0x22, 0x22,
                                            0x33, 0x33, 0x44, 0x44, 0x44, 0x44, 0x44, 0};

    memcpy(uuid, first, sizeof(first));
    uuid[15] = (unsigned char)own.gpus[device];
}

static bool is_device(int device) {
    return device >= 0 && device < count;
}

CALL(cuDeviceGetCount, int *number) {
    ENTER();
    *number = count;
    return SUCCESS;
}

CALL(cuDeviceGet, int *device, int ordinal) {
    ENTER();
    if (!is_device(ordinal))
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CALL(cuDeviceGetUuid, unsigned char *uuid, int device) {
    ENTER();
    if (!is_device(device))
        return INVALID_DEVICE;
    uuid_of(device, uuid);
    return SUCCESS;
}

CALL(cuDeviceGetUuid_v2, unsigned char *uuid, int device) {
    return cuDeviceGetUuid(uuid, device);
}

/* ---- contexts ------------------------------------------------------------------------------- */

struct context *current(void) {
    return depth > 0 ? stack[depth - 1] : NULL;
}

bool is_context(const struct context *context) {
    bool found = context >= primaries && context < primaries + DEVICES && context->retained > 0;

    pthread_mutex_lock(&guard);
    for (const struct context *at = made; at != NULL && !found; at = at->next)
        found = at == context;
    pthread_mutex_unlock(&guard);
    return found;
}

static bool lets(const struct context *context, int device, int other) {
    return context->device == device && (context->peers >> other & 1) != 0;
}

bool reaches(int device, int other) {
    bool found = lets(&primaries[device], device, other);

    pthread_mutex_lock(&guard);
    for (const struct context *at = made; at != NULL; at = at->next)
        found = found || lets(at, device, other);
    pthread_mutex_unlock(&guard);
    return found || device == other;
}

CALL(cuDevicePrimaryCtxRetain, struct context **context, int device) {
    ENTER();
    if (!is_device(device))
        return INVALID_DEVICE;
    pthread_mutex_lock(&guard);
    primaries[device].retained++;
    pthread_mutex_unlock(&guard);
    *context = &primaries[device];
    return SUCCESS;
}

static int release(const char *call, int device) {
    int left;

    ENTER_AS(call);
    if (!is_device(device))
        return INVALID_DEVICE;
    pthread_mutex_lock(&guard);
    left = primaries[device].retained--;
    if (left <= 0)
        primaries[device].retained = 0;
    pthread_mutex_unlock(&guard);
    if (left == 1)
        free_all_of(&primaries[device]);
    return left > 0 ? SUCCESS : INVALID_CONTEXT;
}

CALL(cuDevicePrimaryCtxRelease, int device) {
    return release(__func__, device);
}

CALL(cuDevicePrimaryCtxRelease_v2, int device) {
    return release(__func__, device);
}

CALL(cuDevicePrimaryCtxGetState, int device, unsigned *flags, int *active) {
    ENTER();
    if (!is_device(device))
        return INVALID_DEVICE;
    *flags = 0;
    *active = primaries[device].retained > 0;
    return SUCCESS;
}

static int create(struct context **context, int device) {
    struct context *new;

    if (!is_device(device))
        return INVALID_DEVICE;
    new = calloc(1, sizeof(*new));
    if (new == NULL || depth == DEPTH) {
        free(new);
        return OUT_OF_MEMORY;
    }
    new->device = device;
    pthread_mutex_lock(&guard);
    new->next = made;
    made = new;
    pthread_mutex_unlock(&guard);
    stack[depth++] = *context = new;
    return SUCCESS;
}

CALL(cuCtxCreate_v2, struct context **context, unsigned flags, int device) {
    ENTER();
    (void)flags;
    return create(context, device);
}

CALL(cuCtxCreate_v3, struct context **context, void *affinity, int number, unsigned flags,
     int device) {
    ENTER();
    (void)affinity, (void)number, (void)flags;
    return create(context, device);
}

CALL(cuCtxCreate_v4, struct context **context, void *parameters, unsigned flags, int device) {
    ENTER();
    (void)parameters, (void)flags;
    return create(context, device);
}

CALL(cuCtxDestroy_v2, struct context *context) {
    struct context **place = &made;

    ENTER();
    drain_context(context);
    pthread_mutex_lock(&guard);
    while (*place != NULL && *place != context)
        place = &(*place)->next;
    if (*place != NULL)
        *place = context->next;
    else
        context = NULL;
    pthread_mutex_unlock(&guard);
    if (context == NULL)
        return INVALID_CONTEXT;
    if (current() == context)
        depth--;
    free_all_of(context);
    free(context);
    return SUCCESS;
}

CALL(cuCtxGetCurrent, struct context **context) {
    ENTER();
    *context = current();
    return SUCCESS;
}

CALL(cuCtxSetCurrent, struct context *context) {
    ENTER();
    if (context != NULL && !is_context(context))
        return INVALID_CONTEXT;
    if (context == NULL)
        depth -= depth > 0;
    else
        stack[depth > 0 ? depth - 1 : depth++] = context;
    return SUCCESS;
}

CALL(cuCtxPushCurrent_v2, struct context *context) {
    ENTER();
    if (!is_context(context) || depth == DEPTH)
        return INVALID_CONTEXT;
    stack[depth++] = context;
    return SUCCESS;
}

CALL(cuCtxPopCurrent_v2, struct context **context) {
    ENTER_CONTEXT(top);
    if (context != NULL)
        *context = top;
    depth--;
    return SUCCESS;
}

CALL(cuCtxGetFlags, unsigned *flags) {
    ENTER_CONTEXT(context);
    *flags = context->flags;
    return SUCCESS;
}

CALL(cuCtxSetFlags, unsigned flags) {
    ENTER_CONTEXT(context);
    if (flags > 0xff)
        return INVALID_VALUE;
    context->flags = flags;
    return SUCCESS;
}

CALL(cuCtxGetDevice, int *device) {
    ENTER_CONTEXT(context);
    *device = context->device;
    return SUCCESS;
}

/* Without a context it still stands for all that a worker does: tests/fakes/cuda_server.py. */
CALL(cuCtxSynchronize, void) {
    ENTER();
    if (current() == NULL)
        return SUCCESS;
    if (!capture_forbids(current()))
        return drain_context(current());
    spoil_captures(current());
    return CAPTURE_UNSUPPORTED;
}

CALL(cuCtxEnablePeerAccess, struct context *peer, unsigned flags) {
    ENTER_CONTEXT(context);
    if (flags != 0)
        return INVALID_VALUE;
    if (!is_context(peer) || peer->device == context->device)
        return INVALID_CONTEXT;
    if (lets(context, context->device, peer->device))
        return PEER_ACCESS_ALREADY_ENABLED;
    context->peers |= 1U << peer->device;
    return SUCCESS;
}

CALL(cuCtxDisablePeerAccess, struct context *peer) {
    ENTER_CONTEXT(context);
    if (!is_context(peer))
        return INVALID_CONTEXT;
    if (!lets(context, context->device, peer->device))
        return PEER_ACCESS_NOT_ENABLED;
    context->peers &= ~(1U << peer->device);
    return SUCCESS;
}
