/*
 * The filler's parts, as thaw.h does not show them: checksums by tables, how extents are cut into
 * batches, where threads are placed. Argument: an empty folder.
 */
#define _GNU_SOURCE

#include "check.h"
#include "checksum.h"
#include "fill.h"

#include <string.h>
#include <sys/stat.h>

static void check_checksums(void) {
    static unsigned char data[100000];
    unsigned long seed = 1;

    for (size_t at = 0; at < sizeof(data); at++)
        data[at] = (unsigned char)next_number(&seed);
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

int main(int argc, char **argv) {
    CHECK(argc == 2);
    check_checksums();
    check_batches();
    check_places(argv[1]);
    puts("fine");
    return 0;
}
