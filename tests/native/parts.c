/*
 * The filler's parts, as thaw.h does not show them: checksums by tables and of copies, how extents
 * are cut into batches, where threads are placed, files that are mapped. Argument: an empty folder.
 */
#define _GNU_SOURCE

#include "check.h"
#include "checksum.h"
#include "fill.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void make_noise(unsigned char *data, size_t size, unsigned long *seed) {
    for (size_t at = 0; at < size; at++)
        data[at] = (unsigned char)next_number(seed);
}

static void check_checksums(void) {
    static unsigned char data[100000];
    unsigned long seed = 1;

    make_noise(data, sizeof(data), &seed);
    CHECK(crc32c_by_tables(0, "123456789", 9) == 0xe3069283);
    for (int turn = 0; turn < 2000; turn++) {
        size_t start = next_number(&seed) % 64;
        size_t size = next_number(&seed) % (turn % 2 == 0 ? 900 : sizeof(data) - 64);
        uint32_t crc = (uint32_t)next_number(&seed);

        CHECK(thaw_crc32c(crc, data + start, size) == crc32c_by_tables(crc, data + start, size));
        if (size >= CRC32C_SLICE)
            CHECK(crc32c_join(thaw_crc32c(0, data + start, size - CRC32C_SLICE),
                              thaw_crc32c(0, data + start + size - CRC32C_SLICE, CRC32C_SLICE)) ==
                  thaw_crc32c(0, data + start, size));
    }
}

static void check_copies(void) {
    static unsigned char data[100000], copy[sizeof(data) + 64];
    unsigned long seed = 3;

    make_noise(data, sizeof(data), &seed);
    for (int turn = 0; turn < 2000; turn++) {
        bool words = turn % 4 != 0;
        size_t start = next_number(&seed) % 64, to = next_number(&seed) % 64;
        size_t size = next_number(&seed) % (turn % 2 == 0 ? 900 : sizeof(data) - 64);
        uint32_t crc = (uint32_t)next_number(&seed);

        to -= words ? to % 8 : 0;
        size -= words ? size % 8 : 0;
        memset(copy, 0x5a, sizeof(copy));
        CHECK(crc32c_copy(crc, copy + to, data + start, size) ==
              crc32c_by_tables(crc, data + start, size));
        CHECK(memcmp(copy + to, data + start, size) == 0);
        CHECK((to == 0 || copy[to - 1] == 0x5a) && copy[to + size] == 0x5a);
    }
}

/* Extents as survey would make them, sometimes with the data of the one before. */
static void make_extents(struct thaw_extent *extents, size_t count, unsigned long *seed) {
    uint64_t offset = 0;
    uint16_t source = 0;

    memset(extents, 0, count * sizeof(*extents));
    for (size_t number = 0; number < count; number++) {
        unsigned long kind = next_number(seed) % 16;

        if (kind == 0) {
            source++;
            offset = 0;
        } else if (kind < 4)
            offset += next_number(seed) % 40 * PAGE;
        else if (kind == 4 && number > 0 && extents[number - 1].source == source)
            offset = extents[number - 1].offset;
        extents[number].source = source;
        extents[number].offset = offset;
        extents[number].length =
            (uint32_t)((1 + next_number(seed) % (kind > 8 ? 1024 : 30)) * PAGE);
        offset += extents[number].length;
    }
}

/* Every extent is in one batch, and in that batch's buffer. */
static void check_cut(const struct thaw_extent *extents, size_t count) {
    uint32_t batch_count;
    struct batch *batches = batches_cut(extents, count, &batch_count);
    size_t seen = 0;

    CHECK(batches != NULL);
    for (uint32_t number = 0; number < batch_count; number++) {
        const struct batch *batch = &batches[number];
        struct segment segment;
        size_t end = 0;

        CHECK(batch->first == seen && batch->count > 0 && batch->size <= BUFFER);
        segment_start(&segment, &extents[seen]);
        for (; seen < batch->first + batch->count; seen++) {
            segment_add(&segment, &extents[seen]);
            CHECK(segment.source == extents[seen].source);
            CHECK(segment.offset <= extents[seen].offset);
            CHECK(extents[seen].offset + extents[seen].length <= segment.offset + segment.length);
            CHECK(segment.place + segment.length >= end);
            end = segment.place + segment.length;
        }
        CHECK(end == batch->size);
    }
    CHECK(seen == count);
    free(batches);
}

static void check_batches(void) {
    static struct thaw_extent extents[500];
    unsigned long seed = 2;

    for (int turn = 0; turn < 300; turn++) {
        size_t count = next_number(&seed) % 500;

        make_extents(extents, count, &seed);
        check_cut(extents, count);
    }
}

