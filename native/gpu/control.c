/* See control.h. */
#define _GNU_SOURCE
#include "control.h"

#include "entries.h"
#include "gate.h"
#include "lock.h"
#include "moving.h"
#include "objects.h"
#include "requests.h"
#include "system.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define PAGE 4096

enum { NOTHING, READY, FAILED };

static atomic_int stage;
static struct lock making;
static struct thaw_gpu_marker *marker;
static int ours, engines;
static struct stat socket_of_ours;

union ancillary {
    char bytes[CMSG_SPACE(THAW_GPU_RECORDS * sizeof(int))];
    struct cmsghdr aligned;
};

/* From now on, memory is left to the driver; what has been taken over stays so. */
static void give_up(const char *why) {
    atomic_store(&stage, FAILED);
    system_say(why);
}

static void close_descriptor(int fd) {
    SYSTEM_CALL(SYS_close, fd, 0, 0, 0, 0, 0);
}

static void close_all(struct message *message) {
    for (size_t n = 0; n < message->count; n++)
        close_descriptor(message->descriptors[n]);
    message->count = 0;
}

/*
 * All signals are held back in the thread, but for those of the thread itself, which would end the
 * process without a word, and the C library's own (with them, setuid(2) of one thread becomes one
 * of all). The GNU one leaves the last of these to programs.
 */
static uint64_t held_back(void) {
    static const int let[] = {SIGSEGV, SIGBUS,  SIGFPE, SIGILL, SIGTRAP,
                              SIGABRT, SIGSYS, 32,     33,     34};
    size_t count = sizeof(let) / sizeof(let[0]);
    uint64_t held = UINT64_MAX;

    if (object_function("", "gnu_get_libc_version") != NULL)
        count--;
    for (size_t n = 0; n < count; n++)
        held &= ~(UINT64_C(1) << (let[n] - 1));
    return held;
}

bool start_thread(void *(*run)(void *), void *data, unsigned long *thread) {
    int (*create)(unsigned long *, const void *, void *(*)(void *), void *);
    uint64_t held = held_back(), before;
    int err;

    create = (__typeof__(create))object_function("", "pthread_create");
    if (create == NULL)
        return false;
    SYSTEM_CALL(SYS_rt_sigprocmask, SIG_BLOCK, &held, &before, sizeof(held), 0, 0);
    err = create(thread, NULL, run, data);
    SYSTEM_CALL(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof(before), 0, 0);
    return err == 0;
}

void join_thread(unsigned long thread) {
    int (*join)(unsigned long, void **) =
        (__typeof__(join))object_function("", "pthread_join");

    if (join != NULL)
        join(thread, NULL);
}

