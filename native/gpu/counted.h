/* Device memory that stays with the driver, by reason: so many bytes of each kind are known. */
#pragma once

#include "driver.h"
#include "wire.h"

/* It has been allocated; nothing happens for 0. */
void count_in(address at, uint64_t size, enum thaw_gpu_left kind);

/*
 * Memory of another process has been opened: THAW_GPU_LEFT_IMPORTED. Whoever opens it again gets
 * the same address, and it stays until it was closed as often. It goes with the context that is
 * given; NULL: with none.
 */
void count_opened(address at, uint64_t size, context here);

/* It has been freed, or closed once; nothing happens for what was not counted. */
void count_out(address at);

/* The context has gone, and what was opened in it. */
void count_out_of(context gone);

/* It counts as this kind from now on, if it is not of another process. */
void count_as(address at, enum thaw_gpu_left kind);

void counted(uint64_t left[THAW_GPU_LEFT_KINDS]);
