/*
 * The world of the fake libcuda, and the processes in it: see libcuda.c, which alone includes this.
 */
#pragma once

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    OPERATING_SYSTEM = 304,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401
};
enum { RUNNING, LOCKED, CHECKPOINTED, FAILED, CHECKPOINTING, RESTORING, STATES, NOBODY = -1 };

static const char *const names[STATES] = {"running", "locked",        "checkpointed",
                                          "failed",  "checkpointing", "restoring"};
static atomic_bool initialized;

/* What cuInit leaves in the memory of whoever calls it. */
static struct own {
    char mark[16];
    volatile int state;
} own;
static const char mark[sizeof(own.mark)] = "fake CUDA state";

/* ---- the world --------------------------------------------------------------------------- */

/* Opens FOLDER/NAME; -1 if that is not there. */
static int world(int flags, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int world(int flags, const char *format, ...) {
    const char *folder = getenv("THAW_FAKE_CUDA");
    char path[4096];
    va_list arguments;
    int length = snprintf(path, sizeof(path), "%s/", folder != NULL ? folder : "/nonexistent");

    va_start(arguments, format);
    vsnprintf(path + length, sizeof(path) - (size_t)length, format, arguments);
    va_end(arguments);
    return open(path, flags | O_CLOEXEC, 0600);
}

/* What the file says, as a string; false if it is not there. Closes it. */
static bool content(int fd, char *text, size_t size) {
    ssize_t got;

    if (fd < 0)
        return false;
    got = read(fd, text, size - 1);
    text[got > 0 ? got : 0] = '\0';
    close(fd);
    return got >= 0;
}

/* Where `own` of a process is; 0 if it has not mapped this library, or has ended. */
static uintptr_t place_of(int pid) {
    char path[64], line[4096];
    unsigned long base = 0, offset;
    Dl_info here;
    FILE *maps;

    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
    maps = fopen(path, "re");
    while (maps != NULL && base == 0 && fgets(line, sizeof(line), maps) != NULL)
        if (strstr(line, "/libcuda.so") == NULL ||
            sscanf(line, "%lx-%*x %*s %lx", &base, &offset) != 2 || offset != 0)
            base = 0;
    if (maps != NULL)
        fclose(maps);
    if (base == 0 || dladdr(&own, &here) == 0)
        return 0;
    return base + ((uintptr_t)&own - (uintptr_t)here.dli_fbase);
}

/* Reads or writes `own.state` of a process; false if it has never called cuInit, or has ended. */
static bool with_memory(int pid, int *state, bool write) {
    uintptr_t place = place_of(pid);
    off_t at = (off_t)(place + offsetof(struct own, state));
    char path[64], found[sizeof(mark)] = "";
    bool done;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    fd = place != 0 ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    done = pread(fd, found, sizeof(found), (off_t)place) == sizeof(found) &&
           memcmp(found, mark, sizeof(mark)) == 0 &&
           (write ? pwrite(fd, state, sizeof(*state), at) : pread(fd, state, sizeof(*state), at)) ==
               sizeof(*state);
    close(fd);
    return done;
}

static int state_of(int pid) {
    char text[64];
    int told;

    if (!content(world(O_RDONLY, "processes/%d", pid), text, sizeof(text)))
        return with_memory(pid, &told, false) ? told : NOBODY;
    text[strcspn(text, " \n")] = '\0';
    for (int state = 0; state < STATES; state++)
        if (strcmp(text, names[state]) == 0)
            return state;
    return atoi(text); /* one that nobody has heard of yet */
}

/* In one piece, for those who read it meanwhile. A process that is gone stays so. */
static void set_state(int pid, const char *state) {
    int fd = world(O_WRONLY, "processes/%d", pid);

    if (fd >= 0) {
        dprintf(fd, "%-16s\n", state);
        close(fd);
        return;
    }
    for (int number = 0; number < STATES; number++)
        if (strcmp(state, names[number]) == 0)
            with_memory(pid, &number, true);
}

/* What is answered for a process that is none of CUDA's: a zombie is there, too. */
static int unknown(int pid) {
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d", pid);
    return access(path, F_OK) == 0 ? NOT_INITIALIZED : OPERATING_SYSTEM;
}

static void log_line(const char *what, const char *call, int pid, int result, const char *detail) {
    struct timespec now;
    char line[4096];
    int fd = world(O_WRONLY | O_CREAT | O_APPEND, "log"), length;

    if (fd < 0)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    length = snprintf(line, sizeof(line), "%s %d %lld %s %d %d %s\n", what, gettid(),
                      (long long)now.tv_sec * 1000000000 + now.tv_nsec, call, pid, result, detail);
    if (write(fd, line, (size_t)length) != length) /* one write: lines of threads do not mix */
        abort();
    close(fd);
}

/* False if the process is killed meanwhile: the call breaks off at once. */
static bool delay(const char *call, int pid) {
    const struct timespec step = {0, 2000000};
    char text[64];
    struct timespec time, now;
    double seconds;
    int told;

    for (int fd; (fd = world(O_RDONLY, "holds/%s", call)) >= 0; nanosleep(&step, NULL)) {
        close(fd);
        if (pid != 0 && state_of(pid) == NOBODY)
            return false;
    }
    if (!content(world(O_RDONLY, "delays/%s.%d", call, pid), text, sizeof(text)) &&
        !content(world(O_RDONLY, "delays/%s", call), text, sizeof(text)))
        return true;
    seconds = atof(text);
    time.tv_sec = (time_t)seconds;
    time.tv_nsec = (long)((seconds - (double)time.tv_sec) * 1e9);
    if (!with_memory(pid, &told, false)) {
        nanosleep(&time, NULL); /* a signal makes it shorter, as a test can see */
        return true;
    }
    clock_gettime(CLOCK_MONOTONIC, &now);
    for (double ends = seconds + (double)now.tv_sec + (double)now.tv_nsec / 1e9;
         (double)now.tv_sec + (double)now.tv_nsec / 1e9 < ends;
         clock_gettime(CLOCK_MONOTONIC, &now)) {
        if (!with_memory(pid, &told, false))
            return false;
        nanosleep(&step, NULL);
    }
    return true;
}

/* The first line of the file is the answer; one that counts once is taken out. */
static bool take_answer(int fd, int *result, char *state, size_t size) {
    char text[4096], often[16] = "", left[16] = "";
    ssize_t got;
    bool found;

    if (fd < 0)
        return false;
    flock(fd, LOCK_EX);
    got = pread(fd, text, sizeof(text) - 1, 0);
    text[got > 0 ? got : 0] = '\0';
    found = sscanf(text, "%d %15s%*[ ]%15[a-z]", result, often, left) >= 2;
    if (found && strcmp(often, "once") == 0) {
        const char *rest = strchr(text, '\n');
        size_t length = rest != NULL ? strlen(rest + 1) : 0;

        if (ftruncate(fd, 0) < 0 || pwrite(fd, text + strlen(text) - length, length, 0) < 0)
            abort();
    }
    snprintf(state, size, "%s", left);
    close(fd);
    return found;
}

static bool answer(const char *call, int pid, int *result) {
    char state[16];

    if (!take_answer(world(O_RDWR, "answers/%s.%d", call, pid), result, state, sizeof(state)) &&
        !take_answer(world(O_RDWR, "answers/%s", call), result, state, sizeof(state)))
        return false;
    if (state[0] != '\0')
        set_state(pid, state);
    return true;
}

static int version(void) {
    char text[64];

    return content(world(O_RDONLY, "version"), text, sizeof(text)) ? atoi(text) : 0;
}
