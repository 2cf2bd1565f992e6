/*
 * From files into regions by cuFile: threads that read, and have the GPU find the checksums of what
 * has come. No byte of it is believed before.
 *
 * cuFile's reads wait for their end, so it takes several threads to keep disks busy. The regions
 * are not registered with it: that would pin all of them for the bus, which takes longer than it
 * gains for what is read once; cuFile reads into buffers of its own on the GPU, and copies there.
 */
#define _GNU_SOURCE

#include "cufile.h"
#include "fill.h"
#include "sums.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { STAGE_CUFILE = 7 };
enum { THREADS = 8, SAMPLES = 16 };

#define STRETCH (SUMS_MOST * CRC32C_SLICE) /* bytes that are read at once */

_Static_assert(CRC32C_SLICE == PAGE && STRETCH >= BUFFER, "extents are whole slices");

struct thaw_direct {
    const struct thaw_cufile *cufile;
    const struct thaw_extent *extents;
    size_t count;
    struct blob *blobs;
    void **handles; /* cuFile's; NULL: not known to it */
    size_t source_count;
    struct thaw_region *const *regions;
    struct sums sums;
    atomic_bool stop;

    pthread_mutex_t lock; /* of all that follows */
    size_t next;          /* extent that nobody has taken */
    struct thaw_failure failure;
};

/* Extents that lie together in a file and in a region. */
struct stretch {
    size_t first, count;
    uint64_t length;
};

static void fail(struct thaw_direct *direct, int error, int stage, uint64_t place,
                 const char *call) {
    pthread_mutex_lock(&direct->lock);
    if (direct->failure.error == 0)
        direct->failure = (struct thaw_failure){error, stage, place, call};
    direct->stop = true;
    pthread_mutex_unlock(&direct->lock);
}

void thaw_direct_cancel(struct thaw_direct *direct) {
    fail(direct, ECANCELED, STAGE_OWN, NOWHERE, NULL);
}

/* ---- sources ----------------------------------------------------------------------------- */

uint32_t thaw_direct_cached(const struct thaw_source *sources, size_t count) {
    uint64_t cached = 0, all = 0;

    for (size_t number = 0; number < count; number++) {
        const struct blob blob = {.file = sources[number].file, .direct = -1};
        uint64_t size = sources[number].size, step = size / SAMPLES;
        size_t length = step < BUFFER ? (size_t)step : BUFFER;

        for (uint64_t sample = 0; sample < SAMPLES && length > 0; sample++) {
            size_t found = blob_cached(&blob, sample * step, length);

            cached += found < length ? found : length;
            all += length;
        }
    }
    return all > 0 ? (uint32_t)(cached * 100 / all) : 0;
}

/* Makes one file known to cuFile. With its compatibility mode it need not be open for O_DIRECT. */
static int add(struct thaw_direct *direct, size_t number, int file, struct thaw_failure *failure) {
    const struct cufile_calls *calls = &direct->cufile->calls;
    struct blob *blob = &direct->blobs[number];
    struct cufile_description description = {.type = CUFILE_DESCRIPTOR};
    int err;

    *blob = (struct blob){.file = file, .direct = -1};
    err = blob_open_direct(blob);
    if (err == 0 && blob->direct < 0 && !direct->cufile->compatible)
        err = -EOPNOTSUPP;
    if (err < 0) {
        *failure = (struct thaw_failure){-err, STAGE_OWN, NOWHERE, NULL};
        return -EIO;
    }
    description.file = blob->direct >= 0 ? blob->direct : file;
    err = calls->add(&direct->handles[number], &description).error;
    if (err == 0)
        return 0;
    direct->handles[number] = NULL;
    *failure = (struct thaw_failure){err, STAGE_CUFILE, NOWHERE, "cuFileHandleRegister"};
    return -EIO;
}

