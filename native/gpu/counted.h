/* Device memory that stays with the driver, by reason: so many bytes of each kind are known. */
#pragma once

#include "driver.h"
#include "wire.h"

/* It has been allocated; nothing happens for 0. */
void count_in(address at, uint64_t size, enum thaw_gpu_left kind);

/* It has been freed; nothing happens for what was not counted. */
void count_out(address at);

/* It counts as this kind from now on. */
void count_as(address at, enum thaw_gpu_left kind);

void counted(uint64_t left[THAW_GPU_LEFT_KINDS]);
