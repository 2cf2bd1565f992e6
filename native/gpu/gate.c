/* See gate.h. */
#include "gate.h"

#include "system.h"

#include <stdatomic.h>

#define STRIPES 64
#define STEP UINT64_C(100000) /* nanoseconds */

/* A cache line each: threads that launch at the same time do not take it from one another. */
static struct stripe {
    _Alignas(64) atomic_uint inside;
} stripes[STRIPES];

static _Atomic uint32_t closed;
static atomic_uint threads;
static atomic_int process;

/* The library is loaded with the program, so there is always room for these; no call is needed to
   get at them. */
#define OWN static __thread __attribute__((tls_model("initial-exec")))
OWN unsigned int depth;
OWN struct stripe *stripe;

bool same_process(void) {
    int pid = system_process(), none = 0;

    return atomic_compare_exchange_strong(&process, &none, pid) || none == pid;
}

void gate_enter(void) {
    if (depth++ > 0)
        return;
    if (stripe == NULL)
        stripe = &stripes[atomic_fetch_add(&threads, 1) % STRIPES];
    for (;;) {
        /* In this order, and by the closing thread in the other: one of the two sees the other. */
        atomic_fetch_add(&stripe->inside, 1);
        if (atomic_load(&closed) == 0 || !same_process())
            return;
        atomic_fetch_sub(&stripe->inside, 1);
        system_wait(&closed, 1, 0);
    }
}

void gate_leave(void) {
    if (--depth == 0)
        atomic_fetch_sub(&stripe->inside, 1);
}

bool gate_close(uint64_t nanoseconds) {
    uint64_t begun = system_nanoseconds();

    atomic_store(&closed, 1);
    for (size_t n = 0; n < STRIPES; n++)
        while (atomic_load(&stripes[n].inside) > 0) {
            if (system_nanoseconds() - begun >= nanoseconds) {
                gate_open();
                return false;
            }
            system_sleep(STEP);
        }
    return true;
}

void gate_open(void) {
    atomic_store(&closed, 0);
    system_wake(&closed);
}
