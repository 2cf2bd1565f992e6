/* Copies between this process and GPUs: streams and events. */
#define _GNU_SOURCE

#include "device.h"

#include <stddef.h>

static int enter(struct lane *lane, uint32_t gpu) {
    int err = 0;

    if (lane->entered != gpu + 1)
        err = device_enter(lane->device, gpu, &lane->call);
    lane->entered = err == 0 ? gpu + 1 : 0;
    return err;
}

static int prepare(struct lane *lane, const struct thaw_region *region) {
    driver_handle *stream = &lane->streams[region->gpu];
    int err;

    lane->device = region->device;
    err = enter(lane, region->gpu);
    if (err == 0 && *stream == NULL)
        err = device_said(&lane->call, "cuStreamCreate",
                          lane->device->calls.stream_create(stream, NOT_BLOCKING));
    if (err == 0)
        lane->begun |= UINT64_C(1) << region->gpu;
    return err;
}

int lane_in(struct lane *lane, const struct thaw_region *region, uint64_t offset,
            const unsigned char *data, size_t length) {
    int err = prepare(lane, region);

    if (err != 0)
        return err;
    return device_said(&lane->call, "cuMemcpyHtoDAsync",
                       lane->device->calls.copy_in(region->address + offset, data, length,
                                                   lane->streams[region->gpu]));
}

int lane_out(struct lane *lane, const struct thaw_region *region, uint64_t offset, void *data,
             size_t length) {
    int err = prepare(lane, region);

    if (err != 0)
        return err;
    return device_said(&lane->call, "cuMemcpyDtoHAsync",
                       lane->device->calls.copy_out(data, region->address + offset, length,
                                                    lane->streams[region->gpu]));
}

static int record(struct lane *lane, struct mark *mark, uint32_t gpu) {
    const struct memory_calls *calls = &lane->device->calls;
    int err = enter(lane, gpu);

    if (err == 0 && mark->events[gpu] == NULL)
        err = device_said(&lane->call, "cuEventCreate",
                          calls->event_create(&mark->events[gpu], SLEEPING | WITHOUT_TIME));
    if (err == 0)
        err = device_said(&lane->call, "cuEventRecord",
                          calls->event_record(mark->events[gpu], lane->streams[gpu]));
    if (err == 0)
        mark->gpus |= UINT64_C(1) << gpu;
    else
        calls->stream_wait(lane->streams[gpu]); /* no event will tell when these copies end */
    return err;
}

int lane_mark(struct lane *lane, struct mark *mark) {
    int err = 0, now;

    for (uint32_t gpu = 0; gpu < GPUS; gpu++)
        if ((lane->begun >> gpu & 1) != 0 && (now = record(lane, mark, gpu)) != 0 && err == 0)
            err = now;
    lane->begun = 0;
    return err;
}

int lane_wait(struct lane *lane, struct mark *mark) {
    int err = 0, now;

    for (uint32_t gpu = 0; gpu < GPUS; gpu++) {
        if ((mark->gpus >> gpu & 1) == 0)
            continue;
        now = enter(lane, gpu);
        if (now == 0)
            now = device_said(&lane->call, "cuEventSynchronize",
                              lane->device->calls.event_wait(mark->events[gpu]));
        if (err == 0)
            err = now;
    }
    mark->gpus = 0;
    return err;
}

void mark_drop(struct thaw_device *device, struct mark *mark) {
    for (uint32_t gpu = 0; gpu < GPUS; gpu++) {
        if (mark->events[gpu] != NULL)
            device->calls.event_destroy(mark->events[gpu]);
        mark->events[gpu] = NULL;
    }
}

void lane_close(struct lane *lane) {
    for (uint32_t gpu = 0; gpu < GPUS; gpu++) {
        if (lane->streams[gpu] == NULL || enter(lane, gpu) != 0)
            continue;
        lane->device->calls.stream_wait(lane->streams[gpu]);
        lane->device->calls.stream_destroy(lane->streams[gpu]);
        lane->streams[gpu] = NULL;
    }
}
