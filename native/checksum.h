/* CRC-32C by tables alone, which the tests compare with, and of bytes that others have summed up. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CRC32C_SLICE 4096U

uint32_t crc32c_by_tables(uint32_t crc, const void *data, size_t size);

/* Of bytes whose checksum is `before`, and CRC32C_SLICE more, whose own is `slice`, after them. */
uint32_t crc32c_join(uint32_t before, uint32_t slice);
