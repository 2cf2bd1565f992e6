/* CRC-32C by tables alone: what every processor can do, and what the tests compare with. */
#pragma once

#include <stddef.h>
#include <stdint.h>

uint32_t crc32c_by_tables(uint32_t crc, const void *data, size_t size);
