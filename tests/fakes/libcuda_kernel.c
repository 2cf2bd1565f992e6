/*
 * Kernels: those that are known by name, of a module in whose text that name stands. They work
 * when their turn in the stream comes, like all the rest.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK ((size_t)64 << 10)
#define SLICE ((size_t)4 << 10)

struct module {
    char *text;
};

/* fill(data, bytes, seed): numbers that look random, the same for the same seed. */
static int fill(const struct work *work) {
    uint64_t number = work->value * 2 + 1;

    if (!accessible(work->to, work->size, work->device, true))
        return ILLEGAL_ADDRESS;
    for (size_t at = 0; at < work->size; at += sizeof(number)) {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        memcpy((char *)work->to + at, &number,
               work->size - at < sizeof(number) ? work->size - at : sizeof(number));
    }
    return SUCCESS;
}

/* thaw_nonzero(data, flags): see native/nonzero.h. */
static int nonzero(const struct work *work) {
    static const char zeros[CHUNK];

    if (!accessible(work->from, work->size, work->device, false) ||
        !accessible(work->to, work->size / CHUNK, work->device, true))
        return ILLEGAL_ADDRESS;
    for (size_t n = 0; n < work->size / CHUNK; n++)
        if (memcmp((const char *)work->from + n * CHUNK, zeros, CHUNK) != 0)
            ((char *)work->to)[n] = 1;
    return SUCCESS;
}

/* What a byte makes of an empty state. */
static uint32_t of_byte(uint32_t state) {
    for (int bit = 0; bit < 8; bit++)
        state = state >> 1 ^ ((state & 1) != 0 ? 0x82f63b78 : 0);
    return state;
}

/* thaw_crc32c(data, sums, count): see native/sums.h. */
static int crc32c(const struct work *work) {
    const unsigned char *data = (const unsigned char *)work->from;
    uint32_t table[256];

    if (!accessible(work->from, work->size, work->device, false) ||
        !accessible(work->to, work->size / SLICE * sizeof(uint32_t), work->device, true))
        return ILLEGAL_ADDRESS;
    for (uint32_t byte = 0; byte < 256; byte++)
        table[byte] = of_byte(byte);
    for (size_t n = 0; n < work->size / SLICE; n++) {
        uint32_t state = UINT32_MAX;

        for (size_t at = n * SLICE; at < (n + 1) * SLICE; at++)
            state = state >> 8 ^ table[(state ^ data[at]) & 0xff];
        ((uint32_t *)work->to)[n] = ~state;
    }
    return SUCCESS;
}

static const struct function {
    const char *name;
    int (*run)(const struct work *work);
} functions[] = {{"fill", fill}, {"thaw_nonzero", nonzero}, {"thaw_crc32c", crc32c}};

enum { FUNCTIONS = sizeof(functions) / sizeof(functions[0]) };

CALL(cuModuleLoadData, struct module **module, const char *image) {
    ENTER_CONTEXT(context);
    (void)context;
    if (image == NULL)
        return INVALID_VALUE;
    *module = malloc(sizeof(**module));
    if (*module == NULL)
        return OUT_OF_MEMORY;
    (*module)->text = strdup(image);
    return SUCCESS;
}

CALL(cuModuleUnload, struct module *module) {
    ENTER_CONTEXT(context);
    (void)context;
    free(module->text);
    free(module);
    return SUCCESS;
}

CALL(cuModuleGetFunction, const struct function **function, struct module *module,
     const char *name) {
    ENTER_CONTEXT(context);
    (void)context;
    for (size_t n = 0; n < FUNCTIONS; n++)
        if (strcmp(functions[n].name, name) == 0 && strstr(module->text, name) != NULL) {
            *function = &functions[n];
            return SUCCESS;
        }
    return NOT_FOUND;
}

static int launch(const char *call, const struct function *function, unsigned blocks,
                  unsigned threads, struct stream *stream, void *const *arguments) {
    struct work work = {0};
    uint32_t slices;

    ENTER_CONTEXT_AS(call, context);
    if (function < functions || function >= &functions[FUNCTIONS] || blocks == 0 || threads == 0 ||
        arguments == NULL)
        return INVALID_VALUE;
    work.run = function->run;
    work.device = context->device;
    if (function->run == fill) {
        memcpy(&work.to, arguments[0], sizeof(work.to));
        memcpy(&work.size, arguments[1], sizeof(work.size));
        memcpy(&work.value, arguments[2], sizeof(work.value));
    } else {
        memcpy(&work.from, arguments[0], sizeof(work.from));
        memcpy(&work.to, arguments[1], sizeof(work.to));
        work.size = blocks * CHUNK;
    }
    if (function->run == crc32c) {
        memcpy(&slices, arguments[2], sizeof(slices));
        work.size = slices * SLICE;
        if (slices > blocks * threads)
            return INVALID_VALUE; /* a device would not know either, and leave some out */
    }
    return submit(stream, &work);
}

#define LAUNCH(name)                                                                               \
    CALL(name, const struct function *function, unsigned x, unsigned y, unsigned z, unsigned tx,   \
         unsigned ty, unsigned tz, unsigned shared, struct stream *stream, void **arguments,       \
         void **extra) {                                                                           \
        (void)shared, (void)extra;                                                                 \
        return launch(__func__, function, x * y * z, tx * ty * tz, stream, arguments);             \
    }

LAUNCH(cuLaunchKernel)
LAUNCH(cuLaunchKernel_ptsz)

/* Of drivers to come, with arguments that nobody knows yet: CUDA 99. */
CALL(cuLaunchKernel_v2, const void *everything) {
    ENTER();
    return everything != NULL ? SUCCESS : INVALID_VALUE;
}
