/*
 * The memory of a task, written from outside by process_vm_writev.
 *
 * That takes a pid, and a pid can become another process's when its own has ended and was reaped.
 * So a pidfd is held for each task, and asked right before each write whether the task still is.
 * What remains: it would have to end, be reaped and have its pid given away between that question
 * and the kernel's look at the pid, which is its first step (pids come round in a circle, which
 * takes all of pid_max). Without pidfds (before Linux 5.3, or forbidden) nothing is asked.
 */
#define _GNU_SOURCE

#include "fill.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434 /* the same number everywhere */
#endif

enum { RUNS = 64 };
enum { UNKNOWN = -1, GONE = -2 }; /* instead of a pidfd */

static int task_open(struct task *task, pid_t pid) {
    long pidfd = syscall(SYS_pidfd_open, pid, 0); /* is close-on-exec */

    *task = (struct task){pid, (int)pidfd};
    if (pidfd >= 0)
        return 0;
    task->pidfd = errno == ESRCH ? GONE : UNKNOWN;
    return errno == ESRCH || errno == ENOSYS || errno == EPERM ? 0 : -errno;
}

struct task *tasks_open(const int *pids, size_t count, int *err) {
    struct task *tasks = calloc(count + 1, sizeof(*tasks));

    *err = tasks == NULL ? -ENOMEM : 0;
    for (size_t number = 0; number < count && *err == 0; number++) {
        *err = task_open(&tasks[number], pids[number]);
        if (*err < 0) {
            tasks_close(tasks, number);
            tasks = NULL;
        }
    }
    return tasks;
}

void tasks_close(struct task *tasks, size_t count) {
    for (size_t number = 0; number < count; number++)
        if (tasks[number].pidfd >= 0)
            close(tasks[number].pidfd);
    free(tasks);
}

/* A pidfd can be read from when its process has ended, reaped or not. */
static bool is_gone(const struct task *task) {
    struct pollfd pidfd = {task->pidfd, POLLIN, 0};

    return task->pidfd == GONE || (task->pidfd >= 0 && poll(&pidfd, 1, 0) > 0);
}

uint32_t tasks_find_gone(const struct task *tasks, uint32_t count) {
    uint32_t number = 0;

    while (number < count && !is_gone(&tasks[number]))
        number++;
    return number;
}

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
static int write_all(const struct task *task, struct gather *gather) {
    unsigned long first = 0;

    while (first < gather->count) {
        unsigned long count = gather->count - first;
        ssize_t now;

        if (is_gone(task))
            return -ESRCH;
        now = process_vm_writev(task->pid, gather->local + first, count, gather->remote + first,
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

int task_write(const struct task *task, uint64_t address, const unsigned char *data,
               size_t length) {
    struct gather gather;

    gather.count = 0;
    gather_add(&gather, address, data, length);
    return write_all(task, &gather);
}

static bool is_zero(const unsigned char *page) {
    return page[0] == 0 && memcmp(page, page + 1, PAGE - 1) == 0;
}

int task_write_sparse(const struct task *task, uint64_t address, const unsigned char *data,
                      size_t length, uint64_t *zero) {
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
        if (gather.count == RUNS && (err = write_all(task, &gather)) < 0)
            return err;
    }
    if (length > start)
        gather_add(&gather, address + start, data + start, length - start);
    return gather.count > 0 ? write_all(task, &gather) : 0;
}
