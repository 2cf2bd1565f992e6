/* Waiting until the GPU has come to rest. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/*
 * True: all contexts have, or one has answered an error (*result); false: not in time. Then a
 * thread may still be waiting for one context, but for no further one, and the next call waits for
 * that thread first. With the gate closed.
 */
bool drain(uint64_t nanoseconds, int *result);
