/* The memory of a task, written from outside by process_vm_writev. */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

enum { RUNS = 64 };

/* Stretches of data and where they go. */
struct gather {
    struct iovec local[RUNS], remote[RUNS];
    unsigned long count;
};

static void step(struct iovec *piece, size_t bytes) {
    piece->iov_base = (char *)piece->iov_base + bytes;
    piece->iov_len -= bytes;
}

/*
 * A call may stop early, where a page cannot be written: it tells so only if that was the first.
 * Whatever stopped the kernel there, out of memory too, is EFAULT (mm/process_vm_access.c).
 */
static int write_all(pid_t pid, struct gather *gather) {
    unsigned long first = 0;

    while (first < gather->count) {
        unsigned long count = gather->count - first;
        ssize_t now = process_vm_writev(pid, gather->local + first, count, gather->remote + first,
                                        count, 0);

        if (now < 0 && errno != EINTR)
            return -errno;
        if (now == 0)
            return -EFAULT;
        for (size_t bytes = now < 0 ? 0 : (size_t)now; bytes > 0;) {
            size_t part = gather->local[first].iov_len;

            if (bytes < part)
                part = bytes;
            step(&gather->local[first], part);
            step(&gather->remote[first], part);
            bytes -= part;
            if (gather->local[first].iov_len == 0)
                first++;
        }
    }
    gather->count = 0;
    return 0;
}

static void *remote(uint64_t address) {
    return (void *)(uintptr_t)address;
}

/* process_vm_writev does not write here, but its iovec has no const. */
static void *local(const unsigned char *data) {
    return (void *)(uintptr_t)data;
}

static void gather_add(struct gather *gather, uint64_t address, const unsigned char *data,
                       size_t length) {
    gather->local[gather->count] = (struct iovec){local(data), length};
    gather->remote[gather->count] = (struct iovec){remote(address), length};
    gather->count++;
}

int task_write(pid_t pid, uint64_t address, const unsigned char *data, size_t length) {
    struct gather gather;

    gather.count = 0;
    gather_add(&gather, address, data, length);
    return write_all(pid, &gather);
}

static bool is_zero(const unsigned char *page) {
    return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

int task_write_sparse(pid_t pid, uint64_t address, const unsigned char *data, size_t length,
                      uint64_t *zero) {
    struct gather gather;
    size_t start = 0;

    gather.count = 0;
    for (size_t at = 0; at < length; at += PAGE) {
        int err;

        if (!is_zero(data + at))
            continue;
        if (at > start)
            gather_add(&gather, address + start, data + start, at - start);
        *zero += PAGE;
        start = at + PAGE;
        if (gather.count == RUNS && (err = write_all(pid, &gather)) < 0)
            return err;
    }
    if (length > start)
        gather_add(&gather, address + start, data + start, length - start);
    return gather.count > 0 ? write_all(pid, &gather) : 0;
}
