/*
 * thaw-gpu-keeper: has descriptors of GPU memory as well, while a worker has let go of it.
 *
 * The engine that moves a worker's GPU memory has the only descriptors of it meanwhile: were it
 * killed then, the memory would be gone. So it starts this program before, and tells it everything
 * by messages, which mean nothing here and are handed on as they came.
 *
 *     thaw-gpu-keeper MILLISECONDS WATCHED
 *
 *     descriptor 3    a SOCK_SEQPACKET socket with the engine at its other end
 *     4               one that listens, in the container's folder
 *     5 …             WATCHED pidfds: without any of these nobody will ever come
 *
 * A message begins with a letter:
 *
 *     k…              (and descriptors) keep this
 *     ?               answered by `?` and the number of descriptors that it has
 *     d               done: it exits
 *     .               its own: what was kept has been sent, all of it
 *
 * When the engine's end closes and it has not said `d`, whoever connects to 4 gets everything that
 * was kept, and is then listened to in its place. Connections wait: there is no moment at which
 * nobody answers. It all ends with one of those that are watched, or MILLISECONDS after the engine.
 */
#define _GNU_SOURCE

#include "fail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ENGINE = 3, LISTENER, FIRST_WATCHED };
enum { LONGEST = 8192, MOST_FDS = 64 }; /* of a message; as in shim/gpu/memory/keeper.py */
enum { MOST_WATCHED = 8 };
enum { KEEP = 'k', COUNT = '?', DONE = 'd', ALL = '.' };

struct message {
    struct message *next;
    size_t length, count;
    int fds[MOST_FDS];
    char bytes[LONGEST];
};

/* Aligned as the kernel wants it. */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int) * MOST_FDS)];
};

const char program_name[] = "thaw-gpu-keeper";

static struct message *first, **last = &first;
static size_t descriptors;
static int watched;
static int64_t deadline = -1; /* milliseconds of the monotonic clock; -1: none yet */

static int64_t now(void) {
    struct timespec clock;

    clock_gettime(CLOCK_MONOTONIC, &clock);
    return (int64_t)clock.tv_sec * 1000 + clock.tv_nsec / 1000000;
}

/* Milliseconds, as poll(2) wants them. */
static int left(void) {
    int64_t more = deadline - now();

    if (deadline < 0)
        return -1;
    return more < 0 ? 0 : more > INT_MAX ? INT_MAX : (int)more;
}

/* Wait until `fd` is ready. Ends the program if there is nobody to wait for any more. */
static void await(int fd, short events) {
    struct pollfd polled[1 + MOST_WATCHED] = {{.fd = fd, .events = events}};
    nfds_t count = 1 + (nfds_t)watched;
    int found;

    for (nfds_t i = 1; i < count; i++)
        polled[i] = (struct pollfd){.fd = FIRST_WATCHED + (int)i - 1, .events = POLLIN};
    while ((found = poll(polled, count, left())) < 0)
        if (errno != EINTR)
            fail("poll: %s", strerror(errno));
    if (found == 0)
        exit(0);
    for (nfds_t i = 1; i < count; i++)
        if (polled[i].revents != 0)
            exit(0);
}

static void take_descriptors(struct msghdr *header, struct message *message) {
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL;
         part = CMSG_NXTHDR(header, part)) {
        size_t size = part->cmsg_len - CMSG_LEN(0);

        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        memcpy(message->fds, CMSG_DATA(part), size);
        message->count = size / sizeof(int);
    }
    if (header->msg_flags & (MSG_TRUNC | MSG_CTRUNC))
        fail("a message is too long, or has too many descriptors");
}

/* The next message; false: the other end is closed. */
static bool receive(int fd, struct message *message) {
    union control control;
    struct iovec bytes = {.iov_base = message->bytes, .iov_len = sizeof(message->bytes)};
    ssize_t length;

    message->count = 0;
    do {
        struct msghdr header = {.msg_iov = &bytes,
                                .msg_iovlen = 1,
                                .msg_control = control.bytes,
                                .msg_controllen = sizeof(control.bytes)};

        await(fd, POLLIN);
        length = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (length >= 0)
            take_descriptors(&header, message);
        /* A reset says that it has not read all of ours: what it has sent before comes now. */
    } while (length < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNRESET));
    message->length = length < 0 ? 0 : (size_t)length;
    return length > 0;
}

/* Whether it went out. If not, the other end is closed; whoever listens to it will notice. */
static bool send_to(int fd, const struct message *message) {
    union control control = {.bytes = {0}};
    struct iovec bytes = {.iov_base = (void *)(uintptr_t)message->bytes,
                          .iov_len = message->length};
    struct msghdr header = {.msg_iov = &bytes, .msg_iovlen = 1};

    if (message->count > 0) {
        size_t size = sizeof(int) * message->count;

        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(&control.header), message->fds, size);
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(size);
    }
    do {
        await(fd, POLLOUT);
        if (sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
            return true;
    } while (errno == EAGAIN || errno == EINTR);
    return false;
}

static void keep(struct message *message) {
    *last = message;
    last = &message->next;
    descriptors += message->count;
}

static struct message *blank(void) {
    struct message *message = calloc(1, sizeof(*message));

    if (message == NULL)
        fail("out of memory");
    return message;
}

static void answer(int fd) {
    struct message *said = blank();

    said->length = (size_t)snprintf(said->bytes, sizeof(said->bytes), "%c%zu", COUNT, descriptors);
    send_to(fd, said);
    free(said);
}

/* Do what is asked for there until it closes. Ends the program once all is done. */
static void serve(int fd) {
    struct message *message = blank();

    while (receive(fd, message)) {
        switch (message->bytes[0]) {
        case KEEP:
            keep(message);
            message = blank();
            break;
        case COUNT:
            answer(fd);
            break;
        case DONE:
            exit(0);
        default:
            fail("a message of an unknown kind");
        }
    }
    free(message);
}

static void hand_over(int fd) {
    struct message *end = blank();
    bool sent = true;

    for (struct message *message = first; message != NULL && sent; message = message->next)
        sent = send_to(fd, message);
    end->length = 1;
    end->bytes[0] = ALL;
    if (sent)
        send_to(fd, end);
    free(end);
}

static bool is_ours(int fd) {
    struct ucred peer;
    socklen_t size = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

static int next_one(void) {
    for (;;) {
        int fd;

        await(LISTENER, POLLIN);
        fd = accept4(LISTENER, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0 && is_ours(fd))
            return fd;
        if (fd >= 0)
            close(fd);
        else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
            fail("accept: %s", strerror(errno));
    }
}

static long number(const char *word, long most) {
    char *end;
    long value = strtol(word, &end, 10);

    if (*word == '\0' || *end != '\0' || value < 0 || value > most)
        fail("%s is no number from 0 to %ld", word, most);
    return value;
}

int main(int argc, char **argv) {
    long milliseconds;

    if (argc != 3)
        fail("usage: thaw-gpu-keeper MILLISECONDS WATCHED (only the engine runs this program)");
    milliseconds = number(argv[1], INT_MAX);
    watched = (int)number(argv[2], MOST_WATCHED);
    if (fcntl(LISTENER, F_SETFL, O_NONBLOCK) < 0)
        fail("descriptor %d: %s", LISTENER, strerror(errno));
    serve(ENGINE);
    close(ENGINE);
    deadline = now() + milliseconds;
    while (first != NULL) {
        int fd = next_one();

        hand_over(fd);
        serve(fd);
        close(fd);
    }
    return 0;
}
