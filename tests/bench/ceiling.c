/*
 * ceiling BYTES THREADS PAGES: how fast this machine copies into fresh memory, in GiB/s.
 *
 * PAGES is `huge` or `small`. The threads take pieces of 4 MiB, as a fill does, from a source of
 * at most 1 GiB: too large for any cache. Nobody can bring memory back faster than that.
 */
#define _GNU_SOURCE

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PIECE (4u << 20)
#define SOURCE ((size_t)1 << 30)
#define HUGE_PAGE (2u << 20)

static unsigned char *source, *target;
static size_t bytes, source_bytes, next_piece;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static unsigned char *memory(size_t size, int advice) {
    unsigned char *all = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (all == MAP_FAILED)
        fail("mmap");
    all += (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
    if (madvise(all, size, advice) < 0)
        fail("madvise");
    return all;
}

static void *copy(void *unused) {
    size_t place;

    (void)unused;
    while ((place = __atomic_fetch_add(&next_piece, PIECE, __ATOMIC_RELAXED)) < bytes)
        memcpy(target + place, source + place % source_bytes, PIECE);
    return NULL;
}

static double now(void) {
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    pthread_t threads[1024];
    size_t count;
    double began;

    if (argc != 4 || (count = strtoul(argv[2], NULL, 10)) < 1 || count > 1024)
        return 2;
    bytes = strtoul(argv[1], NULL, 10) / PIECE * PIECE;
    source_bytes = bytes < SOURCE ? bytes : SOURCE;
    source = memory(source_bytes, MADV_HUGEPAGE);
    memset(source, 0xa5, source_bytes);
    target = memory(bytes, strcmp(argv[3], "huge") == 0 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    began = now();
    for (size_t n = 0; n < count; n++)
        if (pthread_create(&threads[n], NULL, copy, NULL) != 0)
            fail("pthread_create");
    for (size_t n = 0; n < count; n++)
        pthread_join(threads[n], NULL);
    printf("%.6f\n", (double)bytes / (now() - began) / (1 << 30));
    return 0;
}
