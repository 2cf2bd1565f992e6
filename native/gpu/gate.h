/*
 * The gate in front of every call that has the GPU do something, waits for it, or changes what
 * memory there is. While it is closed, they wait. Entering it costs two atomic additions to a
 * counter that few threads share.
 *
 * A child of fork(2) has no CUDA (the driver refuses), and nobody who would open the gate: it goes
 * through.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* A call of ours inside another, as from a callback of the driver's, is inside already. */
void gate_enter(void);
void gate_leave(void);

/* True once nobody is inside; false, and open again, if that takes longer. Of one thread only. */
bool gate_close(uint64_t nanoseconds);
void gate_open(void);

/* Whether this process is the one that has used the driver; the first to ask is. */
bool same_process(void);
