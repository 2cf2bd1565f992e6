/* Checksums of what lies in regions: native/sums.h. */
#define _GNU_SOURCE

#include "sums.h"

#include <errno.h>

static const char text[] = SUMS_PTX;

void sums_open(struct sums *sums, struct thaw_device *device) {
    *sums = (struct sums){.device = device};
    pthread_mutex_init(&sums->lock, NULL);
}

void sums_close(struct sums *sums) {
    const char *ignored;

    for (uint32_t gpu = 0; gpu < GPUS; gpu++)
        if (sums->modules[gpu] != NULL && device_enter(sums->device, gpu, &ignored) == 0)
            sums->device->calls.module_unload(sums->modules[gpu]);
    pthread_mutex_destroy(&sums->lock);
}

/* With the GPU's context current. */
static int load(struct sums *sums, uint32_t gpu, const char **call) {
    const struct memory_calls *calls = &sums->device->calls;
    int err = 0;

    pthread_mutex_lock(&sums->lock);
    if (sums->modules[gpu] == NULL)
        err = device_said(call, "cuModuleLoadData",
                          calls->module_load(&sums->modules[gpu], text));
    if (err == 0 && sums->kernels[gpu] == NULL)
        err = device_said(call, "cuModuleGetFunction",
                          calls->module_function(&sums->kernels[gpu], sums->modules[gpu],
                                                 SUMS_NAME));
    pthread_mutex_unlock(&sums->lock);
    return err;
}

static int prepare(struct summer *summer, uint32_t gpu) {
    const struct memory_calls *calls = &summer->sums->device->calls;
    int err = load(summer->sums, gpu, &summer->call);

    if (err == 0 && summer->streams[gpu] == NULL)
        err = device_said(&summer->call, "cuStreamCreate",
                          calls->stream_create(&summer->streams[gpu], NOT_BLOCKING));
    if (err == 0 && summer->places[gpu] == 0)
        err = device_said(&summer->call, "cuMemAlloc",
                          calls->allocate(&summer->places[gpu], sizeof(summer->found)));
    return err;
}

int summer_find(struct summer *summer, const struct thaw_region *region, uint64_t offset,
                size_t slices) {
    const struct memory_calls *calls = &summer->sums->device->calls;
    uint32_t gpu = region->gpu, count = (uint32_t)slices;
    uint64_t data = region->address + offset;
    void *parameters[] = {&data, &summer->places[gpu], &count};
    int err;

    if (slices > SUMS_MOST)
        return -EINVAL;
    /* Always anew: whoever has worked in this thread meanwhile may have left another context. */
    err = device_enter(summer->sums->device, gpu, &summer->call);
    if (err == 0)
        err = prepare(summer, gpu);
    if (err == 0)
        err = device_said(&summer->call, "cuLaunchKernel",
                          calls->launch(summer->sums->kernels[gpu],
                                        (count + SUMS_THREADS - 1) / SUMS_THREADS, 1, 1,
                                        SUMS_THREADS, 1, 1, 0, summer->streams[gpu], parameters,
                                        NULL));
    if (err == 0)
        err = device_said(&summer->call, "cuMemcpyDtoHAsync",
                          calls->copy_out(summer->found, summer->places[gpu],
                                          count * sizeof(summer->found[0]),
                                          summer->streams[gpu]));
    if (err == 0)
        err = device_said(&summer->call, "cuStreamSynchronize",
                          calls->stream_wait(summer->streams[gpu]));
    return err;
}

void summer_close(struct summer *summer) {
    const struct memory_calls *calls = &summer->sums->device->calls;
    const char *ignored;

    for (uint32_t gpu = 0; gpu < GPUS; gpu++) {
        if (summer->streams[gpu] == NULL ||
            device_enter(summer->sums->device, gpu, &ignored) != 0)
            continue;
        calls->stream_wait(summer->streams[gpu]);
        calls->stream_destroy(summer->streams[gpu]);
        if (summer->places[gpu] != 0)
            calls->free(summer->places[gpu]);
    }
}
