/*
 * native/cuda.c on the driver of files that tests/fakes/libcuda.c is: driver LIBRARY WORLD.
 *
 * Several threads take a process each, 1 to THREADS, through everything, and through failures.
 */
#define _GNU_SOURCE

#include "check.h"
#include "checkpoint.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 20, ILLEGAL_STATE = 401 };

static struct thaw_cuda *cuda; /* the library is for ever, so is this */

static bool no_signals_held(void) {
    sigset_t now;

    pthread_sigmask(SIG_BLOCK, NULL, &now);
    return sigisemptyset(&now);
}

static void plain(int pid, struct thaw_cuda_pair *pairs) {
    int state;

    CHECK(thaw_cuda_lock(cuda, pid, 1000) == 0);
    CHECK(thaw_cuda_lock(cuda, pid, 1000) == ILLEGAL_STATE);
    CHECK(thaw_cuda_state(cuda, pid, &state) == 0 && state == 1);
    CHECK(thaw_cuda_checkpoint(cuda, pid) == 0);
    CHECK(thaw_cuda_restore(cuda, pid, pairs, 2) == 0);
    CHECK(thaw_cuda_checkpoint(cuda, pid) == 0);
    CHECK(thaw_cuda_restore(cuda, pid, NULL, 1) == -EINVAL);
    CHECK(thaw_cuda_restore(cuda, pid, pairs, (size_t)1 << 32) == -EINVAL);
    CHECK(thaw_cuda_restore(cuda, pid, NULL, 0) == 0);
    CHECK(thaw_cuda_unlock(cuda, pid) == 0);
    CHECK(thaw_cuda_unlock(cuda, pid) == ILLEGAL_STATE);
}

static void copied_by_us(int pid, struct thaw_cuda_pair *pairs) {
    struct thaw_cuda_operation operation;

    memset(&operation, 0xff, sizeof(operation));
    CHECK(thaw_cuda_checkpoint_start(cuda, pid, &operation) == ILLEGAL_STATE);
    CHECK(operation.handle == NULL && operation.mappings == NULL && operation.count == 0);
    CHECK(thaw_cuda_lock(cuda, pid, 1) == 0);
    CHECK(thaw_cuda_checkpoint_start(cuda, pid, &operation) == 0);
    CHECK(operation.count == 2 && operation.mappings[1].size == (uint64_t)4 << 20);
    CHECK(operation.mappings[1].stream != NULL);
    CHECK(thaw_cuda_complete(cuda, &operation) == 0);
    CHECK(operation.handle == NULL && operation.mappings == NULL);
    CHECK(thaw_cuda_restore_start(cuda, pid, pairs, 1, &operation) == 0);
    CHECK(thaw_cuda_complete(cuda, &operation) == 0);
    CHECK(thaw_cuda_unlock(cuda, pid) == 0);
}

static void *work(void *arg) {
    struct thaw_cuda_pair pairs[2];
    int pid = *(const int *)arg, thread;

    memset(pairs, pid, sizeof(pairs));
    for (int round = 0; round < ROUNDS; round++) {
        plain(pid, pairs);
        copied_by_us(pid, pairs);
        CHECK(thaw_cuda_restore_thread(cuda, pid, &thread) == 0 && thread == pid + 1);
        CHECK(no_signals_held());
    }
    return NULL;
}

static void refusals(const char *library) {
    struct thaw_cuda *none = NULL;
    char why[16];

    CHECK(thaw_cuda_open(library, &none, why, 0) == -EINVAL);
    CHECK(thaw_cuda_open("/nonexistent/libcuda.so.1", &none, why, sizeof(why)) == -ELIBACC);
    CHECK(none == NULL && strlen(why) == sizeof(why) - 1);
    CHECK(thaw_cuda_open("libc.so.6", &none, why, sizeof(why)) == -ENOSYS);
    CHECK(none == NULL && strcmp(why, "cuInit, cuDrive") == 0);
    CHECK(thaw_cuda_open("libc.so.6", &none, why, 1) == -ENOSYS && why[0] == '\0');
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    int pids[THREADS], version;
    char why[256];

    CHECK(argc == 3);
    CHECK(setenv("THAW_FAKE_CUDA", argv[2], 1) == 0);
    refusals(argv[1]);
    CHECK(thaw_cuda_open(argv[1], &cuda, why, sizeof(why)) == 0);
    CHECK(thaw_cuda_version(cuda, &version) == 0 && version == 13040);
    CHECK(thaw_cuda_has_storage(cuda) == 1);
    CHECK(thaw_cuda_lock(cuda, 1, 1) == 3);
    CHECK(thaw_cuda_init(cuda) == 0);
    for (int n = 0; n < THREADS; n++) {
        pids[n] = n + 1;
        CHECK(pthread_create(&threads[n], NULL, work, &pids[n]) == 0);
    }
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    puts("fine");
    return 0;
}
