/*
 * What of a region is zero: found by the GPU, at the speed of its own memory, or, if it cannot run
 * our kernel, by copying all of it here, which takes as long as the copy that follows.
 */
#define _GNU_SOURCE

#include "device.h"

#include "nonzero.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define BUFFER ((size_t)4 << 20)

/* That there is no kernel is no failure. */
static void look_for_kernel(const struct memory_calls *calls, struct gpu *gpu) {
    gpu->looked = true;
    if (calls->module_load(&gpu->module, nonzero_ptx) != 0) {
        gpu->module = NULL;
        return;
    }
    if (calls->module_function(&gpu->nonzero, gpu->module, NONZERO_NAME) != 0)
        gpu->nonzero = NULL;
}

/* Kept from one region to the next: a worker may have thousands, and this is slow. */
static bool have_flags(const struct memory_calls *calls, struct gpu *gpu, size_t count) {
    if (count <= gpu->flags_size)
        return true;
    if (gpu->flags != 0)
        calls->free(gpu->flags);
    gpu->flags_size = 0;
    if (calls->allocate(&gpu->flags, count) != 0)
        gpu->flags = 0;
    else
        gpu->flags_size = count;
    return gpu->flags != 0;
}

/* Copies here, and waits for that and for all that was begun before. */
static int fetch(const struct thaw_region *region, void *to, uint64_t from, size_t length,
                 const char **call) {
    const struct memory_calls *calls = &region->device->calls;
    driver_handle stream = region->device->gpus[region->gpu].stream;
    int err = device_said(call, "cuMemcpyDtoHAsync", calls->copy_out(to, from, length, stream));

    if (err == 0)
        err = device_said(call, "cuStreamSynchronize", calls->stream_wait(stream));
    return err;
}

/* *ran: the kernel could be started. */
static int run_kernel(const struct thaw_region *region, struct gpu *gpu, unsigned char *flags,
                      size_t count, bool *ran, const char **call) {
    const struct memory_calls *calls = &region->device->calls;
    uint64_t data = region->address;
    void *parameters[] = {&data, &gpu->flags};
    int err = device_said(call, "cuMemsetD8Async",
                          calls->set_bytes(gpu->flags, 0, count, gpu->stream));

    if (err != 0)
        return err;
    if (calls->launch(gpu->nonzero, (unsigned int)count, 1, 1, NONZERO_THREADS, 1, 1, 0,
                      gpu->stream, parameters, NULL) != 0)
        return 0;
    *ran = true;
    return fetch(region, flags, gpu->flags, count, call);
}

static int on_gpu(const struct thaw_region *region, unsigned char *flags, size_t count, bool *ran,
                  const char **call) {
    const struct memory_calls *calls = &region->device->calls;
    struct gpu *gpu = &region->device->gpus[region->gpu];
    int err = 0;

    pthread_mutex_lock(&gpu->scanning);
    if (!gpu->looked)
        look_for_kernel(calls, gpu);
    if (gpu->nonzero != NULL && count <= INT32_MAX && have_flags(calls, gpu, count))
        err = run_kernel(region, gpu, flags, count, ran, call);
    pthread_mutex_unlock(&gpu->scanning);
    return err;
}

static bool is_zero(const unsigned char *chunk) {
    return chunk[0] == 0 && memcmp(chunk, chunk + 1, NONZERO_CHUNK - 1) == 0;
}

static int by_copying(const struct thaw_region *region, unsigned char *flags, const char **call) {
    unsigned char *buffer = memory_map(BUFFER);
    bool pinned;
    int err = 0;

    if (buffer == NULL)
        return -ENOMEM;
    pinned = device_pin(region->device, region->gpu, buffer, BUFFER);
    for (uint64_t offset = 0; err == 0 && offset < region->size; offset += BUFFER) {
        uint64_t left = region->size - offset;
        size_t length = left < BUFFER ? (size_t)left : BUFFER;

        err = fetch(region, buffer, region->address + offset, length, call);
        for (size_t at = 0; err == 0 && at < length; at += NONZERO_CHUNK)
            flags[(offset + at) / NONZERO_CHUNK] = !is_zero(buffer + at);
    }
    if (pinned)
        device_unpin(region->device, region->gpu, buffer);
    munmap(buffer, BUFFER);
    return err;
}

int thaw_region_scan(struct thaw_region *region, unsigned char *flags, size_t count,
                     const char **call) {
    bool ran = false;
    int err;

    *call = NULL;
    if (region->size % NONZERO_CHUNK != 0 || count != region->size / NONZERO_CHUNK)
        return -EINVAL;
    err = device_enter(region->device, region->gpu, call);
    if (err == 0)
        err = on_gpu(region, flags, count, &ran, call);
    if (err == 0 && !ran)
        err = by_copying(region, flags, call);
    return err;
}
