/*
 * GPUs that this process uses itself, and memory on them that other processes take part in.
 *
 * Nothing of the driver's toolkit is needed: what there is of its interface stands in device.h,
 * after cuda.h of CUDA 11.4 to 13.5. A primary context costs about half a GiB of the GPU and is
 * given back with the process at the latest.
 */
#define _GNU_SOURCE

#include "device.h"

#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define CALL(field, name) {name, offsetof(struct memory_calls, field), false}

static const struct cuda_symbol symbols[] = {
    CALL(init, "cuInit"),
    CALL(device_count, "cuDeviceGetCount"),
    CALL(device_get, "cuDeviceGet"),
    CALL(device_uuid, "cuDeviceGetUuid_v2"),
    CALL(context_retain, "cuDevicePrimaryCtxRetain"),
    CALL(context_release, "cuDevicePrimaryCtxRelease_v2"),
    CALL(context_set, "cuCtxSetCurrent"),
    CALL(create, "cuMemCreate"),
    CALL(release, "cuMemRelease"),
    CALL(reserve, "cuMemAddressReserve"),
    CALL(unreserve, "cuMemAddressFree"),
    CALL(map, "cuMemMap"),
    CALL(unmap, "cuMemUnmap"),
    CALL(set_access, "cuMemSetAccess"),
    CALL(export, "cuMemExportToShareableHandle"),
    CALL(import, "cuMemImportFromShareableHandle"),
    CALL(stream_create, "cuStreamCreate"),
    CALL(stream_destroy, "cuStreamDestroy_v2"),
    CALL(stream_wait, "cuStreamSynchronize"),
    CALL(event_create, "cuEventCreate"),
    CALL(event_destroy, "cuEventDestroy_v2"),
    CALL(event_record, "cuEventRecord"),
    CALL(event_wait, "cuEventSynchronize"),
    CALL(copy_in, "cuMemcpyHtoDAsync_v2"),
    CALL(copy_out, "cuMemcpyDtoHAsync_v2"),
    CALL(copy_within, "cuMemcpyDtoDAsync_v2"),
    CALL(set_bytes, "cuMemsetD8Async"),
    CALL(pin, "cuMemHostRegister_v2"),
    CALL(unpin, "cuMemHostUnregister"),
    CALL(allocate, "cuMemAlloc_v2"),
    CALL(free, "cuMemFree_v2"),
    CALL(module_load, "cuModuleLoadData"),
    CALL(module_function, "cuModuleGetFunction"),
    CALL(module_unload, "cuModuleUnload"),
    CALL(launch, "cuLaunchKernel"),
};

int device_said(const char **call, const char *name, int result) {
    if (result != 0)
        *call = name;
    return result;
}

int thaw_device_open(const char *library, struct thaw_device **opened, char *why, size_t size) {
    struct thaw_device *device = calloc(1, sizeof(*device));
    int err;

    *opened = NULL;
    if (device == NULL)
        return -ENOMEM;
    err = cuda_load(library, symbols, sizeof(symbols) / sizeof(symbols[0]), &device->calls, why,
                    size);
    if (err < 0) {
        free(device);
        return err;
    }
    pthread_mutex_init(&device->lock, NULL);
    *opened = device;
    return 0;
}

/* ---- GPUs -------------------------------------------------------------------------------- */

/* The device of the driver's whose UUID it is; -ENODEV if there is none. With the lock held. */
static int find(struct thaw_device *device, struct gpu *gpu, const char **call) {
    const struct memory_calls *calls = &device->calls;
    unsigned char uuid[16];
    int count = 0;
    int err = device_said(call, "cuDeviceGetCount", calls->device_count(&count));

    for (gpu->ordinal = 0; err == 0 && gpu->ordinal < count; gpu->ordinal++) {
        err = device_said(call, "cuDeviceGet", calls->device_get(&gpu->device, gpu->ordinal));
        if (err == 0)
            err = device_said(call, "cuDeviceGetUuid", calls->device_uuid(uuid, gpu->device));
        if (err == 0 && memcmp(uuid, gpu->uuid, sizeof(uuid)) == 0)
            return 0;
    }
    return err != 0 ? err : -ENODEV;
}

