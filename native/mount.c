/* mount(2) and umount2(2), also from another working directory. */
#define _GNU_SOURCE

#include "thaw.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

struct request {
    const char *dir;
    const char *source;
    const char *target;
    const char *type;
    unsigned long flags;
    const char *data;
    int result;
};

static int mount_here(const struct request *r) {
    if (mount(r->source, r->target, r->type, r->flags, r->data) < 0)
        return -errno;
    return 0;
}

/*
 * Runs on a thread of its own. unshare(CLONE_FS) gives that thread, and only it, a working
 * directory that it may change; the kernel resolves relative overlay layers against it.
 */
static void *mount_there(void *arg) {
    struct request *r = arg;

    if (unshare(CLONE_FS) < 0 || chdir(r->dir) < 0)
        r->result = -errno;
    else
        r->result = mount_here(r);
    return NULL;
}

int thaw_mount(const char *dir, const char *source, const char *target, const char *type,
               unsigned long flags, const char *data) {
    struct request r = {dir, source, target, type, flags, data, 0};
    pthread_t thread;
    int err;

    if (dir == NULL)
        return mount_here(&r);
    err = pthread_create(&thread, NULL, mount_there, &r);
    if (err != 0)
        return -err;
    pthread_join(thread, NULL);
    return r.result;
}

int thaw_umount(const char *target, int flags) {
    if (umount2(target, flags) < 0)
        return -errno;
    return 0;
}
