/* Reading another process's memory. */
#pragma once

#include <stddef.h>
#include <sys/uio.h>

/*
 * Reads `count` pieces (at most IOV_MAX) of the memory of the process `pid` into `buffer`, one
 * after the other, areas that the process itself must not read included. Zero, or -errno and in
 * `place` the piece that cannot be read. The pieces are used up.
 */
int thaw_memory_read(int pid, char *buffer, struct iovec *pieces, size_t count, size_t *place);
