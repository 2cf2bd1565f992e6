/* CRC-32C by tables alone, which the tests compare with, and of bytes that others have summed up. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define CRC32C_SLICE 4096U

uint32_t crc32c_by_tables(uint32_t crc, const void *data, size_t size);

/*
 * Copies while it sums up: the checksum is of what was copied, whatever others write into `from`
 * meanwhile. On x86 whole words go past the caches, as for a device that reads them from memory.
 */
uint32_t crc32c_copy(uint32_t crc, void *to, const void *from, size_t size);

/* Of bytes whose checksum is `before`, and CRC32C_SLICE more, whose own is `slice`, after them. */
uint32_t crc32c_join(uint32_t before, uint32_t slice);
