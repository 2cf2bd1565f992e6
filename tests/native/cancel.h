/* A fill that is cancelled while somebody waits for it. */
#pragma once

#include "check.h"
#include "thaw.h"

#include <pthread.h>
#include <unistd.h>

static void *cancel_it(void *fill) {
    struct thaw_progress progress;

    thaw_fill_progress(fill, &progress);
    usleep((useconds_t)progress.total % 700);
    thaw_fill_cancel(fill);
    return NULL;
}

/* Cancels from another thread, which may be before, during or after the fill. */
static int wait_cancelled(struct thaw_fill *fill) {
    pthread_t other;
    int result;

    CHECK(pthread_create(&other, NULL, cancel_it, fill) == 0);
    result = thaw_fill_wait(fill, -1);
    pthread_join(other, NULL);
    return result;
}
