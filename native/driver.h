/* What cuda.c and device.c, which share a driver, have in common. */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

/* A function of the driver, and where its pointer goes. */
struct cuda_symbol {
    const char *name;
    size_t place; /* bytes from the start of a struct of pointers */
    bool optional;
};

/*
 * Loads `library` and looks `count` symbols up in it: zero, -ELIBACC with the loader's reason in
 * `why`, or -ENOSYS with the names of all that are missing. It is never unloaded after a success:
 * from cuInit on the driver has threads, and handlers for the process's end.
 */
int cuda_load(const char *library, const struct cuda_symbol *symbols, size_t count, void *pointers,
              char *why, size_t size);

/* No signal is delivered to this thread, but for those that it causes itself, until the release. */
void cuda_hold_signals(sigset_t *before);

/* Returns `result`. */
int cuda_release_signals(const sigset_t *before, int result);
