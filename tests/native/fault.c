/*
 * To be preloaded: system calls that go wrong as a failing device, an odd file system or an older
 * kernel would make them. FAULT says which:
 *
 *   eio N     a read of the byte N of any file fails
 *   short     a read returns a page at most
 *   interrupt every other read is interrupted first
 *   partial   process_vm_writev writes 5000 bytes at most
 *   nodirect  no file can be opened for direct I/O
 *   misfit    direct I/O asks for another alignment
 *   old       there is no cachestat
 *   processors N   we may run on so many
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static bool is(const char *kind) {
    const char *fault = getenv("FAULT");

    return fault != NULL && strncmp(fault, kind, strlen(kind)) == 0;
}

static long real(long number, long a, long b, long c, long d, long e, long f) {
    static long (*next)(long, ...);

    if (next == NULL)
        next = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return next(number, a, b, c, d, e, f);
}

static int fail(int error) {
    errno = error;
    return -1;
}

ssize_t pread(int fd, void *data, size_t size, off_t offset) {
    static __thread bool interrupted;

    if (is("eio") && offset <= atoll(getenv("FAULT") + 4) &&
        atoll(getenv("FAULT") + 4) < offset + (off_t)size)
        return fail(EIO);
    if (is("interrupt") && (interrupted = !interrupted))
        return fail(EINTR);
    if (is("misfit") && (fcntl(fd, F_GETFL) & O_DIRECT) != 0)
        return fail(EINVAL);
    if (is("short") && size > 4096)
        size = 4096;
    return real(SYS_pread64, fd, (long)data, (long)size, offset, 0, 0);
}

ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long local_count,
                          const struct iovec *remote, unsigned long remote_count,
                          unsigned long flags) {
    struct iovec less = *remote;

    if (is("partial")) {
        remote_count = 1;
        less.iov_len = less.iov_len < 5000 ? less.iov_len : 5000;
        remote = &less;
    }
    return real(SYS_process_vm_writev, pid, (long)local, (long)local_count, (long)remote,
                (long)remote_count, (long)flags);
}

int open(const char *path, int flags, ...) {
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = va_arg(args, mode_t);
    va_end(args);
    if (is("nodirect") && (flags & O_DIRECT) != 0)
        return fail(EINVAL);
    return (int)real(SYS_openat, AT_FDCWD, (long)path, flags, mode, 0, 0);
}

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    if (!is("processors"))
        return real(SYS_sched_getaffinity, pid, (long)size, (long)set, 0, 0, 0) < 0 ? -1 : 0;
    CPU_ZERO_S(size, set);
    for (int number = 0; number < atoi(getenv("FAULT") + strlen("processors")); number++)
        CPU_SET_S(number, size, set);
    return 0;
}

long syscall(long number, ...) {
    long a[6];
    va_list args;

    va_start(args, number);
    for (int at = 0; at < 6; at++)
        a[at] = va_arg(args, long);
    va_end(args);
    if (is("old") && number == 451)
        return fail(ENOSYS);
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
