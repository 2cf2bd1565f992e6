/*
 * See drain.h. cuCtxSynchronize knows no limit, so it is called in a thread of its own; what it
 * waits for may be waiting for the program, which waits at the gate.
 *
 * Once the gate is open again, the thread must not touch another context: the program may destroy
 * it, or begin to capture one of its streams, which a cuCtxSynchronize would spoil. So the thread
 * says when it goes on, before it asks whether it may; and whoever has it stop then leaves the gate
 * closed for as long as it may take to get into the driver.
 */
#include "drain.h"

#include "contexts.h"
#include "control.h"
#include "entries.h"
#include "system.h"

#include <stdatomic.h>

#define MOST 256
#define RELAXED 2 /* CU_STREAM_CAPTURE_MODE_RELAXED: no capture of another thread's is in the way */
#define INTO_DRIVER UINT64_C(100000000) /* nanoseconds; it takes some microseconds */

static _Atomic uint32_t waiting; /* 1: the thread is at it */
static _Atomic uint64_t begun;   /* when it went on to the last context */
static atomic_bool abandoned;    /* nobody wants to know any more: it stops before the next one */
static atomic_int answered;
static unsigned long thread;
static bool started;

/* One that has gone in a way that nobody told us of has nothing left to do. */
static int wait_for(context one) {
    int result = driver.cuCtxPushCurrent_v2(one);

    if (result == CUDA_INVALID_CONTEXT || result == CUDA_CONTEXT_IS_DESTROYED)
        return CUDA_SUCCESS;
    if (result != CUDA_SUCCESS)
        return result;
    result = driver.cuCtxSynchronize();
    driver.cuCtxPopCurrent_v2(&one);
    return result == CUDA_CONTEXT_IS_DESTROYED ? CUDA_SUCCESS : result;
}

/* In this order, and by abandon() in the other: one of the two sees the other. */
static bool may_go_on(void) {
    atomic_store(&begun, system_nanoseconds());
    return !atomic_load(&abandoned);
}

static void *synchronize(void *data) {
    context list[MOST];
    size_t count = contexts_known(list, MOST);
    int mode = RELAXED, result = CUDA_SUCCESS;

    (void)data;
    if (driver.cuThreadExchangeStreamCaptureMode != NULL)
        driver.cuThreadExchangeStreamCaptureMode(&mode);
    if (count > MOST)
        result = CUDA_NOT_SUPPORTED;
    for (size_t n = 0; n < count && result == CUDA_SUCCESS && may_go_on(); n++)
        result = wait_for(list[n]);
    atomic_store(&answered, result);
    atomic_store(&waiting, 0);
    system_wake(&waiting);
    return NULL;
}

/* True: no thread is at it any more. */
static bool over(uint64_t until) {
    while (atomic_load(&waiting) == 1) {
        uint64_t now = system_nanoseconds();

        if (now >= until)
            return false;
        system_wait(&waiting, 1, until - now);
    }
    if (started)
        join_thread(thread);
    started = false;
    return true;
}

/* From here on it does nothing but wait where it waits already. */
static void abandon(void) {
    atomic_store(&abandoned, true);
    over(atomic_load(&begun) + INTO_DRIVER);
}

bool drain(uint64_t nanoseconds, int *result) {
    uint64_t until = system_nanoseconds() + nanoseconds;

    if (!over(until))
        return false;
    atomic_store(&abandoned, false);
    atomic_store(&begun, system_nanoseconds());
    atomic_store(&waiting, 1);
    started = start_thread(synchronize, NULL, &thread);
    if (!started) {
        atomic_store(&waiting, 0);
        return false;
    }
    if (!over(until)) {
        abandon();
        return false;
    }
    *result = atomic_load(&answered);
    return true;
}
