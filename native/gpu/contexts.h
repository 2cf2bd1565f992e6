/* The contexts of this process, and which device reaches whose memory. */
#pragma once

#include "driver.h"

#include <stdbool.h>

/* The calling thread's, and its device; false: there is none. Takes note of it. */
bool context_here(context *current, int *device);

/* All that are known, at most `size`; how many there are (SIZE_MAX: more than are known). */
size_t contexts_known(context *list, size_t size);

/* One that is current on the device; NULL: none is known. */
context context_on(int device);

/* Makes it the calling thread's for a while. False: it is none (any more); then nothing is left. */
bool context_enter(context wanted);
void context_leave(bool entered);

/* The devices that reach memory of this one, by bit; itself among them. With the table's lock. */
uint64_t reached_from(int device);
