/* What save.c, schedule.c and pieces.c have in common. */
#pragma once

#include "device.h"
#include "thaw.h"

#include <pthread.h>
#include <stdbool.h>
#include <sys/uio.h>

enum {
    PAGE = 4096,
    PIECE = 4 << 20, /* bytes; addresses are cut at multiples of it */
    GROUP = 8 << 20, /* bytes of a buffer: two pieces or many */
    PIECES = 1024,   /* at most in a group: IOV_MAX */
    HOLE = 64 << 10, /* bytes of zeros that are worth a cut */
    HUGE_PAGE = 2 << 20,
    MOST_THREADS = 64,
    WRITERS = 4, /* threads that wait for the disk most of the time */
    ANONYMOUS = 1,
    WANTED = 2, /* flags of a run */
    READING = 1,
    TOO_SHORT = 2,
    MEMORY = 4,
    OWN = 5,
    GPU = 6, /* stages of a failure */
};

struct piece {
    uint64_t address;
    uint64_t offset;
    uint32_t length;
    uint32_t run;
};

struct extents {
    struct thaw_extent *items;
    size_t count;
    size_t room;
};

/* Bytes of the buffer that are still to be written. */
struct span {
    const char *data;
    uint64_t offset;
    size_t length;
};

/* Consecutive pieces of one file, and a buffer with their bytes. */
struct group {
    struct group *next;
    char *buffer;
    bool known; /* to the GPUs' driver, if they are */
    bool pinned;
    int fd;
    size_t size; /* bytes */
    size_t count;
    struct piece pieces[PIECES];
};

struct worker {
    struct thaw_save *save;
    pthread_t thread;
    struct iovec remote[PIECES];
    struct span pending;
    struct extents extents;
    struct lane lane;
    struct mark mark;
};

struct thaw_save {
    int *fds;
    bool copying; /* from processes or regions; otherwise the bytes are in the files */
    int *pids;
    struct thaw_region **regions; /* not touched once all is read */
    struct thaw_device *device;   /* of the regions; NULL: there are none */
    uint32_t gpu;                 /* one of theirs */
    struct thaw_run *runs;
    size_t count;
    struct worker *workers;
    uint32_t threads;
    uint32_t writers; /* threads that write while there is still something to read */
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    size_t next;    /* number of the run that is taken next */
    uint64_t taken; /* bytes of that run that are taken */
    bool exhausted; /* all is taken */
    uint32_t reading;
    uint32_t writing; /* groups that threads are at */
    struct group *first;
    struct group *last;  /* groups that are read and wait to be written */
    struct group *spare; /* buffers that nobody needs */
    uint64_t groups;     /* buffers that there are */
    uint64_t most;       /* buffers that there may be */
    struct thaw_failure failure;
    bool joined;                 /* all threads have ended */
    struct thaw_extent *extents; /* the result then */
    size_t extent_count;
};

/* schedule.c: what a thread does; the argument is its worker. */
void *thaw_save_work(void *argument);

/* Gives a buffer back to the system. */
void thaw_save_drop(struct thaw_save *save, struct group *group);

/* Gives back what a thread needed of the GPUs. */
void thaw_save_leave(struct worker *worker);

/* Keeps the first failure, which makes all threads stop. Always false, to be returned. */
bool thaw_save_fail(struct thaw_save *save, int error, int stage, uint64_t place);

/* The same with what a call of device.h has returned: the driver's answer, or -errno. */
bool thaw_save_fail_gpu(struct worker *worker, int result, uint64_t place);

/* pieces.c: reads the group's bytes into its buffer; false if that failed. */
bool thaw_save_fetch(struct worker *worker, struct group *group);

/* Makes the extents of what is in the buffer, and writes it if it is a task's. */
bool thaw_save_digest(struct worker *worker, const struct group *group);
