/*
 * The one kernel of ours, as the driver's own assembly, which it compiles for whatever GPU there
 * is: thaw_nonzero(data, flags), a block of 256 threads for every 64 KiB of `data`, sets the byte
 * of `flags` with the block's number to 1 unless these are all zeros. A thread looks at 16 bytes at
 * a time, a block at 4 KiB that lie together, 16 times. ptxas of CUDA 12.9 takes it for sm_75 to
 * sm_100.
 */
#pragma once

#define NONZERO_NAME "thaw_nonzero"
#define NONZERO_CHUNK ((size_t)64 << 10) /* bytes that a block looks at */
#define NONZERO_THREADS 256

static const char nonzero_ptx[] =
    ".version 6.0\n"
    ".target sm_50\n"
    ".address_size 64\n"
    ".visible .entry " NONZERO_NAME "(.param .u64 data, .param .u64 flags)\n"
    "{\n"
    "  .reg .pred %p<3>;\n"
    "  .reg .b16 %h<2>;\n"
    "  .reg .b32 %r<9>;\n"
    "  .reg .b64 %d<8>;\n"
    "  ld.param.u64 %d1, [data];\n"
    "  ld.param.u64 %d2, [flags];\n"
    "  cvta.to.global.u64 %d1, %d1;\n"
    "  cvta.to.global.u64 %d2, %d2;\n"
    "  mov.u32 %r1, %ctaid.x;\n"
    "  mov.u32 %r2, %tid.x;\n"
    "  mul.wide.u32 %d3, %r1, 65536;\n"
    "  mul.wide.u32 %d4, %r2, 16;\n"
    "  add.s64 %d1, %d1, %d3;\n"
    "  add.s64 %d1, %d1, %d4;\n" /* this thread's first 16 bytes */
    "  mov.u32 %r3, 0;\n"        /* all that was seen */
    "  mov.u32 %r4, 16;\n"       /* rounds that are left */
    "look:\n"
    "  ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d1];\n"
    "  or.b32 %r5, %r5, %r6;\n"
    "  or.b32 %r7, %r7, %r8;\n"
    "  or.b32 %r3, %r3, %r5;\n"
    "  or.b32 %r3, %r3, %r7;\n"
    "  add.s64 %d1, %d1, 4096;\n"
    "  sub.u32 %r4, %r4, 1;\n"
    "  setp.ne.u32 %p1, %r4, 0;\n"
    "  @%p1 bra look;\n"
    "  setp.eq.u32 %p2, %r3, 0;\n"
    "  @%p2 bra done;\n"
    "  cvt.u64.u32 %d5, %r1;\n"
    "  add.s64 %d2, %d2, %d5;\n"
    "  mov.u16 %h1, 1;\n"
    "  st.global.u8 [%d2], %h1;\n" /* whoever else writes it writes the same */
    "done:\n"
    "  ret;\n"
    "}\n";
