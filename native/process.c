/* What a process says about itself by prctl(2), and what it is asked for of another one. */
#include "thaw.h"

#include <errno.h>
#include <linux/prctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Older headers than 5.14's lack these; the numbers are the kernel's interface. */
#ifndef PR_SCHED_CORE
#define PR_SCHED_CORE 62
#define PR_SCHED_CORE_CREATE 1
#define PR_SCHED_CORE_SHARE_FROM 3
#endif

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438 /* on all machines */
#endif

enum { SCOPE_THREAD = 0, SCOPE_THREAD_GROUP = 1 };

/*
 * A cookie is pulled into one thread at a time: SHARE_FROM takes the scope of its *source*
 * and always writes to the calling thread. The shim calls it before it has other threads.
 */
static int sched_core(unsigned long command, int pid, unsigned long scope) {
    return prctl(PR_SCHED_CORE, command, (unsigned long)pid, scope, 0UL) < 0 ? -errno : 0;
}

int thaw_set_subreaper(int on) {
    return prctl(PR_SET_CHILD_SUBREAPER, on ? 1UL : 0UL, 0UL, 0UL, 0UL) < 0 ? -errno : 0;
}

int thaw_sched_core_create(int pid) {
    return sched_core(PR_SCHED_CORE_CREATE, pid, SCOPE_THREAD_GROUP);
}

int thaw_sched_core_join(int pid) {
    return sched_core(PR_SCHED_CORE_SHARE_FROM, pid, SCOPE_THREAD);
}

int thaw_pidfd_getfd(int pidfd, int fd) {
    long copy = syscall(SYS_pidfd_getfd, pidfd, fd, 0U);
    return copy < 0 ? -errno : (int)copy;
}
