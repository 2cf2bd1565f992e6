/*
 * Many small fills of all kinds, cancelled, failing or not, from several threads: for the
 * sanitizers. Arguments: an empty folder, seconds, a seed.
 *
 * The tasks are forked before there is any thread; each waits until it is killed.
 */
#define _GNU_SOURCE

#include "cancel.h"
#include "check.h"
#include "thaw.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define SIZE ((size_t)6 << 20)

enum { RUNNERS = 3, FILES = 2, EXTENTS = 64 };
enum { END_WAIT, END_CANCEL, END_CLOSE, END_DAMAGE, END_TASK, ENDS };

/* One thread's own: its tasks have the same address, and one more pid is nobody's. */
struct runner {
    pthread_t thread;
    unsigned long seed;
    int pids[2];
    unsigned char *memory;
};

static struct thaw_source sources[FILES];
static unsigned char *data;
static time_t end;

static unsigned long number_of(struct runner *runner) {
    return next_number(&runner->seed);
}

static int make_file(const char *folder, const char *name) {
    char path[4200];
    int file;

    snprintf(path, sizeof(path), "%s/%s", folder, name);
    file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    CHECK(file >= 0);
    return file;
}

static void put(int file, const unsigned char *from, size_t size) {
    CHECK(pwrite(file, from, size, 0) == (ssize_t)size);
}

static void make_files(const char *folder) {
    static const char *const names[FILES] = {"one", "two"};
    unsigned long seed = 5;

    data = malloc(SIZE);
    CHECK(data != NULL);
    for (size_t at = 0; at < SIZE; at += sizeof(seed)) {
        unsigned long word = next_number(&seed);

        memcpy(data + at, &word, sizeof(word));
    }
    for (size_t page = 0; page < SIZE / PAGE; page += 5)
        memset(data + page * PAGE, 0, PAGE);
    for (int number = 0; number < FILES; number++) {
        sources[number].size = SIZE;
        sources[number].file = make_file(folder, names[number]);
        put(sources[number].file, data, SIZE);
    }
}

