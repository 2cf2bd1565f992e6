/* Reading another process's memory: in one call if possible, else through /proc/PID/mem. */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

/* Forgets the first `done` bytes; returns how many pieces are used up by that. */
static size_t use(struct iovec *pieces, size_t count, size_t done) {
    size_t used = 0;

    while (used < count && done >= pieces[used].iov_len) {
        done -= pieces[used++].iov_len;
    }
    if (used < count) {
        pieces[used].iov_base = (char *)pieces[used].iov_base + done;
        pieces[used].iov_len -= done;
    }
    return used;
}

static size_t total(const struct iovec *pieces, size_t count) {
    size_t sum = 0;

    for (size_t i = 0; i < count; i++) {
        sum += pieces[i].iov_len;
    }
    return sum;
}

/*
 * process_vm_readv honours the protection of each area: one that is PROT_NONE now can have pages
 * from before. A debugger's door (FOLL_FORCE) does not, if the node's policy lets it.
 */
static int read_by_force(int pid, char *buffer, const struct iovec *piece) {
    char path[32];
    int fd;
    int result = 0;

    snprintf(path, sizeof(path), "/proc/%d/mem", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    for (size_t done = 0; done < piece->iov_len;) {
        ssize_t got = pread(fd, buffer + done, piece->iov_len - done,
                            (off_t)((uintptr_t)piece->iov_base + done));

        if (got > 0) {
            done += (size_t)got;
        } else if (got == 0) {
            result = -ESRCH; /* the process has no memory any longer */
            break;
        } else if (errno != EINTR) {
            result = -errno;
            break;
        }
    }
    close(fd);
    return result;
}

int thaw_memory_read(int pid, char *buffer, struct iovec *pieces, size_t count, size_t *place) {
    for (size_t at = 0; at < count;) {
        struct iovec local = {buffer, total(pieces + at, count - at)};
        ssize_t got = process_vm_readv(pid, &local, 1, pieces + at, count - at, 0);

        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 0 && errno != EFAULT) { /* no process, no right: the other door is shut too */
            *place = at;
            return -errno;
        }
        if (got <= 0) { /* not the first page of what is wanted: partial reads are reported */
            int result = read_by_force(pid, buffer, pieces + at);

            if (result < 0) {
                *place = at;
                return result;
            }
            got = (ssize_t)pieces[at].iov_len;
        }
        buffer += got;
        at += use(pieces + at, count - at, (size_t)got);
    }
    return 0;
}
