/*
 * Everything that shim._native offers, declared once: here, and in checkpoint.h and direct.h.
 *
 * C includes this header and cffi reads it (native/bind.py drops the preprocessor lines), so
 * only plain declarations stand here: no macros, no inline code, no conditionals.
 *
 * Every function returns zero or a value >= 0 on success and -errno on failure (those that are
 * about GPUs also what the driver answered); none of them touches Python. cffi releases the
 * interpreter lock around each call.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* mount.c ------------------------------------------------------------------------------------ */

/*
 * mount(2). With `dir` set, relative paths in `data` are taken from there while the process keeps
 * its own working directory: `source` and `target` should then be absolute.
 */
int thaw_mount(const char *dir, const char *source, const char *target, const char *type,
               unsigned long flags, const char *data);

/* umount2(2). */
int thaw_umount(const char *target, int flags);

/* loop.c ------------------------------------------------------------------------------------- */

/*
 * Attaches `file` to a free loop device that the kernel clears by itself after its last user.
 * Returns a descriptor of the device, to be kept open until it is mounted, and its path in `name`.
 */
int thaw_loop_attach(const char *file, int readonly, int direct, char *name, size_t size);

/* Detaches `device`, for one that was never mounted or is held by somebody else. */
int thaw_loop_detach(const char *device);

/* notify.c ----------------------------------------------------------------------------------- */

/* A new inotify descriptor, close-on-exec and non-blocking. */
int thaw_inotify_init(void);

/* Watches `path` for `mask`; returns the watch. */
int thaw_inotify_add(int fd, const char *path, unsigned int mask);

/* Ends a watch. */
int thaw_inotify_remove(int fd, int watch);

/* process.c ---------------------------------------------------------------------------------- */

/* Orphaned descendants become children of this process (on) or of init again (off). */
int thaw_set_subreaper(int on);

/* A new core scheduling cookie for the process `pid` (0: this one), all its threads. */
int thaw_sched_core_create(int pid);

/* The calling thread, and what it starts, takes the core scheduling cookie of `pid`. */
int thaw_sched_core_join(int pid);

/* A copy, close-on-exec, of descriptor `fd` of another process; needs the rights to trace it. */
int thaw_pidfd_getfd(int pidfd, int fd);

/* checksum.c --------------------------------------------------------------------------------- */

/* CRC-32C (Castagnoli, as iSCSI and ext4 use it) of `size` bytes, going on from `crc` (0 first). */
uint32_t thaw_crc32c(uint32_t crc, const void *data, size_t size);

/* The same over a whole file, read from its start: its checksum and its size in bytes. */
int thaw_crc32c_file(int fd, uint32_t *crc, uint64_t *size);

/* images.c ----------------------------------------------------------------------------------- */

/* How many pages the entries of a CRIU pagemap have, all that follows its head. -EBADMSG: one of
   them is none that CRIU 4.2 would write. */
int64_t thaw_pagemap_pages(const void *data, size_t size);

/* A mapping as CRIU's mm-*.img has it (criu.Vma). */
struct thaw_vma {
    uint64_t start, end, pgoff, shmid;
    uint32_t prot, flags, status, unused;
};

/* How many mappings the message criu.Mm in `data` has; the first `most` of them go to `list`, and
   the number of the executable's file to `executable`. -EBADMSG: it is no such message, or one that
   CRIU 4.2 would not write. */
int64_t thaw_mm_vmas(const void *data, size_t size, uint32_t *executable, struct thaw_vma *list,
                     size_t most);

/* extents: what fill.c and save.c have in common --------------------------------------------- */

/*
 * A piece of a task's memory and where its data lies. Also the record of an index on disk
 * (little-endian, 32 bytes). Address, offset and length are whole pages of 4096 bytes; none
 * is longer than 4 MiB or crosses a multiple of 4 MiB of the address.
 */