static int add_all(struct thaw_direct *direct, const struct thaw_source *sources, size_t count,
                   struct thaw_failure *failure) {
    int err = 0;

    direct->blobs = calloc(count + 1, sizeof(*direct->blobs));
    direct->handles = calloc(count + 1, sizeof(void *));
    if (direct->blobs == NULL || direct->handles == NULL)
        return -ENOMEM;
    for (; direct->source_count < count && err == 0; direct->source_count++)
        err = add(direct, direct->source_count, sources[direct->source_count].file, failure);
    return err;
}

int thaw_direct_open(struct thaw_cufile *cufile, const struct thaw_source *sources,
                     size_t source_count, const struct thaw_extent *extents, size_t count,
                     struct thaw_direct **opened, struct thaw_failure *failure) {
    struct thaw_direct *direct;
    int err;

    *opened = NULL;
    *failure = (struct thaw_failure){0};
    if (!extents_are_sane(sources, source_count, extents, count))
        return -EINVAL;
    direct = calloc(1, sizeof(*direct));
    if (direct == NULL)
        return -ENOMEM;
    direct->cufile = cufile;
    direct->extents = extents;
    direct->count = count;
    pthread_mutex_init(&direct->lock, NULL);
    err = add_all(direct, sources, source_count, failure);
    if (err < 0)
        thaw_direct_close(direct);
    else
        *opened = direct;
    return err;
}

void thaw_direct_close(struct thaw_direct *direct) {
    if (direct == NULL)
        return;
    for (size_t number = 0; number < direct->source_count; number++) {
        if (direct->handles[number] != NULL)
            direct->cufile->calls.drop(direct->handles[number]);
        blob_close_direct(&direct->blobs[number]);
    }
    pthread_mutex_destroy(&direct->lock);
    free(direct->blobs);
    free(direct->handles);
    free(direct);
}

/* ---- reading ----------------------------------------------------------------------------- */

/* Whether all extents lie in regions, which are of one thaw_device. */
static bool lie_in(const struct thaw_direct *direct, struct thaw_region *const *regions,
                   size_t count) {
    for (size_t number = 0; number < count; number++)
        if (regions[number]->device != regions[0]->device)
            return false;
    for (size_t number = 0; number < direct->count; number++) {
        const struct thaw_extent *extent = &direct->extents[number];

        if (extent->task >= count || extent->address % PAGE != 0 ||
            !region_holds(regions[extent->task], extent->address, extent->length))
            return false;
    }
    return true;
}

static bool is_next(const struct thaw_extent *extent, const struct thaw_extent *next) {
    return next->source == extent->source && next->task == extent->task &&
           next->offset == extent->offset + extent->length &&
           next->address == extent->address + extent->length;
}

/* False at the end. */
static bool take(struct thaw_direct *direct, struct stretch *stretch) {
    const struct thaw_extent *extents = direct->extents;
    bool some;

    pthread_mutex_lock(&direct->lock);
    *stretch = (struct stretch){.first = direct->next};
    some = !direct->stop && direct->next < direct->count;
    while (some && direct->next < direct->count &&
           (stretch->count == 0 || is_next(&extents[direct->next - 1], &extents[direct->next])) &&
           stretch->length + extents[direct->next].length <= STRETCH) {
        stretch->length += extents[direct->next++].length;
        stretch->count++;
    }
    pthread_mutex_unlock(&direct->lock);
    return some;
}

/* The extent whose data was to come next. */
static uint64_t extent_at(const struct thaw_direct *direct, const struct stretch *stretch,
                          uint64_t done) {
    size_t number = stretch->first;

    while (done >= direct->extents[number].length)
        done -= direct->extents[number++].length;
    return number;
}

