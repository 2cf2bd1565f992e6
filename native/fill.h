/*
 * What the files of the filler share. thaw.h has the outside of it.
 *
 * The extents are cut once into batches (batch.c). A batch is handed around under one lock. Fresh
 * ones have not been looked at. A reader that takes one asks the page cache: what is not there it
 * reads into a buffer of the pool, and the batch is `ready`; what is there becomes `warm`. A filler
 * that takes a fresh one keeps it if it is warm and leaves it to the readers as `cold` if not.
 * Readers copy warm ones too, until the fillers start; then a filler reads them from the cache. A
 * batch is done when a filler has verified it and written it into its tasks, or, for regions of GPU
 * memory, when its copies have ended (delivery.c). It takes milliseconds to work on one and less
 * than a microsecond to hand it on, so one lock is enough.
 */
#pragma once

#include "device.h"
#include "thaw.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#define PAGE ((size_t)4096)
#define BUFFER ((size_t)4 << 20)  /* data of a batch at most; two huge pages */
#define BLOCK ((size_t)256 << 10) /* what a filler works on at once: see filler.c */
#define NONE UINT32_MAX
#define NOWHERE UINT64_MAX /* thaw_failure.place of what is no extent's fault */

enum { CHOSEN, PAGE_CACHE, DIRECT }; /* thaw_fill_options.source */
enum { STAGE_READ = 1, STAGE_SHORT, STAGE_CHECKSUM, STAGE_TASK, STAGE_OWN, STAGE_GPU };

/* blob.c: a source's file, open as it came and once more for direct I/O. */
struct blob {
    int file;
    int direct;            /* -1: it cannot be opened for it, or is not wanted */
    uint64_t size;         /* bytes that are expected */
    unsigned char *mapped; /* mapped.c: these; or NULL */
    _Atomic uint64_t copied, faults; /* bytes from there, and what these cost */
};

int blob_open_direct(struct blob *blob);
void blob_close_direct(struct blob *blob);

/* Bytes that were read, and how many of these past the page cache. */
struct portion {
    size_t got, direct;
};

/* Reads until `length` or the end of a file; *portion is true also if it fails. */
int blob_read(const struct blob *blob, bool direct, void *data, uint64_t offset, size_t length,
              struct portion *portion);

/* How many bytes of these are in the page cache. */
size_t blob_cached(const struct blob *blob, uint64_t offset, size_t length);

/* mapped.c: maps the file; if that cannot be, it is no failure. */
void blob_map(struct blob *blob);
void blob_unmap(struct blob *blob);

/* Whether what is in the page cache is better copied from there than read. */
bool blob_is_near(struct blob *blob);

/*
 * Copies, and goes on with *checksum, by what was copied. False, and *checksum is as it was, if
 * there is no such data any longer: reading will say why.
 */
bool blob_copy(struct blob *blob, uint64_t offset, void *data, size_t length, uint32_t *checksum);

/* batch.c: neighbouring extents that are read together. */
struct batch {
    uint64_t first; /* extent */
    uint32_t count;
    uint32_t size;   /* bytes in a buffer, with small gaps */
    uint32_t next;   /* in its queue */
    uint32_t buffer; /* number in the pool, or NONE */
    bool cold, warm; /* known not to be, or to be, in the page cache */
    bool verified;   /* in its buffer */
};

/* A part of a batch that lies together in a source; it starts at `place` in the buffer. */
struct segment {
    uint64_t offset;
    uint32_t length;
    uint32_t place;
    uint16_t source;
};

void segment_start(struct segment *segment, const struct thaw_extent *extent);

/* Goes on by one extent: false if a new segment, right behind in the buffer, had to be started. */
bool segment_add(struct segment *segment, const struct thaw_extent *extent);

/* The batches of these extents, in their order; to be freed. */
struct batch *batches_cut(const struct thaw_extent *extents, size_t count, uint32_t *made);

struct queue {
    uint32_t head, tail;
};

/* pool.c: buffers of BUFFER bytes. */
struct pool {
    unsigned char *memory;
    size_t mapped;
    uint32_t *free; /* a stack: what was used last is used first */
    uint32_t free_count, count;
};

int pool_open(struct pool *pool, uint64_t budget, uint32_t wanted);
unsigned char *pool_buffer(const struct pool *pool, uint32_t buffer);
void pool_close(struct pool *pool);

/* placement.c: processors of a memory node that we may run on. */
struct place {
    cpu_set_t processors;
    int node;
};

/* Looks `nodes` up under `root` (/sys/devices/system/node); returns how many places it made. */
size_t places_find(const char *root, const int *nodes, size_t count, const cpu_set_t *own,
                   struct place *places);
uint32_t places_processors(const struct place *places, size_t count);
void place_enter(const struct place *place);

/* task.c: a process and its memory. */
struct task {
    pid_t pid;
    int pidfd; /* or one of task.c's reasons for having none */
};

/* Holds on to `count` processes; one that is gone fails when it is used. NULL: *err says why. */
struct task *tasks_open(const int *pids, size_t count, int *err);
void tasks_close(struct task *tasks, size_t count);

/* The number of a task that has ended; `count` if there is none. */
uint32_t tasks_find_gone(const struct task *tasks, uint32_t count);

