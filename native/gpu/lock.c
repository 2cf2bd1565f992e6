/* See lock.h. */
#include "lock.h"

#include "gate.h"
#include "system.h"

#define WRITER UINT32_MAX

/* Whoever held it when this process was forked is not here. */
static void wait(struct lock *lock, uint32_t state) {
    if (!same_process()) {
        atomic_store(&lock->state, 0);
        return;
    }
    atomic_fetch_add(&lock->waiting, 1);
    system_wait(&lock->state, state, 0);
    atomic_fetch_sub(&lock->waiting, 1);
}

void lock_read(struct lock *lock) {
    uint32_t state = atomic_load(&lock->state);

    for (;;) {
        if (state == WRITER) {
            wait(lock, state);
            state = atomic_load(&lock->state);
        } else if (atomic_compare_exchange_weak(&lock->state, &state, state + 1)) {
            return;
        }
    }
}

void unlock_read(struct lock *lock) {
    if (atomic_fetch_sub(&lock->state, 1) == 1 && atomic_load(&lock->waiting) > 0)
        system_wake(&lock->state);
}

void lock_write(struct lock *lock) {
    uint32_t state = 0;

    while (!atomic_compare_exchange_weak(&lock->state, &state, WRITER)) {
        if (state != 0)
            wait(lock, state);
        state = 0;
    }
}

void unlock_write(struct lock *lock) {
    atomic_store(&lock->state, 0);
    if (atomic_load(&lock->waiting) > 0)
        system_wake(&lock->state);
}
