/*
 * VMM memory that a process still has when the driver checkpoints it: until it is restored, it lies
 * in private memory of the process, as with the real driver, and no descriptor is left. A thread of
 * the process does this, when whoever makes the checkpoint says so in `own.turn`.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static void *map(size_t size, int protection, int flags, int fd, void *at) {
    void *mapped = mmap(at, size, protection, flags, fd, 0);

    if (mapped == MAP_FAILED)
        abort();
    return mapped;
}

/* Only what is in the file: a page that nobody wrote to stays away from both. */
static void save(struct handle *handle) {
    off_t at = 0, end;

    handle->away = map(handle->size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, NULL);
    while ((at = lseek(handle->fd, at, SEEK_DATA)) >= 0 && (size_t)at < handle->size) {
        end = lseek(handle->fd, at, SEEK_HOLE);
        if ((size_t)end > handle->size)
            end = (off_t)handle->size;
        while (at < end) {
            ssize_t got = pread(handle->fd, (char *)handle->away + at, (size_t)(end - at), at);

            if (got <= 0)
                abort();
            at += got;
        }
    }
    close(handle->fd);
    handle->fd = -1;
}

static void bring_back(struct handle *handle) {
    static const char zeros[GRANULARITY];
    const struct location *where = &handle->properties.location;

    handle->fd = memory_file(handle->size, where->type == 1 ? where->id : 0,
                             handle->properties.rdma != 0);
    for (size_t at = 0; at < handle->size; at += GRANULARITY) {
        const char *piece = (const char *)handle->away + at;

        if (memcmp(piece, zeros, GRANULARITY) != 0 &&
            pwrite(handle->fd, piece, GRANULARITY, (off_t)at) != (ssize_t)GRANULARITY)
            abort();
    }
    munmap(handle->away, handle->size);
    handle->away = NULL;
}

static void move_out(void) {
    for (const struct mapping *one = mappings; one != NULL; one = one->next)
        map(one->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
            (void *)one->at);
    for (struct handle *handle = handles; handle != NULL; handle = handle->next)
        save(handle);
}

static void move_in(void) {
    for (struct handle *handle = handles; handle != NULL; handle = handle->next)
        bring_back(handle);
    for (const struct mapping *one = mappings; one != NULL; one = one->next)
        if (mmap((void *)one->at, one->size, protection_of(one), MAP_SHARED | MAP_FIXED,
                 one->handle->fd, (off_t)one->offset) == MAP_FAILED)
            abort();
}

static void *watch(void *nothing) {
    const struct timespec step = {0, 2000000};

    for (;; nanosleep(&step, NULL)) {
        int turn = own.turn;

        if (turn != GO && turn != COME)
            continue;
        lock_tables();
        (turn == GO ? move_out : move_in)();
        unlock_tables();
        own.turn = turn == GO ? AWAY : HERE;
    }
    return nothing;
}

static void start(void) {
    pthread_t thread;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, watch, NULL) != 0)
        abort();
    pthread_setname_np(thread, "fake-cuda");
    pthread_detach(thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    own.watched = 1;
}

void watch_over_memory(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    if (own.mark[0] != '\0')
        pthread_once(&once, start);
}