static void leave(struct thaw_device *device, struct gpu *gpu) {
    const struct memory_calls *calls = &device->calls;

    if (calls->context_set(gpu->context) == 0) {
        if (gpu->flags != 0)
            calls->free(gpu->flags);
        if (gpu->module != NULL)
            calls->module_unload(gpu->module);
        if (gpu->stream != NULL)
            calls->stream_destroy(gpu->stream);
        calls->context_set(NULL);
    }
    calls->context_release(gpu->device);
}

static int join(struct thaw_device *device, struct gpu *gpu, const char **call) {
    const struct memory_calls *calls = &device->calls;
    int err = device_said(call, "cuDevicePrimaryCtxRetain",
                          calls->context_retain(&gpu->context, gpu->device));

    if (err != 0)
        return err;
    err = device_said(call, "cuCtxSetCurrent", calls->context_set(gpu->context));
    if (err == 0)
        err = device_said(call, "cuStreamCreate",
                          calls->stream_create(&gpu->stream, NOT_BLOCKING));
    if (err != 0)
        leave(device, gpu);
    return err;
}

static int add(struct thaw_device *device, const unsigned char *uuid, const char **call) {
    struct gpu made = {.ordinal = 0};
    int err = 0;

    if (device->count == GPUS)
        return -ENOSPC;
    if (!device->ready)
        err = device_said(call, "cuInit", device->calls.init(0));
    device->ready = err == 0;
    memcpy(made.uuid, uuid, sizeof(made.uuid));
    if (err == 0)
        err = find(device, &made, call);
    if (err == 0)
        err = join(device, &made, call);
    if (err == 0) {
        device->gpus[device->count] = made;
        pthread_mutex_init(&device->gpus[device->count++].scanning, NULL);
    }
    return err;
}

/* The driver's threads, which it may start here, get no signals for good. */
int thaw_device_use(struct thaw_device *device, const unsigned char *uuid, uint32_t *gpu,
                    const char **call) {
    sigset_t before;
    int err = 0;

    *call = NULL;
    cuda_hold_signals(&before);
    pthread_mutex_lock(&device->lock);
    *gpu = 0;
    while (*gpu < device->count && memcmp(device->gpus[*gpu].uuid, uuid, 16) != 0)
        ++*gpu;
    if (*gpu == device->count)
        err = add(device, uuid, call);
    pthread_mutex_unlock(&device->lock);
    return cuda_release_signals(&before, err);
}

int device_enter(struct thaw_device *device, uint32_t gpu, const char **call) {
    return device_said(call, "cuCtxSetCurrent",
                       device->calls.context_set(device->gpus[gpu].context));
}

void thaw_device_close(struct thaw_device *device) {
    if (device == NULL)
        return;
    for (uint32_t number = 0; number < device->count; number++) {
        leave(device, &device->gpus[number]);
        pthread_mutex_destroy(&device->gpus[number].scanning);
    }
    pthread_mutex_destroy(&device->lock);
    free(device);
}

/* ---- regions ----------------------------------------------------------------------------- */

bool region_holds(const struct thaw_region *region, uint64_t offset, uint64_t length) {
    return offset <= region->size && length <= region->size - offset;
}

/* Gives up what there is of it; the first failure. */
static int drop(struct thaw_region *region, const char **call) {
    const struct memory_calls *calls = &region->device->calls;
    const char *last;
    int err = 0, now;

    if (region->address != 0) {
        err = device_said(call, "cuMemUnmap", calls->unmap(region->address, region->size));
        now = device_said(&last, "cuMemAddressFree",
                          calls->unreserve(region->address, region->size));
        if (err == 0 && now != 0)
            err = device_said(call, last, now);
    }
    if (region->handle != 0) {
        now = device_said(&last, "cuMemRelease", calls->release(region->handle));
        if (err == 0 && now != 0)
            err = device_said(call, last, now);
    }
    free(region);
    return err;
}

/* Maps the region's memory: on a failure nothing is mapped. */
static int map(struct thaw_region *region, const char **call) {
    const struct memory_calls *calls = &region->device->calls;
    struct memory_access access = {{ON_GPU, region->device->gpus[region->gpu].ordinal},
                                   READ_WRITE};
    uint64_t address = 0;
    int err = device_said(call, "cuMemAddressReserve",
                          calls->reserve(&address, region->size, 0, 0, 0));

    if (err != 0)
        return err;
    err = device_said(call, "cuMemMap", calls->map(address, region->size, 0, region->handle, 0));
    if (err == 0) {
        err = device_said(call, "cuMemSetAccess",
                          calls->set_access(address, region->size, &access, 1));
        if (err != 0)
            calls->unmap(address, region->size);
    }
    if (err != 0)
        calls->unreserve(address, region->size);
    else
        region->address = address;
    return err;
}

