/*
 * What device memory there is: pieces (the memory itself, a cuMemCreate) and ranges (addresses
 * where a piece, or a part of it, is mapped).
 *
 * Both of the library's own, behind cuMemAlloc, and of the program's, which has virtual handles
 * for them: the real handle changes when memory is given back. Programs change the table inside
 * the gate with the lock held; while the gate is closed, it belongs to the engine's conversation.
 */
#pragma once

#include "driver.h"
#include "lock.h"
#include "wire.h"

#include <stdbool.h>

#define UNIT ((size_t)THAW_GPU_UNIT)
#define MOVABLE THAW_GPU_LEFT_KINDS /* beside enum thaw_gpu_left: nothing keeps it */

struct piece {
    uint64_t id;
    uint64_t size;
    handle real;
    context context; /* one that its device is current in; perhaps NULL */
    struct properties asked;
    int device;          /* -1: on none, or unknown */
    unsigned int kept;   /* why it stays with the driver, enum thaw_gpu_left, or MOVABLE */
    unsigned int users;  /* handles that the program holds: it may release each once */
    unsigned int calls;  /* under way for it without the lock: it stays until they are over */
    struct range *ranges; /* where it is mapped, linked */
    bool out;            /* the engine has got a descriptor of it, since the gate was closed */
    bool away;           /* it has been unmapped and released, and was not given back yet */
    bool given;          /* it was given back: another process has made it, for the driver */
};

struct range {
    address at;
    uint64_t size;
    uint64_t offset;    /* in the piece */
    uint64_t requested; /* bytes that cuMemAlloc was asked for; 0: mapped by the program */
    struct piece *piece;
    struct range *next; /* of the piece */
    uint64_t readers, writers; /* devices, by bit */
    bool synchronous;          /* CU_POINTER_ATTRIBUTE_SYNC_MEMOPS: what the program has set */
    bool freed;                /* by the program; it goes when no stream is captured */
};

struct table {
    struct lock lock;
    struct piece **pieces; /* by id */
    struct range **ranges; /* by address */
    size_t piece_count, range_count;
    size_t piece_room, range_room;
};

extern struct table table;

/* With the lock held for writing. NULL: no memory left. */
struct piece *add_piece(uint64_t size, handle real, const struct properties *asked);
struct range *add_range(struct piece *piece, address at, uint64_t size, uint64_t offset);

/* The piece loses the range, but stays, even without any. */
void remove_range(struct range *range);

/* One that nobody needs and that is mapped nowhere goes; its real handle is the caller's. */
bool is_unused(const struct piece *piece);
void remove_piece(struct piece *piece);

/* With the lock held; NULL: none. */
struct range *range_at(address at);          /* that it lies in */
struct piece *piece_by_id(uint64_t id);
struct piece *piece_by_handle(handle memory); /* of the program's; one that it may still use */

/* The number of the first range that ends behind `at`; table.range_count: none. */
size_t range_from(address at);

/* The number of the first piece with this or a larger id. */
size_t piece_from(uint64_t id);

/* What the program has for it. */
handle handle_of(const struct piece *piece);

/* Says which range is to be accessible from where; what the driver answers. */
int grant(const struct range *range);
