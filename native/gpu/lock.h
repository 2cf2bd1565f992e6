/* A lock for many readers or one writer, on a futex: see system.h for why not the C library's. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

struct lock {
    _Atomic uint32_t state;   /* readers inside; UINT32_MAX: the writer is */
    _Atomic uint32_t waiting; /* threads that have to be woken */
};

void lock_read(struct lock *lock);
void unlock_read(struct lock *lock);
void lock_write(struct lock *lock);
void unlock_write(struct lock *lock);
