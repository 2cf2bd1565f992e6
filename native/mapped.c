/*
 * Files that are copied from where the page cache has them: no system call in between, and one pass
 * over the data instead of a copy and then a checksum.
 *
 * What speaks against mappings elsewhere (filler.c) is answered here. A file that shrinks
 * meanwhile, or cannot be read, raises SIGBUS: it ends the copy, not us. A file that changes
 * meanwhile does no harm: the checksum is of what was copied. And where the cache has small pages,
 * faults cost more than system calls: they are counted, and such a file is read. Per 4 MiB, on
 * Linux 6.18: huge pages of a tmpfs 2 faults in 18 us, ext4 after large writes the same, after
 * reading ahead 11 in 106 us, a tmpfs of small pages 64 in 570 us.
 */
#define _GNU_SOURCE

#include "checksum.h"
#include "fill.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#define PER_FAULT ((uint64_t)128 << 10) /* bytes; with fewer than that, reading is faster */
#define ALLOWED ((uint64_t)64)          /* faults, for files whose pages are not all alike */

static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static struct sigaction before; /* what SIGBUS did until we came */
static _Thread_local sigjmp_buf *volatile way_out; /* NULL: this thread copies nothing */

/* Comes only for what a thread itself has touched. What is not ours goes on as if we were not. */
static void bus_error(int number, siginfo_t *info, void *context) {
    if (way_out != NULL)
        siglongjmp(*way_out, 1);
    if ((before.sa_flags & SA_SIGINFO) != 0)
        before.sa_sigaction(number, info, context);
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
        before.sa_handler(number);
    else
        sigaction(number, &before, NULL); /* and it is touched again */
}

static void prepare(void) {
    struct sigaction ours = {.sa_sigaction = bus_error, .sa_flags = SA_SIGINFO};

    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, &before);
}

void blob_map(struct blob *blob) {
    void *memory = mmap(NULL, blob->size, PROT_READ, MAP_SHARED, blob->file, 0);

    pthread_once(&prepared, prepare);
    blob->mapped = memory != MAP_FAILED ? memory : NULL;
}

void blob_unmap(struct blob *blob) {
    if (blob->mapped != NULL)
        munmap(blob->mapped, blob->size);
    blob->mapped = NULL;
}

static uint64_t faults(void) {
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return (uint64_t)usage.ru_minflt;
}

bool blob_is_near(struct blob *blob) {
    uint64_t copied = atomic_load_explicit(&blob->copied, memory_order_relaxed);
    uint64_t taken = atomic_load_explicit(&blob->faults, memory_order_relaxed);

    return blob->mapped != NULL && taken <= ALLOWED + copied / PER_FAULT;
}

bool blob_copy(struct blob *blob, uint64_t offset, void *data, size_t length,
               uint32_t *checksum) {
    uint64_t taken = faults();
    sigjmp_buf here;

    if (sigsetjmp(here, 1) != 0) { /* with the mask: the signal is blocked while it is handled */
        way_out = NULL;
        return false;
    }
    way_out = &here;
    *checksum = crc32c_copy(*checksum, data, blob->mapped + offset, length);
    way_out = NULL;
    atomic_fetch_add_explicit(&blob->faults, faults() - taken, memory_order_relaxed);
    atomic_fetch_add_explicit(&blob->copied, length, memory_order_relaxed);
    return true;
}
