/*
 * Streams that are being captured into a graph. While one is, its context cannot be waited for (the
 * driver says so, and the capture is spoilt), and its launches must not be held up: the program
 * waits for none of them to be done.
 */
#pragma once

#include "driver.h"

#include <stdbool.h>

bool captures_under_way(void);

/* The context has gone, and all captures in its streams. */
void end_captures_of(context gone);
