/* inotify, which Python's standard library lacks. */
#include "thaw.h"

#include <errno.h>
#include <sys/inotify.h>

int thaw_inotify_init(void) {
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);

    return fd < 0 ? -errno : fd;
}

int thaw_inotify_add(int fd, const char *path, unsigned int mask) {
    int watch = inotify_add_watch(fd, path, mask);

    return watch < 0 ? -errno : watch;
}

int thaw_inotify_remove(int fd, int watch) {
    return inotify_rm_watch(fd, watch) < 0 ? -errno : 0;
}