static int make_task(void) {
    int pid = fork();

    CHECK(pid >= 0);
    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

static void make_runner(struct runner *runner, unsigned long seed) {
    runner->seed = seed;
    runner->memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(runner->memory != MAP_FAILED);
    for (int task = 0; task < 2; task++)
        runner->pids[task] = make_task();
}

static size_t make_extents(struct runner *runner, struct thaw_extent *extents) {
    size_t count = 0, at = 0;

    memset(extents, 0, EXTENTS * sizeof(*extents));
    while (count < EXTENTS && at < SIZE) {
        struct thaw_extent *extent = &extents[count];
        size_t length = (1 + number_of(runner) % 200) * PAGE;

        extent->length = (uint32_t)(length < SIZE - at ? length : SIZE - at);
        extent->address = (uint64_t)(uintptr_t)runner->memory + at;
        extent->offset = at;
        extent->checksum = thaw_crc32c(0, data + at, extent->length);
        extent->task = number_of(runner) % 2;
        extent->source = count / 4 % FILES; /* by turns, as from several disks */
        extent->flags = 1;
        at += extent->length + number_of(runner) % 40 * PAGE;
        count++;
    }
    return count;
}

static void check_memory(struct runner *runner, const struct thaw_extent *extents, size_t count) {
    unsigned char *copy = malloc(SIZE);

    CHECK(copy != NULL);
    for (size_t number = 0; number < count; number++) {
        const struct thaw_extent *extent = &extents[number];
        struct iovec local = {copy, extent->length};
        struct iovec remote = {(void *)(uintptr_t)extent->address, extent->length};

        CHECK(process_vm_readv(runner->pids[extent->task], &local, 1, &remote, 1, 0) ==
              (ssize_t)extent->length);
        CHECK(memcmp(copy, data + extent->offset, extent->length) == 0);
    }
    free(copy);
}

static void check_end(struct runner *runner, struct thaw_fill *fill, unsigned long how, int result,
                      const struct thaw_extent *extents, size_t count) {
    struct thaw_progress progress;
    struct thaw_failure failure;

    thaw_fill_progress(fill, &progress);
    thaw_fill_failure(fill, &failure);
    CHECK(failure.error == -result);
    if (how == END_DAMAGE)
        CHECK(result == -EBADMSG && failure.place == count / 2);
    else if (how == END_TASK)
        CHECK(result == -ESRCH && failure.stage == 4);
    else if (how == END_CANCEL)
        CHECK(result == 0 || result == -ECANCELED);
    else
        CHECK(result == 0);
    if (result == 0) {
        CHECK(progress.done == progress.total && progress.buffered == 0);
        check_memory(runner, extents, count);
    }
}

static void fill_once(struct runner *runner) {
    static const uint64_t budgets[] = {0, (size_t)4 << 20, (size_t)64 << 20};
    const int gone[] = {runner->pids[0], 1 << 29}, nodes[] = {0};
    struct thaw_extent extents[EXTENTS];
    size_t count = make_extents(runner, extents);
    unsigned long how = number_of(runner) % ENDS;
    struct thaw_fill_options options = {budgets[number_of(runner) % 3],
                                        (uint32_t)(number_of(runner) % 4),
                                        (uint32_t)(number_of(runner) % 4),
                                        (uint32_t)(number_of(runner) % 3)};
    struct thaw_fill *fill;
    int result;

    if (how == END_DAMAGE)
        extents[count / 2].checksum ^= 1;
    if (how == END_TASK)
        extents[0].task = 1;
    CHECK(thaw_fill_open(sources, FILES, extents, count, &options, &fill) == 0);
    if (number_of(runner) % 2 == 0) {
        result = thaw_fill_prefetch(fill);
        CHECK(result == 0);
    }
    result = thaw_fill_start(fill, how == END_TASK ? gone : runner->pids, 2, nodes,
                             number_of(runner) % 2);
    CHECK(result == 0 || (how == END_DAMAGE && result == -EBADMSG));
    if (how != END_CLOSE) {
        result = how == END_CANCEL ? wait_cancelled(fill) : thaw_fill_wait(fill, -1);
        check_end(runner, fill, how, result, extents, count);
    }
    thaw_fill_close(fill);
}

static void *run(void *arg) {
    struct runner *runner = arg;
    long turns = 0;

    do { /* once at least: a thread may have to wait for a processor that long */
        if (turns % 8 == 0)
            for (int number = 0; number < FILES; number++)
                posix_fadvise(sources[number].file, 0, 0, POSIX_FADV_DONTNEED);
        fill_once(runner);
        turns++;
    } while (time(NULL) < end);
    printf("%ld fills\n", turns);
    return NULL;
}

static void end_runner(struct runner *runner) {
    pthread_join(runner->thread, NULL);
    for (int task = 0; task < 2; task++) {
        kill(runner->pids[task], SIGKILL);
        waitpid(runner->pids[task], NULL, 0);
    }
    munmap(runner->memory, SIZE);
}

int main(int argc, char **argv) {
    static struct runner runners[RUNNERS];

    CHECK(argc == 4);
    make_files(argv[1]);
    for (int number = 0; number < RUNNERS; number++)
        make_runner(&runners[number], strtoul(argv[3], NULL, 10) * 16 + (unsigned long)number + 1);
    fsync(sources[0].file);
    end = time(NULL) + atol(argv[2]);
    for (int number = 0; number < RUNNERS; number++)
        CHECK(pthread_create(&runners[number].thread, NULL, run, &runners[number]) == 0);
    for (int number = 0; number < RUNNERS; number++)
        end_runner(&runners[number]);
    for (int number = 0; number < FILES; number++)
        close(sources[number].file);
    free(data);
    return 0;
}
