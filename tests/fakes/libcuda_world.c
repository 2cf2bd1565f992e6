/* The world of the fake libcuda, and the processes in it: see libcuda.c. */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

const char *const names[STATES] = {"running", "locked",        "checkpointed",
                                   "failed",  "checkpointing", "restoring"};
atomic_bool initialized;
struct own own;
const char mark[sizeof(own.mark)] = "fake CUDA state";

/* ---- the world --------------------------------------------------------------------------- */

int world(int flags, const char *format, ...) {
    const char *folder = getenv("THAW_FAKE_CUDA");
    char path[4096];
    va_list arguments;
    int length;

    if (folder == NULL)
        folder = getenv("THAW_FAKE_WORKER");
    length = snprintf(path, sizeof(path), "%s/", folder != NULL ? folder : "/nonexistent");

    va_start(arguments, format);
    vsnprintf(path + length, sizeof(path) - (size_t)length, format, arguments);
    va_end(arguments);
    return open(path, flags | O_CLOEXEC, 0600);
}

bool is_so(const char *name) {
    int fd = world(O_RDONLY, "%s", name);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

bool content(int fd, char *text, size_t size) {
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

/* Reads or writes a number in `own` of a process; false if it has never called cuInit, or has
   ended. */
static bool with_number(int pid, size_t offset, int *number, bool write) {
    uintptr_t place = place_of(pid);
    off_t at = (off_t)(place + offset);
    char path[64], found[sizeof(mark)] = "";
    bool done;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    fd = place != 0 ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    done = pread(fd, found, sizeof(found), (off_t)place) == sizeof(found) &&
           memcmp(found, mark, sizeof(mark)) == 0 &&
           (write ? pwrite(fd, number, sizeof(*number), at)
                  : pread(fd, number, sizeof(*number), at)) == sizeof(*number);
    close(fd);
    return done;
}

static bool with_memory(int pid, int *state, bool write) {
    return with_number(pid, offsetof(struct own, state), state, write);
}

int imported_by(int pid) {
    int count;

    return with_number(pid, offsetof(struct own, imported), &count, false) ? count : 0;
}

int state_of(int pid) {
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
void set_state(int pid, const char *state) {
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

void change_gpus(int pid, const unsigned char *pairs, unsigned count) {
    for (size_t device = 0; device < DEVICES; device++) {
        size_t place = offsetof(struct own, gpus) + device * sizeof(own.gpus[0]);
        int number, other;

        if (!with_number(pid, place, &number, false))
            return;
        for (unsigned n = 0; n < count; n++) {
            other = pairs[n * 32 + 31];
            if (pairs[n * 32 + 15] == number) {
                with_number(pid, place, &other, true);
                break;
            }
        }
    }
}

bool move_memory(int pid, int wanted, int then) {
    const struct timespec step = {0, 2000000};
    size_t place = offsetof(struct own, turn);
    int watched, turn;

    if (!with_number(pid, offsetof(struct own, watched), &watched, false) || watched == 0 ||
        !with_number(pid, place, &turn, false) || turn != (wanted == GO ? HERE : AWAY))
        return true;
    with_number(pid, place, &wanted, true);
    for (int steps = 0; steps < 30000; steps++) {
        if (!with_number(pid, place, &turn, false))
            return false;
        if (turn == then)
            return true;
        nanosleep(&step, NULL);
    }
    return false;
}

/* What is answered for a process that is none of CUDA's: a zombie is there, too. */
int unknown(int pid) {
    char path[64];

    snprintf(path, sizeof(path), "/proc/%d", pid);
    return access(path, F_OK) == 0 ? NOT_INITIALIZED : OPERATING_SYSTEM;
}

void log_line(const char *what, const char *call, int pid, int result, const char *detail) {
    struct timespec now;
    char line[4096];
    int fd, length;

    if (getenv("THAW_FAKE_CUDA") == NULL) /* threads of containers have numbers of their own */
        return;
    fd = world(O_WRONLY | O_CREAT | O_APPEND, "log");
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
bool delay(const char *call, int pid) {
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

bool answer(const char *call, int pid, int *result) {
    char state[16];

    if (!take_answer(world(O_RDWR, "answers/%s.%d", call, pid), result, state, sizeof(state)) &&
        !take_answer(world(O_RDWR, "answers/%s", call), result, state, sizeof(state)))
        return false;
    if (state[0] != '\0')
        set_state(pid, state);
    return true;
}

int version(void) {
    char text[64];

    return content(world(O_RDONLY, "version"), text, sizeof(text)) ? atoi(text) : 13000;
}
