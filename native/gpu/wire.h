/*
 * What the GPU memory library, in a worker, and the engine, outside, say to one another.
 *
 * The library makes a pair of SOCK_SEQPACKET sockets and keeps both ends: its thread reads one, and
 * the other lies idle until the engine takes it out of the process (pidfd_getfd(2), for which it
 * needs the rights to trace it). So there is no name that could be taken or be in the way after a
 * restore, nobody else can speak to it, and CRIU dumps and restores it like any pair.
 *
 * Where that end is says the marker: one page of memory that shows as "/memfd:thaw-gpu (deleted)"
 * in /proc/PID/maps, not inherited by children. Everything is little-endian, as on all machines
 * with such GPUs. Nothing in it is trusted by the engine: it is a worker's.
 *
 * One request, one answer, in turn. A message is a header and `count` records, at most
 * THAW_GPU_RECORDS; descriptors travel beside it, one for each record. A conversation is begun by
 * HELLO; what a conversation that broke off has left behind, STATE of the answer tells.
 */
#pragma once

#include <stdint.h>

#define THAW_GPU_MARKER "thaw-gpu" /* memfd_create's name */
#define THAW_GPU_MAGIC UINT64_C(0x3155504757414854) /* "THAWGPU1" */
#define THAW_GPU_VERSION 1
#define THAW_GPU_UNIT (UINT64_C(2) << 20) /* bytes: all sizes are multiples of it */
#define THAW_GPU_RECORDS 64 /* of a message at most; SCM_RIGHTS takes 253 descriptors */

/* The marker. */
struct thaw_gpu_marker {
    uint64_t magic;
    uint32_t version;
    uint32_t pid;  /* getpid(), as it is in the process's own pid namespace */
    int32_t engine; /* the descriptor of the engine's end */
    uint32_t state; /* as in struct thaw_gpu_header; for people and tests */
};

enum thaw_gpu_kind {
    THAW_GPU_HELLO = 1, /* answer: struct thaw_gpu_about */
    THAW_GPU_HOLD,      /* value: milliseconds. No call that touches the GPU goes on; it has come to
                           rest. THAW_GPU_BUSY, and all goes on, if that takes longer */
    THAW_GPU_EXPORT,    /* value: the first id wanted (0: from the start). Answer: up to
                           THAW_GPU_RECORDS struct thaw_gpu_memory with larger or equal ids, by id,
                           each with a descriptor; none: there are no more. What the driver makes
                           none for is first copied, on its GPU. Only while held */
    THAW_GPU_EMPTY,     /* unmap and release all that was exported; its addresses stay reserved.
                           On a failure all is as it was before. Only while held */
    THAW_GPU_GIVE,      /* records with descriptors: import and map where it was. Any order; only
                           while emptied */
    THAW_GPU_OPEN,      /* go on. THAW_GPU_MISSING if not all was given back */
    THAW_GPU_MAKE,      /* one record, without a descriptor: make it anew where it was, for whoever
                           cannot give it, and answer it with a descriptor. What is in it is the
                           engine's to fill. Only while emptied; from then on none of this process's
                           memory can be moved, as it could not be given back either */
};

/* Of an answer. What the CUDA driver answers is passed on as THAW_GPU_CUDA with `value` its
   result. */
enum thaw_gpu_status {
    THAW_GPU_OK = 0,
    THAW_GPU_CUDA,    /* a call of the driver failed: see value; text: its name */
    THAW_GPU_BUSY,    /* it did not come to rest in time */
    THAW_GPU_MISSING, /* something was not given back */
    THAW_GPU_WRONG,   /* not now, or not so: text says what */
};

enum thaw_gpu_state { THAW_GPU_RUNNING = 0, THAW_GPU_HELD, THAW_GPU_EMPTIED };

struct thaw_gpu_header {
    uint32_t kind;   /* of the request; the same in its answer */
    uint32_t status; /* of an answer; 0 in a request */
    uint32_t state;  /* of the library, after the request; 0 in a request */
    uint32_t count;  /* of records that follow */
    uint64_t value;
    char text[64]; /* zero-terminated; for people */
};

/* Flags of struct thaw_gpu_memory: how memory has to be made that shall take its place. */
enum {
    THAW_GPU_RDMA = 1, /* gpuDirectRDMACapable: network cards may reach it */
};

/* One piece of device memory (a cuMemCreate of ours or of the program's). */
struct thaw_gpu_memory {
    uint64_t id;   /* stays the same for as long as the memory lives; never 0 */
    uint64_t size; /* bytes, a multiple of THAW_GPU_UNIT, which is the devices' granularity */
    uint32_t device; /* number in thaw_gpu_about.devices */
    uint32_t flags;
};

#define THAW_GPU_DEVICES 64

/* Why device memory stays with the driver: bytes of each, as far as the library knows of them. */
enum thaw_gpu_left {
    THAW_GPU_LEFT_SMALL = 0, /* cuMemAlloc below 2 MiB */
    THAW_GPU_LEFT_POOL,      /* stream-ordered: cuMemAllocAsync */
    THAW_GPU_LEFT_MANAGED,   /* cuMemAllocManaged */
    THAW_GPU_LEFT_OTHER,     /* pitched, and what could not be made exportable; after
                                a THAW_GPU_MAKE all that could be moved before */
    THAW_GPU_LEFT_EXPORTED,  /* handed to other processes by the program */
    THAW_GPU_LEFT_IMPORTED,  /* of other processes: the driver cannot restore such a worker. Also
                                what was given back and cannot be moved any more */
    THAW_GPU_LEFT_KINDS
};

/* Flags of struct thaw_gpu_about. */
enum {
    THAW_GPU_GIVEN = 1, /* some was given back: for the driver it is another process's */
};

struct thaw_gpu_about {
    uint64_t movable; /* bytes that EXPORT would give */
    uint64_t pieces;  /* in so many */
    uint64_t left[THAW_GPU_LEFT_KINDS]; /* bytes */
    uint32_t devices; /* how many of `uuids` */
    uint32_t flags;
    unsigned char uuids[THAW_GPU_DEVICES][16];
};
