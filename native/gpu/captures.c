/* See captures.h. */
#include "captures.h"

#include "contexts.h"
#include "entries.h"
#include "gate.h"
#include "lock.h"

#define MOST 256
#define PER_THREAD ((stream)2) /* CU_STREAM_PER_THREAD, which NULL stands for in some programs */

/* A stream stands here once for each capture: the same name is another stream in each thread, if it
   is PER_THREAD. */
static struct capture {
    stream stream;
    context context; /* its; NULL if that is not known */
} captured[MOST];
static atomic_uint count;
static struct lock lock;

bool captures_under_way(void) {
    return atomic_load(&count) > 0;
}

static int begun(int result, stream s) {
    if (result == CUDA_SUCCESS) {
        context current = NULL;
        unsigned int n;
        int device;

        context_here(&current, &device);
        lock_write(&lock);
        n = atomic_load(&count);
        if (n < MOST) {
            captured[n] = (struct capture){s, current};
            atomic_store(&count, n + 1);
        }
        unlock_write(&lock);
    }
    gate_leave();
    return result;
}

/* With the lock. */
static void take_out(unsigned int at) {
    unsigned int n = atomic_load(&count);

    captured[at] = captured[n - 1];
    atomic_store(&count, n - 1);
}

static void ended(stream s) {
    lock_write(&lock);
    for (unsigned int at = atomic_load(&count); at > 0; at--)
        if (captured[at - 1].stream == s) {
            take_out(at - 1);
            break;
        }
    unlock_write(&lock);
}

void end_captures_of(context gone) {
    lock_write(&lock);
    for (unsigned int at = atomic_load(&count); at > 0; at--)
        if (captured[at - 1].context == gone)
            take_out(at - 1);
    unlock_write(&lock);
}

/* An error has ended the capture, too, but for a thread that may not end it. */
static int end(int result, stream s) {
    if (result != CUDA_CAPTURE_WRONG_THREAD)
        ended(s);
    return result;
}

static stream own(stream s) {
    return s == NULL ? PER_THREAD : s;
}

#define BEGIN(symbol, parameters, arguments, named)                                                \
    int symbol parameters {                                                                        \
        REAL(symbol);                                                                              \
        gate_enter();                                                                              \
        return begun(driver.symbol arguments, named);                                              \
    }

BEGIN(cuStreamBeginCapture, (stream s), (s), s)
BEGIN(cuStreamBeginCapture_ptsz, (stream s), (s), own(s))
BEGIN(cuStreamBeginCapture_v2, (stream s, int mode), (s, mode), s)
BEGIN(cuStreamBeginCapture_v2_ptsz, (stream s, int mode), (s, mode), own(s))
BEGIN(cuStreamBeginCaptureToGraph,
      (stream s, void *graph, const void *nodes, const void *edges, size_t n, int mode),
      (s, graph, nodes, edges, n, mode), s)
BEGIN(cuStreamBeginCaptureToGraph_ptsz,
      (stream s, void *graph, const void *nodes, const void *edges, size_t n, int mode),
      (s, graph, nodes, edges, n, mode), own(s))

int cuStreamEndCapture(stream s, void **graph) {
    REAL(cuStreamEndCapture);
    return end(driver.cuStreamEndCapture(s, graph), s);
}

int cuStreamEndCapture_ptsz(stream s, void **graph) {
    REAL(cuStreamEndCapture_ptsz);
    return end(driver.cuStreamEndCapture_ptsz(s, graph), own(s));
}

/* A capture goes with its stream. */
int cuStreamDestroy_v2(stream s) {
    REAL(cuStreamDestroy_v2);
    return end(driver.cuStreamDestroy_v2(s), s);
}
