/* Memory of this process that stays pinned, and copies from there that need no buffer between. */
#define _GNU_SOURCE

#include "device.h"

#include <errno.h>

int thaw_memory_pin(struct thaw_device *device, uint32_t gpu, void *address, uint64_t size,
                    const char **call) {
    int err;

    *call = NULL;
    if (gpu >= device->count || size == 0)
        return -EINVAL;
    err = device_enter(device, gpu, call);
    if (err == 0)
        err = device_said(call, "cuMemHostRegister", device->calls.pin(address, size, PORTABLE));
    return err;
}

int thaw_memory_unpin(struct thaw_device *device, uint32_t gpu, void *address, const char **call) {
    int err;

    *call = NULL;
    if (gpu >= device->count)
        return -EINVAL;
    err = device_enter(device, gpu, call);
    if (err == 0)
        err = device_said(call, "cuMemHostUnregister", device->calls.unpin(address));
    return err;
}

bool device_pin(struct thaw_device *device, uint32_t gpu, void *memory, size_t size) {
    const char *ignored;

    return thaw_memory_pin(device, gpu, memory, size, &ignored) == 0;
}

void device_unpin(struct thaw_device *device, uint32_t gpu, void *memory) {
    const char *ignored;

    thaw_memory_unpin(device, gpu, memory, &ignored);
}

/* Bytes that lie together in a region and here. */
struct stretch {
    const struct thaw_region *region;
    uint64_t address;
    const struct thaw_memory *source; /* each is pinned by itself, so no copy is from two */
    const unsigned char *data;
    size_t length;
};

/* What extents are about. */
struct scene {
    struct thaw_region *const *regions;
    const struct thaw_memory *sources;
    size_t region_count;
    size_t source_count;
};

static bool possible(const struct scene *scene, const struct thaw_extent *extent) {
    const struct thaw_memory *source;

    if (extent->task >= scene->region_count || extent->source >= scene->source_count)
        return false;
    source = &scene->sources[extent->source];
    return scene->regions[extent->task]->device == scene->regions[0]->device &&
           region_holds(scene->regions[extent->task], extent->address, extent->length) &&
           extent->offset <= source->size && extent->length <= source->size - extent->offset;
}

static int copy(struct lane *lane, const struct stretch *stretch) {
    if (stretch->length == 0)
        return 0;
    return lane_in(lane, stretch->region, stretch->address, stretch->data, stretch->length);
}

/* Goes on with a stretch, or begins its copy and the next one. */
static int copy_also(struct lane *lane, struct stretch *stretch, const struct scene *scene,
                     const struct thaw_extent *extent) {
    const struct thaw_region *region = scene->regions[extent->task];
    const struct thaw_memory *source = &scene->sources[extent->source];
    const unsigned char *data = (const unsigned char *)source->address + extent->offset;
    int err;

    if (stretch->region == region && stretch->source == source &&
        stretch->address + stretch->length == extent->address &&
        stretch->data + stretch->length == data) {
        stretch->length += extent->length;
        return 0;
    }
    err = copy(lane, stretch);
    *stretch = (struct stretch){region, extent->address, source, data, extent->length};
    return err;
}

/* Waits for all that was begun: the first failure counts. */
static int finish(struct lane *lane, struct thaw_device *device, int err) {
    struct mark mark = {.gpus = 0};
    const char *call = lane->call;
    int now = lane_mark(lane, &mark);

    if (now == 0)
        now = lane_wait(lane, &mark);
    if (err != 0)
        lane->call = call;
    mark_drop(device, &mark);
    lane_close(lane);
    return err != 0 ? err : now;
}

int thaw_region_put(struct thaw_region *const *regions, size_t region_count,
                    const struct thaw_memory *sources, size_t source_count,
                    const struct thaw_extent *extents, size_t count, const char **call) {
    struct scene scene = {regions, sources, region_count, source_count};
    struct stretch stretch = {.length = 0};
    struct lane lane = {.entered = 0};
    int err = 0;

    *call = NULL;
    for (size_t number = 0; number < count; number++)
        if (!possible(&scene, &extents[number]))
            return -EINVAL;
    if (count == 0)
        return 0;
    lane.device = regions[0]->device;
    for (size_t number = 0; number < count && err == 0; number++)
        err = copy_also(&lane, &stretch, &scene, &extents[number]);
    if (err == 0)
        err = copy(&lane, &stretch);
    err = finish(&lane, regions[0]->device, err);
    *call = lane.call;
    return err;
}