/* In the GPU's context. */
static bool read_in(struct thaw_direct *direct, const struct stretch *stretch) {
    const struct thaw_extent *first = &direct->extents[stretch->first];
    const struct thaw_region *region = direct->regions[first->task];
    uint64_t done = 0;

    while (done < stretch->length) {
        ssize_t got = direct->cufile->calls.read(
            direct->handles[first->source], (void *)(uintptr_t)region->address,
            stretch->length - done, (off_t)(first->offset + done), (off_t)(first->address + done));
        int error = errno;

        if (got > 0 && (uint64_t)got <= stretch->length - done) {
            done += (uint64_t)got;
            continue;
        }
        if (got == -1 && error == EINTR && !direct->stop)
            continue;
        if (got == 0)
            fail(direct, ENODATA, STAGE_SHORT, extent_at(direct, stretch, done), NULL);
        else if (got == -1)
            fail(direct, error, STAGE_READ, extent_at(direct, stretch, done), NULL);
        else /* or more than there was to read, which is no answer either */
            fail(direct, got < 0 ? (int)-got : EPROTO, STAGE_CUFILE,
                 extent_at(direct, stretch, done), "cuFileRead");
        return false;
    }
    return true;
}

static bool compare(struct thaw_direct *direct, const struct stretch *stretch,
                    const uint32_t *sums) {
    for (size_t number = stretch->first; number < stretch->first + stretch->count; number++) {
        const struct thaw_extent *extent = &direct->extents[number];
        uint32_t checksum = 0;

        for (size_t at = 0; at < extent->length; at += CRC32C_SLICE)
            checksum = crc32c_join(checksum, *sums++);
        if (checksum != extent->checksum) {
            fail(direct, EBADMSG, STAGE_CHECKSUM, number, NULL);
            return false;
        }
    }
    return true;
}

static bool bring(struct thaw_direct *direct, struct summer *summer,
                  const struct stretch *stretch) {
    const struct thaw_extent *first = &direct->extents[stretch->first];
    const struct thaw_region *region = direct->regions[first->task];
    int err = device_enter(region->device, region->gpu, &summer->call);

    if (err == 0 && !read_in(direct, stretch))
        return false;
    if (err == 0)
        err = summer_find(summer, region, first->address, stretch->length / CRC32C_SLICE);
    if (err != 0)
        fail(direct, err, STAGE_GPU, stretch->first, summer->call);
    return err == 0 && compare(direct, stretch, summer->found);
}

static void *work(void *argument) {
    struct thaw_direct *direct = argument;
    struct summer *summer = calloc(1, sizeof(*summer));
    struct stretch stretch;

    if (summer == NULL) {
        fail(direct, ENOMEM, STAGE_OWN, NOWHERE, NULL);
        return NULL;
    }
    summer->sums = &direct->sums;
    while (take(direct, &stretch) && bring(direct, summer, &stretch))
        ;
    summer_close(summer);
    free(summer);
    return NULL;
}

/* No signal of this process is for these threads. */
static void work_together(struct thaw_direct *direct, uint32_t count) {
    pthread_t *threads = calloc(count, sizeof(*threads));
    uint32_t running = 0;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (threads != NULL && running < count &&
           pthread_create(&threads[running], NULL, work, direct) == 0)
        running++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (running == 0)
        fail(direct, EAGAIN, STAGE_OWN, NOWHERE, NULL);
    while (running > 0)
        pthread_join(threads[--running], NULL);
    free(threads);
}

int thaw_direct_run(struct thaw_direct *direct, struct thaw_region *const *regions, size_t count,
                    uint32_t threads, struct thaw_failure *failure) {
    *failure = (struct thaw_failure){0};
    if (count == 0 || direct->regions != NULL || !lie_in(direct, regions, count))
        return direct->count == 0 ? 0 : -EINVAL;
    direct->regions = regions;
    sums_open(&direct->sums, regions[0]->device);
    work_together(direct, threads > 0 ? threads : THREADS);
    sums_close(&direct->sums);
    pthread_mutex_lock(&direct->lock);
    *failure = direct->failure;
    pthread_mutex_unlock(&direct->lock);
    return failure->error != 0 ? -EIO : 0;
}
