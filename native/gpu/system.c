/* See system.h. */
#define _GNU_SOURCE
#include "system.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>

#define SECOND UINT64_C(1000000000)

#ifndef THAW_GPU_HOSTED
/* What the compiler calls by itself. Hidden: the program's own are not touched. */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);
void __stack_chk_fail(void);

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    return memmove(to, from, size);
}

void *memmove(void *to, const void *from, size_t size) {
    const unsigned char *source = from;
    unsigned char *target = to;

    if ((uintptr_t)target <= (uintptr_t)source)
        for (size_t n = 0; n < size; n++)
            target[n] = source[n];
    else
        for (size_t n = size; n > 0; n--)
            target[n - 1] = source[n - 1];
    return to;
}

void *memset(void *to, int value, size_t size) {
    unsigned char *target = to;

    for (size_t n = 0; n < size; n++)
        target[n] = (unsigned char)value;
    return to;
}

int memcmp(const void *one, const void *other, size_t size) {
    const unsigned char *a = one, *b = other;

    for (size_t n = 0; n < size; n++)
        if (a[n] != b[n])
            return a[n] - b[n];
    return 0;
}

void __stack_chk_fail(void) {
    __builtin_trap();
}

#ifdef __aarch64__
/* Elsewhere this is in the memory of each thread. Here not every C library has it; a number that
   anybody may know still shows mistakes. */
extern const uintptr_t __stack_chk_guard;
const uintptr_t __stack_chk_guard = UINT64_C(0x9e3779b97f4a7c00);
#endif
#endif

uint64_t system_nanoseconds(void) {
    struct timespec now = {0, 0};

    SYSTEM_CALL(SYS_clock_gettime, CLOCK_MONOTONIC, &now, 0, 0, 0, 0);
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

static struct timespec duration(uint64_t nanoseconds) {
    return (struct timespec){(time_t)(nanoseconds / SECOND), (long)(nanoseconds % SECOND)};
}

void system_sleep(uint64_t nanoseconds) {
    struct timespec time = duration(nanoseconds);

    SYSTEM_CALL(SYS_nanosleep, &time, 0, 0, 0, 0, 0);
}

int system_process(void) {
    return (int)SYSTEM_CALL(SYS_getpid, 0, 0, 0, 0, 0, 0);
}

static bool failed(long result) {
    return result < 0 && result > -4096;
}

void *system_memory(size_t size) {
    long result = SYSTEM_CALL(SYS_mmap, 0, size, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return failed(result) ? NULL : (void *)result;
}

void system_memory_back(void *memory, size_t size) {
    SYSTEM_CALL(SYS_munmap, memory, size, 0, 0, 0, 0);
}

void *system_larger(void *memory, size_t from, size_t to) {
    long result = memory == NULL ? (long)system_memory(to)
                                 : SYSTEM_CALL(SYS_mremap, memory, from, to, MREMAP_MAYMOVE, 0, 0);

    return failed(result) ? NULL : (void *)result;
}

void system_wait(_Atomic uint32_t *word, uint32_t value, uint64_t nanoseconds) {
    struct timespec time = duration(nanoseconds);

    SYSTEM_CALL(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nanoseconds == 0 ? NULL : &time, 0, 0);
}

void system_wake(_Atomic uint32_t *word) {
    SYSTEM_CALL(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
}

/* The C library's; it may not be there yet, or at all. */
extern char **environ __attribute__((weak));

/*
 * One byte after the other, past `name=` of one entry: as in /proc/self/environ, which is what the
 * kernel was given at execve(2).
 */
struct search {
    const char *name;
    size_t matched; /* bytes of the name; SIZE_MAX: another entry, to be passed over */
    bool inside;    /* its value */
    char *value;
    size_t size, length;
};

/* True when the value is whole. */
static bool take(struct search *search, char byte) {
    if (search->inside) {
        if (byte != '\0' && search->length + 1 < search->size)
            search->value[search->length++] = byte;
        return byte == '\0';
    }
    if (byte == '\0')
        search->matched = 0;
    else if (search->matched == SIZE_MAX)
        return false;
    else if (search->name[search->matched] == '\0' && byte == '=')
        search->inside = true;
    else if (search->name[search->matched] == byte)
        search->matched++;
    else
        search->matched = SIZE_MAX;
    return false;
}

static bool among_first(struct search *search) {
    static const char path[] = "/proc/self/environ";
    long fd = SYSTEM_CALL(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
    char buffer[1024];
    bool found = false;
    long got = 0;

    if (fd < 0)
        return false;
    while (!found && (got = SYSTEM_CALL(SYS_read, fd, buffer, sizeof(buffer), 0, 0, 0)) > 0)
        for (long n = 0; n < got && !found; n++)
            found = take(search, buffer[n]);
    SYSTEM_CALL(SYS_close, fd, 0, 0, 0, 0, 0);
    return search->inside;
}

/* What the kernel was given is overwritten by programs that show something else as their name. */
bool system_environment(const char *name, char *value, size_t size) {
    struct search search = {.name = name, .value = value, .size = size};
    bool found = false;

    if (&environ != NULL && environ != NULL) {
        for (char **entry = environ; *entry != NULL && !found; entry++) {
            const char *at = *entry;

            while (!(found = take(&search, *at)) && *at != '\0')
                at++;
        }
        found = search.inside;
    } else {
        found = among_first(&search);
    }
    value[search.length] = '\0';
    return found;
}

void system_say(const char *line) {
    char buffer[256] = "thaw: ";
    size_t length = 6;

    text_copy(buffer + length, sizeof(buffer) - length - 1, line);
    while (buffer[length] != '\0')
        length++;
    buffer[length++] = '\n';
    SYSTEM_CALL(SYS_write, 2, buffer, length, 0, 0, 0);
}