struct thaw_extent {
    uint64_t address;  /* in the task */
    uint64_t offset;   /* in the source, bytes */
    uint32_t length;   /* bytes */
    uint32_t checksum; /* CRC-32C of these bytes */
    uint32_t task;     /* number in the list of tasks */
    uint16_t source;   /* number in the list of sources */
    uint16_t flags;    /* 1: anonymous private memory, whose zero pages need not be written */
};

/* A file with data, open for reading. */
struct thaw_source {
    uint64_t size; /* bytes that extents may lie in */
    int file;      /* its descriptor */
};

/* What went wrong first. */
struct thaw_failure {
    int error;      /* errno; 0: nothing */
    int stage;      /* 1 reading a file, 2 it is too short, 3 checksum, 4 the task's memory, */
                    /* 5 own: threads, memory, cancelled, nonsense asked for, writing a file, or */
                    /* 6 the CUDA driver: `error` is what it answered, others are told EIO, */
                    /* 7 cuFile: see direct.h */
    uint64_t place; /* number of the extent or run; UINT64_MAX: none is to blame */
    const char *call; /* stage 6: which of the driver's functions that was */
};

/* device.c, scan.c --------------------------------------------------------------------------- */

/*
 * Memory on GPUs that this process uses itself, with the CUDA driver, and can share with others.
 * What the driver answers is passed on, and `*call` is the name of its function then.
 */
struct thaw_device;

/* One piece of memory, mapped here. Others that share in it need not know. */
struct thaw_region;

/* As thaw_cuda_open, for the driver's calls that are about memory. */
int thaw_device_open(const char *library, struct thaw_device **device, char *why, size_t size);

/* The number that the GPU with this UUID (16 bytes) has for us. -ENODEV: there is none. */
int thaw_device_use(struct thaw_device *device, const unsigned char *uuid, uint32_t *gpu,
                    const char **call);

/* Gives the GPUs back, when there is no region and no copy of it any more. */
void thaw_device_close(struct thaw_device *device);

/* Makes memory that is all zeros. `size` is a multiple of the GPU's granularity (2 MiB). `rdma`, if
   not 0: network cards are to reach it, where they reach any. */
int thaw_region_create(struct thaw_device *device, uint32_t gpu, uint64_t size, int rdma,
                       struct thaw_region **region, const char **call);

/* Takes part in memory that another process has exported as `file`, which is not taken over. */
int thaw_region_import(struct thaw_device *device, uint32_t gpu, uint64_t size, int file,
                       struct thaw_region **region, const char **call);

/* A new descriptor, close-on-exec, of memory that was created here: the caller's. */
int thaw_region_export(struct thaw_region *region, int *file, const char **call);

/* Sets each of `count` flags, one for every 64 KiB of the region, to whether that is not zero. */
int thaw_region_scan(struct thaw_region *region, unsigned char *flags, size_t count,
                     const char **call);

/* Lets go of it. After a failure it is gone all the same. */
int thaw_region_close(struct thaw_region *region, const char **call);

/* Copies all of a region, on its GPU, into another of its size there, and waits for that. */
int thaw_region_copy(struct thaw_region *from, struct thaw_region *to, const char **call);

/* pinned.c ----------------------------------------------------------------------------------- */

/* Memory of this process. */
struct thaw_memory {
    void *address;
    uint64_t size; /* bytes */
};

/*
 * Pins memory, of which all pages must be there, for all GPUs, until it is unpinned: copies from it
 * are as fast as the bus. `gpu` is any one that is in use, and the same when it is unpinned.
 */
int thaw_memory_pin(struct thaw_device *device, uint32_t gpu, void *address, uint64_t size,
                    const char **call);
int thaw_memory_unpin(struct thaw_device *device, uint32_t gpu, void *address, const char **call);

/*
 * Copies from memory, best pinned, into regions of one thaw_device, and waits for the end: also
 * after a failure nothing is copied any more. An extent's source is the number of a piece of
 * memory, its task that of a region and its address a place in there. Checksums are not looked at.
 * -EINVAL, before anything is copied, if an extent leaves its memory or its region.
 */
