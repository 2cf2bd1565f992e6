/* The buffers that readers read into: as many as the budget allows, in huge pages if there are. */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define HUGE_PAGE ((size_t)2 << 20)

/*
 * Not for children: direct I/O into a page that a fork has just shared may land in the child's
 * copy (open(2), NOTES, O_DIRECT), and a fork need not copy the page tables either.
 */
unsigned char *memory_map(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    if (memory == MAP_FAILED)
        return NULL;
    madvise(memory, size, MADV_DONTFORK);
    return memory;
}

static unsigned char *align(unsigned char *memory) {
    return memory + (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
}

/* `wanted` buffers, or as many as the budget allows: none is no error. */
int pool_open(struct pool *pool, uint64_t budget, uint32_t wanted) {
    uint32_t count = budget / BUFFER < wanted ? (uint32_t)(budget / BUFFER) : wanted;

    if (count == 0)
        return 0;
    pool->free = calloc(count, sizeof(*pool->free));
    if (pool->free == NULL)
        return -ENOMEM;
    pool->mapped = count * BUFFER + HUGE_PAGE;
    pool->memory = memory_map(pool->mapped);
    if (pool->memory == NULL)
        return -ENOMEM;
    madvise(align(pool->memory), count * BUFFER, MADV_HUGEPAGE);
    for (uint32_t number = 0; number < count; number++)
        pool->free[number] = count - 1 - number;
    pool->count = pool->free_count = count;
    return 0;
}

unsigned char *pool_buffer(const struct pool *pool, uint32_t buffer) {
    return align(pool->memory) + buffer * BUFFER;
}

void pool_close(struct pool *pool) {
    if (pool->memory != NULL)
        munmap(pool->memory, pool->mapped);
    free(pool->free);
}