int task_write(const struct task *task, uint64_t address, const unsigned char *data,
               size_t length);

/* The same without the pages that are zero, whose bytes are added to *zero. */
int task_write_sparse(const struct task *task, uint64_t address, const unsigned char *data,
                      size_t length, uint64_t *zero);

/* A thread and where it should run. */
struct worker {
    struct thaw_fill *fill;
    pthread_t thread;
    struct place place; /* node -1: anywhere */
};

struct counters {
    _Atomic uint64_t total, direct, cached, buffered, peak, done, zero;
};

struct thaw_fill {
    struct thaw_fill_options options;
    const struct thaw_extent *extents;
    size_t count;
    struct blob *blobs;
    size_t blob_count;
    struct batch *batches;
    uint32_t batch_count;
    struct task *tasks; /* NULL: nothing is written */
    uint32_t task_count;
    struct target *targets;     /* delivery.c: instead of tasks; NULL: no GPU is written to */
    size_t target_count;
    struct thaw_device *device; /* of the regions; NULL: there are none so far */
    uint32_t gpu;               /* one of theirs */
    uint32_t gpus;              /* how many they have */
    bool *pinned;               /* buffers of the pool; of each, its holder knows */
    struct counters counters;
    atomic_bool stop; /* set under the lock, seen by all without it */

    pthread_mutex_t lock;      /* of all that follows */
    pthread_cond_t work;       /* fillers: a batch became warm or ready, or all is over */
    pthread_cond_t room;       /* readers: a buffer, a cold batch, all is read or fillers start */
    pthread_cond_t given;      /* delivery.c: a region is there, or all is over */
    pthread_cond_t ended;      /* thaw_fill_wait */
    struct pool pool;
    struct queue warm, cold, ready;
    uint32_t fresh;            /* number of the first batch that nobody has looked at */
    uint32_t unread;           /* batches neither read nor found to be warm yet */
    uint32_t left;             /* batches that are not done */
    bool prefetching, started;
    bool hurried;              /* what is warm is left to the fillers */
    uint32_t readers, fillers; /* threads that still run */
    struct worker *workers[2]; /* readers, fillers */
    uint32_t worker_count[2];
    struct thaw_failure failure;
};

/* queue.c; all with the lock held. */
void queue_push(struct thaw_fill *fill, struct queue *queue, struct batch *batch);
struct batch *queue_pop(struct thaw_fill *fill, struct queue *queue);
struct batch *fresh_pop(struct thaw_fill *fill);
void batch_was_read(struct thaw_fill *fill);
void buffer_take(struct thaw_fill *fill, struct batch *batch);
void buffer_give(struct thaw_fill *fill, struct batch *batch);

/* False: what would make us read outside of the sources, or write outside of our buffers. */
bool extents_are_sane(const struct thaw_source *sources, size_t source_count,
                      const struct thaw_extent *extents, size_t count);

/* fill.c and batch.c; without it, but for what says so. */
void fill_fail(struct thaw_fill *fill, int error, int stage, uint64_t extent);
void fill_fail_locked(struct thaw_fill *fill, int error, int stage, uint64_t extent);
void fill_fail_gpu(struct thaw_fill *fill, int result, const char *call, uint64_t extent);
bool batch_is_cached(const struct thaw_fill *fill, const struct batch *batch);

/*
 * reader.c: reads and counts all of `length`, past the page cache if it can be for `cold` data.
 * Otherwise the stage of the failure, its errno, and in *offset where it stopped.
 */
int fill_read(struct thaw_fill *fill, uint16_t source, bool cold, void *data, uint64_t *offset,
              size_t length, int *error);

/* filler.c: what all who write have in common. */

/*
 * The next batch to write, with the lock held: what is in a buffer comes first, it frees the
 * buffer. NULL at the end, and if one would have to be waited for that nobody may wait for.
 */
struct batch *filler_take(struct thaw_fill *fill, bool wait);

/* Gives the batch's buffer back. Without the lock. */
void filler_release(struct thaw_fill *fill, struct batch *batch);

/* The batch is done; with the lock held. */
void filler_finish(struct thaw_fill *fill);

/* This thread, which writes no more, ends. */
void filler_end(struct thaw_fill *fill);

/* Reads and counts a piece of an extent; false if that failed. */
bool filler_read(struct thaw_fill *fill, const struct batch *batch, uint64_t extent, uint64_t at,
                 unsigned char *data, size_t length);

/*
 * delivery.c: makes room for regions of these sizes on so many GPUs, takes note of one, or drops
 * them all and what is pinned for them. The first two with the lock held.
 */
int delivery_open(struct thaw_fill *fill, const uint64_t *sizes, size_t count, uint32_t gpus);
int delivery_add(struct thaw_fill *fill, size_t number, struct thaw_region *region);
void delivery_close(struct thaw_fill *fill);

/* workers.c: starts readers and fillers, with the lock held; waits for their end without it. */
void fill_start_readers(struct thaw_fill *fill);
int fill_start_fillers(struct thaw_fill *fill, const int *nodes, size_t node_count);
void fill_join(struct thaw_fill *fill);

/* The threads: of struct worker. */
void *reader_main(void *worker);
void *filler_main(void *worker);
void *deliverer_main(void *worker);