int thaw_region_put(struct thaw_region *const *regions, size_t region_count,
                    const struct thaw_memory *sources, size_t source_count,
                    const struct thaw_extent *extents, size_t count, const char **call);

/* fill.c ------------------------------------------------------------------------------------- */

struct thaw_fill;

struct thaw_fill_options {
    uint64_t budget;   /* bytes of read-ahead buffers at most; less than 4 MiB: none */
    uint32_t readers;  /* threads that read ahead, past the page cache; 0: chosen */
    uint32_t fillers;  /* threads that verify and write; 0: one per processor that we may use, */
                       /* and for GPUs five for every eight, but not more than 24 for each GPU */
    uint32_t source;   /* 0 chosen per piece by what is cached, 1 page cache, 2 direct I/O */
};

/* Counters, in bytes, that only grow (but for `buffered`): to be read while it runs. */
struct thaw_progress {
    uint64_t total;    /* of all extents */
    uint64_t direct;   /* read past the page cache */
    uint64_t cached;   /* read through the page cache */
    uint64_t buffered; /* in read-ahead buffers now */
    uint64_t peak;     /* the most there was in them */
    uint64_t done;     /* verified and, with tasks or regions, written */
    uint64_t zero;     /* of these, zero pages that were not written */
};

/*
 * A fill of `count` extents from `sources`, whose files are not taken over: they stay open until
 * the fill is closed. They are read in the order of the extents, which is the caller's to choose.
 * The sources are copied; `extents` must outlive the fill and never change, so no mapping of a
 * file. Nothing is started. -EINVAL for what would leave a source or our buffers; that addresses
 * are right is for the caller to know. Files may change under our hands at any time.
 */
int thaw_fill_open(const struct thaw_source *sources, size_t source_count,
                   const struct thaw_extent *extents, size_t count,
                   const struct thaw_fill_options *options, struct thaw_fill **fill);

/*
 * Starts reading ahead as far as the budget goes: what is not in the page cache first and then,
 * until thaw_fill_start or thaw_fill_hurry and if `source` is not 1, what is. All of that is
 * verified at once.
 */
int thaw_fill_prefetch(struct thaw_fill *fill);

/* From now on what is in the page cache stays there: others need the processors. */
void thaw_fill_hurry(struct thaw_fill *fill);

/*
 * Starts writing into the tasks; task N of the extents is the process pids[N], which is held on to
 * by a descriptor. NULL instead of pids: only verifies. -EINVAL if a task of the extents has no
 * pid. With `nodes`, the threads are spread over the processors of these NUMA nodes and
 * the memory they touch first comes from there.
 */
int thaw_fill_start(struct thaw_fill *fill, const int *pids, size_t pid_count, const int *nodes,
                    size_t node_count);

/*
 * Starts copying into regions instead, on so many GPUs (0: one) of one thaw_device; task N of the
 * extents is region N, which has sizes[N] bytes, and addresses are places in it. Nothing goes there
 * before it is verified. What no extent covers stays as it is. All buffers that are used become
 * pinned memory, and up to 12 MiB more for each thread. -EINVAL if an extent leaves its region.
 *
 * Regions may be made while others are filled: each is there from its thaw_fill_region on, and what
 * is for it waits until then, before all that comes after it. Without extents it need not come.
 */
int thaw_fill_start_device(struct thaw_fill *fill, const uint64_t *sizes, size_t count,
                           uint32_t gpus);

/*
 * Here is region `number`. It is needed until the end (thaw_fill_wait), its device until
 * thaw_fill_close. After a failure it is not looked at: thaw_fill_wait tells of that. -EINVAL if
 * the fill has no such region or has it, or it is of another size or another thaw_device.
 */
int thaw_fill_region(struct thaw_fill *fill, size_t number, struct thaw_region *region);