static void write_list(const char *root, int node, const char *list) {
    char path[4200];
    FILE *file;

    snprintf(path, sizeof(path), "%s/node%d", root, node);
    CHECK(mkdir(path, 0700) == 0);
    snprintf(path, sizeof(path), "%s/node%d/cpulist", root, node);
    file = fopen(path, "w");
    CHECK(file != NULL && fputs(list, file) >= 0 && fclose(file) == 0);
}

static void check_places(const char *root) {
    const int nodes[] = {0, 1, 2, 3, 9, -1, 5000, 4, 5};
    struct place places[8];
    cpu_set_t own;

    write_list(root, 0, "0-3,8-11\n");
    write_list(root, 1, "4-7,12\n");
    write_list(root, 2, "\n"); /* memory only */
    write_list(root, 3, "500-9999\n");
    write_list(root, 4, "2,zebra\n");
    write_list(root, 5, "0-1"); /* cut off */
    CPU_ZERO(&own);
    for (size_t cpu = 0; cpu < 11; cpu += 2)
        CPU_SET(cpu, &own);
    CHECK(places_find(root, nodes, 9, &own, places) == 3);
    CHECK(places[0].node == 0 && CPU_COUNT(&places[0].processors) == 4);
    CHECK(CPU_ISSET(10, &places[0].processors) && !CPU_ISSET(4, &places[0].processors));
    CHECK(places[1].node == 1 && CPU_COUNT(&places[1].processors) == 2);
    CHECK(places[2].node == 4 && CPU_COUNT(&places[2].processors) == 1);
    CHECK(places_processors(places, 3) == 6);
    CHECK(places_find("/nowhere", nodes, 8, &own, places) == 0);
}

static struct blob map_file(const char *folder, const unsigned char *data, size_t size) {
    struct blob blob = {.direct = -1, .size = size};
    char path[4200];

    snprintf(path, sizeof(path), "%s/mapped", folder);
    blob.file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(blob.file >= 0 && write(blob.file, data, size) == (ssize_t)size);
    blob_map(&blob);
    CHECK(blob_is_near(&blob));
    return blob;
}

/* What nobody else was about to copy ends a process, as it does without us. */
static void check_foreign_bus_errors(const struct blob *shrunk) {
    int status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        CHECK(freopen("/dev/null", "w", stderr) != NULL); /* a sanitizer has much to say */
        _exit(*(volatile unsigned char *)shrunk->mapped * 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status != 0);
}

/* A file that shrinks is not copied, as often as it is asked for; where it is whole, it still is. */
static void check_mapped(const char *folder) {
    static unsigned char data[2 * BLOCK], copy[sizeof(data)];
    struct blob blob, none = {.direct = -1, .file = -1, .size = PAGE};
    unsigned long seed = 4;
    uint32_t sum = 7;

    make_noise(data, sizeof(data), &seed);
    blob = map_file(folder, data, sizeof(data));
    CHECK(blob_copy(&blob, PAGE, copy, sizeof(data) - PAGE, &sum));
    CHECK(sum == thaw_crc32c(7, data + PAGE, sizeof(data) - PAGE));
    CHECK(memcmp(copy, data + PAGE, sizeof(data) - PAGE) == 0);
    CHECK(blob.copied == sizeof(data) - PAGE);
    CHECK(ftruncate(blob.file, BLOCK) == 0);
    for (size_t turn = 0; turn < 3; turn++) {
        CHECK(!blob_copy(&blob, BLOCK - PAGE, copy, 2 * PAGE, &sum));
        CHECK(sum == thaw_crc32c(7, data + PAGE, sizeof(data) - PAGE));
        CHECK(blob_copy(&blob, turn * PAGE, copy, BLOCK - 3 * PAGE, &(uint32_t){0}));
        CHECK(memcmp(copy, data + turn * PAGE, BLOCK - 3 * PAGE) == 0);
    }
    CHECK(ftruncate(blob.file, 0) == 0);
    check_foreign_bus_errors(&blob);
    blob_unmap(&blob);
    CHECK(!blob_is_near(&blob));
    blob_unmap(&blob);
    close(blob.file);
    blob_map(&none);
    CHECK(!blob_is_near(&none));
}

/* Where the page cache has small pages, a file is soon read instead. */
static void check_small_pages(void) {
    struct blob blob = {.direct = -1, .mapped = (unsigned char *)"any", .size = 3};

    blob.copied = 8 * BUFFER;
    blob.faults = 64 + 8 * 32;
    CHECK(blob_is_near(&blob));
    blob.faults++;
    CHECK(!blob_is_near(&blob));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    check_checksums();
    check_batches();
    check_copies();
    check_places(argv[1]);
    check_mapped(argv[1]);
    check_small_pages();
    puts("fine");
    return 0;
}
