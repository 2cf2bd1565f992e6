/*
 * The program's kernel as the driver's own assembly: fill(data, bytes, seed) by one block of 256
 * threads, eight bytes at a time. The fake driver knows it by its name, and has a fill of its own.
 */
#pragma once

static const char fill_ptx[] =
    ".version 6.0\n"
    ".target sm_50\n"
    ".address_size 64\n"
    ".visible .entry fill(.param .u64 data, .param .u64 bytes, .param .u64 seed)\n"
    "{\n"
    "  .reg .pred %p<2>;\n"
    "  .reg .b32 %r<2>;\n"
    "  .reg .b64 %d<9>;\n"
    "  ld.param.u64 %d1, [data];\n"
    "  ld.param.u64 %d2, [bytes];\n"
    "  ld.param.u64 %d3, [seed];\n"
    "  cvta.to.global.u64 %d1, %d1;\n"
    "  mov.u32 %r1, %tid.x;\n"
    "  mul.wide.u32 %d4, %r1, 8;\n"
    "  mov.u64 %d5, 6364136223846793005;\n"
    "next:\n"
    "  add.u64 %d6, %d4, 8;\n" /* where this one ends */
    "  setp.gt.u64 %p1, %d6, %d2;\n"
    "  @%p1 bra done;\n"
    "  add.u64 %d6, %d6, %d3;\n"
    "  mul.lo.u64 %d6, %d6, %d5;\n"
    "  shr.u64 %d7, %d6, 29;\n"
    "  xor.b64 %d6, %d6, %d7;\n"
    "  add.u64 %d8, %d1, %d4;\n"
    "  st.global.u64 [%d8], %d6;\n"
    "  add.u64 %d4, %d4, 2048;\n"
    "  bra next;\n"
    "done:\n"
    "  ret;\n"
    "}\n";