/*
 * Waits for the end: 0, or -errno of the first failure, -ECANCELED, -ETIMEDOUT (goes on). Less than
 * no milliseconds: for ever. After the end, also after a failure, no task is touched any more.
 */
int thaw_fill_wait(struct thaw_fill *fill, int milliseconds);

/* Makes all threads stop soon; from any thread, at any time, more than once. */
void thaw_fill_cancel(struct thaw_fill *fill);

void thaw_fill_progress(struct thaw_fill *fill, struct thaw_progress *progress);
void thaw_fill_failure(struct thaw_fill *fill, struct thaw_failure *failure);

/*
 * Cancels, waits for all threads, gives everything back. No other call may be under way, in any
 * thread, or follow: the fill is gone.
 */
void thaw_fill_close(struct thaw_fill *fill);

/* save.c ------------------------------------------------------------------------------------- */

/* A run of whole pages, of any length, in a task and in a file. */
struct thaw_run {
    uint64_t address;
    uint64_t offset;
    uint64_t length;
    uint32_t task;
    uint16_t source; /* number in the list of files */
    uint16_t flags;  /* 1: anonymous private memory; 2: extents are wanted */
};

struct thaw_save;

/*
 * Works through `count` runs, in their order, with `threads` threads (0: chosen). For runs with
 * flag 2, extents are made: cut at multiples of 4 MiB of the address and around stretches of zero
 * pages of 64 KiB or more of anonymous memory, which are left out. They come sorted by source, then
 * offset.
 *
 * With `pids`, the bytes are read from the tasks' memory and written to the files: opened for
 * writing, best with O_DIRECT, empty and as long as they shall be, since zeros become holes. A pid
 * below zero means the file ~pid, whose offsets the addresses are then. `budget` is how many bytes
 * may be read and not yet written, 8 MiB at least; a thread needs 8 MiB of it, so there are no more
 * threads than that gives. The tasks are needed no longer once all is read. Without
 * `pids`, the bytes are read from the files, opened for reading. Where O_DIRECT is refused, it is
 * taken off the file.
 *
 * The arrays are copied, the descriptors are not. -ENOMEM is the only error here; all others, also
 * runs that make no sense and threads that cannot be started, are thaw_save_wait's to tell.
 */
int thaw_save_start(const int *fds, size_t fd_count, const struct thaw_run *runs, size_t count,
                    const int *pids, size_t pid_count, uint32_t threads, uint64_t budget,
                    struct thaw_save **save);

/*
 * The same with bytes that come from regions: run.task is the number of one and run.address a
 * place in it. Only what has flag 1 is searched for zeros; all else goes into the files as it is.
 * The regions are needed until all is read, their device until thaw_save_close.
 */
int thaw_save_start_device(const int *fds, size_t fd_count, const struct thaw_run *runs,
                           size_t count, struct thaw_region *const *regions, size_t region_count,
                           uint32_t threads, uint64_t budget, struct thaw_save **save);

/*
 * Waits until all is read, or, with `written`, done: 0, or -errno of the first failure. After a
 * failure without `written`, threads may still be at the tasks and descriptors: they are in use
 * until thaw_save_close.
 */
int thaw_save_wait(struct thaw_save *save, int written, struct thaw_failure *failure);

/* Makes it fail soon, with ECANCELED; from any thread, also while one waits, more than once. */
void thaw_save_cancel(struct thaw_save *save);

/* From start to end with the least budget: one thread, with `pids`. A failure leaves nothing. */
int thaw_save_run(const int *fds, size_t fd_count, const struct thaw_run *runs, size_t count,
                  const int *pids, size_t pid_count, uint32_t threads, struct thaw_save **save,
                  struct thaw_failure *failure);

/* The extents, once all is done. */
const struct thaw_extent *thaw_save_extents(const struct thaw_save *save, size_t *count);

/* Makes all threads stop, waits for them, gives everything back. */
void thaw_save_close(struct thaw_save *save);
