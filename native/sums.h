/*
 * sums.c: checksums of what lies in regions, found by their GPU; and the kernel that finds them, as
 * the driver's own assembly (see nonzero.h): thaw_crc32c(data, sums, count), a thread for each of
 * `count` slices of 4 KiB, puts the slice's CRC-32C into the 32-bit number of `sums` with the
 * slice's number:
 *
 *     uint32_t state = ~0;
 *     for (int word = 0; word < 1024; word++) {
 *         state ^= data[slice * 1024 + word];
 *         for (int bit = 0; bit < 32; bit++)
 *             state = state >> 1 ^ (-(state & 1) & 0x82f63b78);
 *     }
 *     sums[slice] = ~state;
 *
 * It looks at 16 bytes at a time. Bit by bit as it is, with three or four instructions for each:
 * going by these, 16 MiB, which are 4096 threads, take an H100 a few tenths of a millisecond, and
 * its bus 0.3. ptxas of CUDA 12.9 takes it for sm_75 to sm_100.
 */
#pragma once

#include "checksum.h"
#include "device.h"

#define SUMS_NAME "thaw_crc32c"
#define SUMS_THREADS 32 /* of a block: so few that all of a GPU's processors get some */
#define SUMS_MOST ((size_t)4096) /* slices that are looked at together */

#define SUMS_BIT                                                                                   \
    "  bfe.s32 %r11, %r5, 0, 1;\n" /* all ones if the lowest bit is one */                         \
    "  and.b32 %r11, %r11, 0x82f63b78;\n"                                                          \
    "  shr.u32 %r5, %r5, 1;\n"                                                                     \
    "  xor.b32 %r5, %r5, %r11;\n"
#define SUMS_BYTE SUMS_BIT SUMS_BIT SUMS_BIT SUMS_BIT SUMS_BIT SUMS_BIT SUMS_BIT SUMS_BIT
#define SUMS_WORD(word) "  xor.b32 %r5, %r5, " word ";\n" SUMS_BYTE SUMS_BYTE SUMS_BYTE SUMS_BYTE

#define SUMS_PTX                                                                                   \
    ".version 6.0\n"                                                                               \
    ".target sm_50\n"                                                                              \
    ".address_size 64\n"                                                                           \
    ".visible .entry " SUMS_NAME                                                                   \
    "(.param .u64 data, .param .u64 sums, .param .u32 count)\n"                                    \
    "{\n"                                                                                          \
    "  .reg .pred %p<3>;\n"                                                                        \
    "  .reg .b32 %r<12>;\n"                                                                        \
    "  .reg .b64 %d<5>;\n"                                                                         \
    "  ld.param.u64 %d1, [data];\n"                                                                \
    "  ld.param.u64 %d2, [sums];\n"                                                                \
    "  ld.param.u32 %r1, [count];\n"                                                               \
    "  cvta.to.global.u64 %d1, %d1;\n"                                                             \
    "  cvta.to.global.u64 %d2, %d2;\n"                                                             \
    "  mov.u32 %r2, %ctaid.x;\n"                                                                   \
    "  mov.u32 %r3, %ntid.x;\n"                                                                    \
    "  mov.u32 %r4, %tid.x;\n"                                                                     \
    "  mad.lo.u32 %r2, %r2, %r3, %r4;\n" /* the slice's number */                                  \
    "  setp.ge.u32 %p1, %r2, %r1;\n"                                                               \
    "  @%p1 bra done;\n"                                                                           \
    "  mul.wide.u32 %d3, %r2, 4096;\n"                                                             \
    "  mul.wide.u32 %d4, %r2, 4;\n"                                                                \
    "  add.s64 %d1, %d1, %d3;\n"                                                                   \
    "  add.s64 %d2, %d2, %d4;\n"                                                                   \
    "  mov.u32 %r5, 0xffffffff;\n" /* the state */                                                 \
    "  mov.u32 %r6, 256;\n"        /* rounds that are left */                                      \
    "look:\n"                                                                                      \
    "  ld.global.v4.u32 {%r7, %r8, %r9, %r10}, [%d1];\n"                                           \
    SUMS_WORD("%r7") SUMS_WORD("%r8") SUMS_WORD("%r9") SUMS_WORD("%r10")                           \
    "  add.s64 %d1, %d1, 16;\n"                                                                    \
    "  sub.u32 %r6, %r6, 1;\n"                                                                     \
    "  setp.ne.u32 %p2, %r6, 0;\n"                                                                 \
    "  @%p2 bra look;\n"                                                                           \
    "  not.b32 %r5, %r5;\n"                                                                        \
    "  st.global.u32 [%d2], %r5;\n"                                                                \
    "done:\n"                                                                                      \
    "  ret;\n"                                                                                     \
    "}\n"

/* The kernel on every GPU that it was wanted on. */
struct sums {
    struct thaw_device *device;
    pthread_mutex_t lock; /* of all that follows; a kernel that is there stays */
    driver_handle modules[GPUS], kernels[GPUS];
};

/* One thread's. All zeros but for `sums`: not used yet. */
struct summer {
    struct sums *sums;
    const char *call; /* of the last failure */
    driver_handle streams[GPUS];
    uint64_t places[GPUS];      /* device pointers, to SUMS_MOST sums */
    uint32_t found[SUMS_MOST];
};

void sums_open(struct sums *sums, struct thaw_device *device);
void sums_close(struct sums *sums);

/* Into `found`: of `count` slices from `offset` on, which lie in the region. As device.h's. */
int summer_find(struct summer *summer, const struct thaw_region *region, uint64_t offset,
                size_t count);

/* Waits for whatever is under way. */
void summer_close(struct summer *summer);