/* Into message; its size, or a negative error. Too many descriptors leave it as too long. */
static long receive(struct message *message) {
    union ancillary ancillary;
    struct iovec parts[] = {{&message->header, sizeof(message->header)},
                            {&message->body, sizeof(message->body)}};
    struct msghdr all = {.msg_iov = parts,
                         .msg_iovlen = 2,
                         .msg_control = &ancillary,
                         .msg_controllen = sizeof(ancillary)};
    long got;

    __builtin_memset(message, 0, sizeof(*message));
    got = SYSTEM_CALL(SYS_recvmsg, ours, &all, MSG_CMSG_CLOEXEC, 0, 0, 0);
    if (got < 0)
        return got;
    if (all.msg_controllen >= sizeof(struct cmsghdr) &&
        ancillary.aligned.cmsg_level == SOL_SOCKET && ancillary.aligned.cmsg_type == SCM_RIGHTS) {
        message->count = (ancillary.aligned.cmsg_len - CMSG_LEN(0)) / sizeof(int);
        __builtin_memcpy(message->descriptors, ancillary.bytes + CMSG_LEN(0),
                         message->count * sizeof(int));
    }
    message->size = (size_t)got - sizeof(message->header);
    if ((size_t)got < sizeof(message->header) || (all.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0)
        message->size = SIZE_MAX; /* of no request */
    return got;
}

/* Nobody may be there to read it: then it is dropped. */
static long reply(const struct message *message) {
    union ancillary ancillary;
    struct iovec parts[] = {{(void *)(uintptr_t)&message->header, sizeof(message->header)},
                            {(void *)(uintptr_t)&message->body, message->size}};
    struct msghdr all = {.msg_iov = parts, .msg_iovlen = 2};

    if (message->count > 0) {
        size_t size = message->count * sizeof(int);

        __builtin_memset(&ancillary, 0, sizeof(ancillary));
        ancillary.aligned.cmsg_level = SOL_SOCKET;
        ancillary.aligned.cmsg_type = SCM_RIGHTS;
        ancillary.aligned.cmsg_len = CMSG_LEN(size);
        __builtin_memcpy(ancillary.bytes + CMSG_LEN(0), message->descriptors, size);
        all.msg_control = &ancillary;
        all.msg_controllen = CMSG_SPACE(size);
    }
    return SYSTEM_CALL(SYS_sendmsg, ours, &all, MSG_NOSIGNAL | MSG_DONTWAIT, 0, 0, 0);
}

static bool is_of_its_kind(int fd) {
    int domain = 0, type = 0;
    unsigned size = sizeof(int);

    return SYSTEM_CALL(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &size, 0) == 0 &&
           SYSTEM_CALL(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &size, 0) == 0 &&
           domain == AF_UNIX && type == SOCK_SEQPACKET;
}

/*
 * A program that closes all it does not know may have something else at this number by now. But
 * after a restore both sockets are others, which CRIU has made in their place.
 */
static bool still_ours(void) {
    struct stat now;

    if (SYSTEM_CALL(SYS_fstat, ours, &now, 0, 0, 0, 0) != 0)
        return false;
    if (now.st_ino == socket_of_ours.st_ino && now.st_dev == socket_of_ours.st_dev)
        return true;
    if (!is_of_its_kind(ours) || !is_of_its_kind(engines))
        return false;
    socket_of_ours = now;
    return true;
}

static void respond(struct message *message) {
    struct message request = *message;

    answer(message);
    close_all(&request);
    if (message->header.status != THAW_GPU_OK)
        close_all(message);
    marker->state = message->header.state;
    if (reply(message) >= 0) {
        was_sent(message);
    } else if (message->count > 0) {
        close_all(message);
        message->header.status = THAW_GPU_WRONG;
        message->header.count = 0;
        message->size = 0;
        text_copy(message->header.text, sizeof(message->header.text),
                  "the descriptors cannot be sent");
        reply(message);
    }
    close_all(message);
}

/* A message of no bytes looks like the end, which comes only with the engine's end of the pair. */
static bool hung_up(void) {
    struct pollfd asked = {ours, 0, 0};
    struct timespec at_once = {0, 0};

    SYSTEM_CALL(SYS_ppoll, &asked, 1, &at_once, NULL, 0, 0);
    return (asked.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

/*
 * Without the marker, the driver is asked for all of the process's memory. It cannot restore what
 * came from outside: then the marker stays, with nobody to answer, and no snapshot is made.
 */
static void stop_listening(void) {
    marker->magic = 0;
    if (!any_given())
        SYSTEM_CALL(SYS_munmap, marker, PAGE, 0, 0, 0, 0);
}

static void *serve(void *data) {
    static struct message message; /* of this thread only; too large for a small stack */
    long got = 0;

    (void)data;
    while (still_ours()) {
        got = receive(&message);
        if (got == -EINTR || got == -EAGAIN)
            continue;
        if (got < 0 || (got == 0 && hung_up()))
            break;
        respond(&message);
    }
    if (marker->state == THAW_GPU_HELD)
        gate_open();
    atomic_store(&stage, FAILED); /* first: nothing is taken over once nobody speaks for it */
    stop_listening();
    system_say("the program has closed the GPU memory library's sockets: "
               "its memory is left to the driver from now on");
    return NULL;
}

static bool make_marker(void) {
    long fd = SYSTEM_CALL(SYS_memfd_create, THAW_GPU_MARKER, MFD_CLOEXEC, 0, 0, 0, 0), at;

    if (fd == -EACCES) /* vm.memfd_noexec = 2 */
        fd = SYSTEM_CALL(SYS_memfd_create, THAW_GPU_MARKER, MFD_CLOEXEC | 8, 0, 0, 0, 0);
    if (fd < 0)
        return false;
    at = -1;
    if (SYSTEM_CALL(SYS_ftruncate, fd, PAGE, 0, 0, 0, 0) == 0)
        at = SYSTEM_CALL(SYS_mmap, 0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close_descriptor((int)fd);
    if (at < 0 && at > -4096)
        return false;
    marker = (struct thaw_gpu_marker *)at;
    SYSTEM_CALL(SYS_madvise, marker, PAGE, MADV_DONTFORK, 0, 0, 0);
    return true;
}

static bool make(void) {
    unsigned long thread;
    int pair[2];

    if (!make_marker())
        return false;
    if (SYSTEM_CALL(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair, 0, 0) < 0) {
        SYSTEM_CALL(SYS_munmap, marker, PAGE, 0, 0, 0, 0);
        return false;
    }
    ours = pair[0];
    engines = pair[1];
    SYSTEM_CALL(SYS_fstat, ours, &socket_of_ours, 0, 0, 0, 0);
    *marker = (struct thaw_gpu_marker){.version = THAW_GPU_VERSION,
                                       .pid = (uint32_t)system_process(),
                                       .engine = engines,
                                       .state = THAW_GPU_RUNNING};
    if (!start_thread(serve, NULL, &thread)) {
        close_descriptor(ours);
        close_descriptor(engines);
        SYSTEM_CALL(SYS_munmap, marker, PAGE, 0, 0, 0, 0);
        return false;
    }
    /* Last: whoever finds it, finds all of it. */
    __atomic_store_n(&marker->magic, THAW_GPU_MAGIC, __ATOMIC_RELEASE);
    return true;
}

bool control_ready(void) {
    if (atomic_load(&stage) == NOTHING) {
        lock_write(&making);
        if (atomic_load(&stage) == NOTHING) {
            if (make())
                atomic_store(&stage, READY);
            else
                give_up("no thread or socket for the GPU memory library: "
                        "device memory is left to the driver");
        }
        unlock_write(&making);
    }
    return atomic_load(&stage) == READY && same_process();
}
