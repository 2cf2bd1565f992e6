/*
 * Many small copies out of GPU memory and back, damaged, cancelled or not, from several threads:
 * for the sanitizers. Arguments: a fake libcuda, seconds, a seed.
 */
#define _GNU_SOURCE

#include "cancel.h"
#include "check.h"
#include "thaw.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define CHUNK ((size_t)64 << 10)
#define SIZE ((size_t)6 << 20)
#define CHUNKS (SIZE / CHUNK)

enum { RUNNERS = 3, REGIONS = 3, FILES = 2 };
enum { END_WAIT, END_CANCEL, END_CLOSE, END_DAMAGE, ENDS };

struct runner {
    pthread_t thread;
    unsigned long seed;
    struct thaw_region *from[REGIONS], *to[REGIONS];
    unsigned char *data; /* of all of `from` */
};

static struct thaw_device *device;
static time_t end;

static unsigned long number_of(struct runner *runner) {
    return next_number(&runner->seed);
}

static uint32_t gpu_of(unsigned char number) {
    const unsigned char uuid[16] = {0,    0,    0,    0,    0x11, 0x11, 0x22, 0x22,
                                    0x33, 0x33, 0x44, 0x44, 0x44, 0x44, 0x44, number};
    const char *call;
    uint32_t gpu;

    CHECK(thaw_device_use(device, uuid, &gpu, &call) == 0);
    return gpu;
}

static struct thaw_region *make(struct runner *runner) {
    struct thaw_region *region;
    const char *call;

    CHECK(thaw_region_create(device, gpu_of(number_of(runner) % 2), SIZE, 0, &region, &call) == 0);
    return region;
}

static void drop(struct thaw_region *region) {
    const char *call;

    CHECK(thaw_region_close(region, &call) == 0);
}

/* What the fake driver makes of memory is a file. */
static int file_of(struct thaw_region *region) {
    const char *call;
    int file;

    CHECK(thaw_region_export(region, &file, &call) == 0);
    return file;
}

static void make_regions(struct runner *runner) {
    for (int number = 0; number < REGIONS; number++) {
        unsigned char *data = runner->data + (size_t)number * SIZE;
        int file;

        runner->from[number] = make(runner);
        runner->to[number] = make(runner);
        memset(data, 0, SIZE);
        for (size_t chunk = 0; chunk < CHUNKS; chunk++)
            if (number_of(runner) % 3 != 0)
                memset(data + chunk * CHUNK, (int)(number_of(runner) % 255 + 1), CHUNK);
        file = file_of(runner->from[number]);
        CHECK(pwrite(file, data, SIZE, 0) == (ssize_t)SIZE);
        close(file);
    }
}

/* A run for every chunk that is not zero, the files by turns. */
static size_t lay_out(struct runner *runner, struct thaw_run *runs, uint64_t *sizes) {
    unsigned char flags[CHUNKS];
    size_t count = 0;

    for (uint32_t number = 0; number < REGIONS; number++) {
        const char *call;

        CHECK(thaw_region_scan(runner->from[number], flags, CHUNKS, &call) == 0);
        for (size_t chunk = 0; chunk < CHUNKS; chunk++) {
            uint16_t source = (uint16_t)(count / 20 % FILES);

            CHECK(flags[chunk] == (runner->data[number * SIZE + chunk * CHUNK] != 0));
            if (!flags[chunk])
                continue;
            runs[count++] = (struct thaw_run){.address = chunk * CHUNK,
                                              .offset = sizes[source],
                                              .length = CHUNK,
                                              .task = number,
                                              .source = source,
                                              .flags = 2};
            sizes[source] += CHUNK;
        }
    }
    return count;
}

static struct thaw_save *copy_out(struct runner *runner, const int *files, uint64_t *sizes) {
    static const uint64_t budgets[] = {0, (size_t)16 << 20, (size_t)64 << 20};
    struct thaw_run runs[REGIONS * CHUNKS];
    size_t count = lay_out(runner, runs, sizes);
    struct thaw_failure failure;
    struct thaw_save *save;
    int result;

    for (int number = 0; number < FILES; number++)
        CHECK(ftruncate(files[number], (off_t)sizes[number]) == 0);
    CHECK(thaw_save_start_device(files, FILES, runs, count, runner->from, REGIONS,
                                 (uint32_t)(number_of(runner) % 4),
                                 budgets[number_of(runner) % 3], &save) == 0);
    if (number_of(runner) % 8 == 0) {
        thaw_save_close(save);
        return NULL;
    }
    CHECK(thaw_save_wait(save, 0, &failure) == 0);
    result = thaw_save_wait(save, 1, &failure);
    CHECK(result == 0 && failure.error == 0);
    return save;
}

