/*
 * The kernel, without a C library.
 *
 * The library is loaded into programs of all kinds, before their C library has come to life and
 * whichever it is (an old glibc, a new one, musl). So it depends on none: it asks the kernel
 * itself, and what it does need of the C library (threads, dlsym) it looks for among what is
 * loaded, when it needs it (objects.h). Nothing here touches the program's errno.
 */
#pragma once

#include <linux/futex.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>

/* The kernel's answer: negative numbers down to -4095 are errors. */
static inline long system_call(long call, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(call), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = call;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;

    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
#else
#error "no such machine has such GPUs"
#endif
}

#define SYSTEM_CALL(call, a, b, c, d, e, f)                                                      \
    system_call((call), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline bool text_equal(const char *one, const char *other) {
    while (*one != '\0' && *one == *other) {
        one++;
        other++;
    }
    return *one == *other;
}

static inline bool text_begins(const char *text, const char *with) {
    while (*with != '\0' && *text == *with) {
        text++;
        with++;
    }
    return *with == '\0';
}

/* Zero-terminated and cut off where it does not fit. */
static inline void text_copy(char *to, size_t size, const char *text) {
    size_t n = 0;

    for (; n + 1 < size && text[n] != '\0'; n++)
        to[n] = text[n];
    to[n] = '\0';
}

/* Of the monotonic clock. */
uint64_t system_nanoseconds(void);

void system_sleep(uint64_t nanoseconds);

int system_process(void);

/* Zeroed memory of its own, in whole pages; NULL if there is none. */
void *system_memory(size_t size);

void system_memory_back(void *memory, size_t size);

/* The same memory, larger, perhaps elsewhere; what is new is zero. NULL: it is as it was. */
void *system_larger(void *memory, size_t from, size_t to);

/* While *word is `value`; at most `nanoseconds` (0: no limit). Wakes up for nothing, too. */
void system_wait(_Atomic uint32_t *word, uint32_t value, uint64_t nanoseconds);

void system_wake(_Atomic uint32_t *word);

/* The value of a variable of the program's environment; false: none. */
bool system_environment(const char *name, char *value, size_t size);

/* One line on stderr, for people. */
void system_say(const char *line);