/* New memory may have what another process has left there. */
static int clear(struct thaw_region *region, const char **call) {
    const struct memory_calls *calls = &region->device->calls;
    driver_handle stream = region->device->gpus[region->gpu].stream;
    int err = device_enter(region->device, region->gpu, call);

    if (err == 0)
        err = device_said(call, "cuMemsetD8Async",
                          calls->set_bytes(region->address, 0, region->size, stream));
    if (err == 0)
        err = device_said(call, "cuStreamSynchronize", calls->stream_wait(stream));
    return err;
}

static int begin(struct thaw_device *device, uint32_t gpu, uint64_t size,
                 struct thaw_region **region) {
    *region = NULL;
    if (gpu >= device->count || size == 0 || size > INT64_MAX)
        return -EINVAL;
    *region = calloc(1, sizeof(**region));
    if (*region == NULL)
        return -ENOMEM;
    **region = (struct thaw_region){.device = device, .gpu = gpu, .size = size};
    return 0;
}

static int end(struct thaw_region **region, int err) {
    const char *ignored;

    if (err != 0) {
        drop(*region, &ignored);
        *region = NULL;
    }
    return err;
}

/* Where a GPU has no way to the network, memory need not be fit for it. */
static int make(struct thaw_device *device, uint64_t *handle, uint64_t size,
                struct memory_properties *wanted) {
    int err = device->calls.create(handle, size, wanted, 0);

    if (err == 0 || err == NO_ROOM || wanted->rdma == 0)
        return err;
    wanted->rdma = 0;
    return device->calls.create(handle, size, wanted, 0);
}

int thaw_region_create(struct thaw_device *device, uint32_t gpu, uint64_t size, int rdma,
                       struct thaw_region **region, const char **call) {
    struct memory_properties wanted = {.type = PINNED, .handle_types = DESCRIPTOR,
                                       .rdma = rdma != 0};
    int err = begin(device, gpu, size, region);

    *call = NULL;
    if (err < 0)
        return err;
    wanted.location = (struct memory_location){ON_GPU, device->gpus[gpu].ordinal};
    err = device_said(call, "cuMemCreate", make(device, &(*region)->handle, size, &wanted));
    if (err == 0)
        err = map(*region, call);
    if (err == 0)
        err = clear(*region, call);
    return end(region, err);
}

int thaw_region_import(struct thaw_device *device, uint32_t gpu, uint64_t size, int file,
                       struct thaw_region **region, const char **call) {
    int err = begin(device, gpu, size, region);

    *call = NULL;
    if (err < 0)
        return err;
    err = device_said(call, "cuMemImportFromShareableHandle",
                      device->calls.import(&(*region)->handle, (void *)(intptr_t)file, DESCRIPTOR));
    if (err == 0)
        err = map(*region, call);
    return end(region, err);
}

/* Whether the driver makes descriptors close-on-exec it does not say. */
int thaw_region_export(struct thaw_region *region, int *file, const char **call) {
    int err;

    *call = NULL;
    *file = -1;
    err = device_said(call, "cuMemExportToShareableHandle",
                      region->device->calls.export(file, region->handle, DESCRIPTOR, 0));
    if (err == 0)
        fcntl(*file, F_SETFD, FD_CLOEXEC);
    return err;
}

int thaw_region_copy(struct thaw_region *from, struct thaw_region *to, const char **call) {
    const struct memory_calls *calls = &from->device->calls;
    driver_handle stream;
    int err;

    *call = NULL;
    if (from->device != to->device || from->gpu != to->gpu || from->size != to->size)
        return -EINVAL;
    stream = from->device->gpus[from->gpu].stream;
    err = device_enter(from->device, from->gpu, call);
    if (err == 0)
        err = device_said(call, "cuMemcpyDtoDAsync",
                          calls->copy_within(to->address, from->address, from->size, stream));
    if (err == 0)
        err = device_said(call, "cuStreamSynchronize", calls->stream_wait(stream));
    return err;
}

int thaw_region_close(struct thaw_region *region, const char **call) {
    *call = NULL;
    return region != NULL ? drop(region, call) : 0;
}