static void check_all(struct runner *runner) {
    for (size_t number = 0; number < REGIONS; number++) {
        int file = file_of(runner->to[number]);
        unsigned char *memory = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, file, 0);

        CHECK(memory != MAP_FAILED);
        CHECK(memcmp(memory, runner->data + number * SIZE, SIZE) == 0);
        munmap(memory, SIZE);
        close(file);
    }
}

/* One after the other, while it runs; all, unless the fill is to end early. */
static void give(struct runner *runner, struct thaw_fill *fill, bool all) {
    size_t first = number_of(runner) % REGIONS, count = REGIONS;

    if (!all)
        count = number_of(runner) % (REGIONS + 1);
    for (size_t number = first; number < first + count; number++)
        CHECK(thaw_fill_region(fill, number % REGIONS, runner->to[number % REGIONS]) == 0);
}

static void copy_in(struct runner *runner, const int *files, const uint64_t *sizes,
                    struct thaw_extent *extents, size_t count) {
    static const uint64_t budgets[] = {0, (size_t)4 << 20, (size_t)64 << 20};
    struct thaw_source sources[FILES] = {{sizes[0], files[0]}, {sizes[1], files[1]}};
    struct thaw_fill_options options = {.budget = budgets[number_of(runner) % 3],
                                        .readers = (uint32_t)(number_of(runner) % 4),
                                        .fillers = (uint32_t)(number_of(runner) % 4)};
    unsigned long how = number_of(runner) % ENDS;
    uint64_t to[REGIONS];
    struct thaw_fill *fill;
    int result;

    if (how == END_DAMAGE)
        extents[count / 2].checksum ^= 1;
    CHECK(thaw_fill_open(sources, FILES, extents, count, &options, &fill) == 0);
    if (number_of(runner) % 2 == 0) {
        result = thaw_fill_prefetch(fill);
        CHECK(result == 0);
    }
    for (size_t number = 0; number < REGIONS; number++)
        to[number] = SIZE;
    result = thaw_fill_start_device(fill, to, REGIONS, 1);
    CHECK(result == 0 || (how == END_DAMAGE && result == -EBADMSG));
    give(runner, fill, how != END_CLOSE && how != END_CANCEL);
    if (how != END_CLOSE) {
        result = how == END_CANCEL ? wait_cancelled(fill) : thaw_fill_wait(fill, -1);
        CHECK(result == (how == END_DAMAGE ? -EBADMSG : 0) ||
              (how == END_CANCEL && result == -ECANCELED));
        if (result == 0)
            check_all(runner);
    }
    thaw_fill_close(fill);
}

static void copy_once(struct runner *runner) {
    int files[FILES] = {memfd_create("one", MFD_CLOEXEC), memfd_create("two", MFD_CLOEXEC)};
    uint64_t sizes[FILES] = {0, 0};
    struct thaw_save *save;

    make_regions(runner);
    save = copy_out(runner, files, sizes);
    if (save != NULL) {
        size_t count;
        const struct thaw_extent *found = thaw_save_extents(save, &count);
        struct thaw_extent *extents = malloc(count * sizeof(*extents));

        CHECK(count > 0 && extents != NULL);
        memcpy(extents, found, count * sizeof(*extents));
        thaw_save_close(save);
        copy_in(runner, files, sizes, extents, count);
        free(extents);
    }
    for (int number = 0; number < REGIONS; number++) {
        drop(runner->from[number]);
        drop(runner->to[number]);
    }
    for (int number = 0; number < FILES; number++)
        close(files[number]);
}

static void *run(void *arg) {
    struct runner *runner = arg;
    long turns = 0;

    do { /* once at least: a thread may have to wait for a processor that long */
        copy_once(runner);
        turns++;
    } while (time(NULL) < end);
    printf("%ld copies\n", turns);
    return NULL;
}

int main(int argc, char **argv) {
    static struct runner runners[RUNNERS];
    char why[256];

    CHECK(argc == 4);
    setenv("THAW_FAKE_GPUS", "0,1", 1);
    CHECK(thaw_device_open(argv[1], &device, why, sizeof(why)) == 0);
    end = time(NULL) + atol(argv[2]);
    for (int number = 0; number < RUNNERS; number++) {
        runners[number].seed = strtoul(argv[3], NULL, 10) * 16 + (unsigned long)number + 1;
        runners[number].data = malloc(REGIONS * SIZE);
        CHECK(runners[number].data != NULL);
        CHECK(pthread_create(&runners[number].thread, NULL, run, &runners[number]) == 0);
    }
    for (int number = 0; number < RUNNERS; number++) {
        pthread_join(runners[number].thread, NULL);
        free(runners[number].data);
    }
    thaw_device_close(device);
    return 0;
}
