/* What the engine asks for, and what it is answered. */
#pragma once

#include "wire.h"

#include <stddef.h>

struct message {
    struct thaw_gpu_header header;
    union {
        struct thaw_gpu_memory records[THAW_GPU_RECORDS];
        struct thaw_gpu_about about;
    } body;
    size_t size; /* bytes of the body */
    int descriptors[THAW_GPU_RECORDS];
    size_t count; /* of descriptors */
};

/*
 * Turns a request into its answer. The descriptors of either are the caller's to close; those of an
 * answer that is not THAW_GPU_OK are not to be sent.
 */
void answer(struct message *message);

/* The answer has gone out: what it had descriptors of may be let go of. */
void was_sent(const struct message *message);
