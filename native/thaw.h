/*
 * Everything that shim._native offers, declared once.
 *
 * C includes this header and cffi reads it (native/bind.py drops the preprocessor lines), so
 * only plain declarations stand here: no macros, no inline code, no conditionals.
 *
 * Every function returns zero or a value >= 0 on success and -errno on failure; none of them
 * touches Python. cffi releases the interpreter lock around each call.
 */
#pragma once

#include <stddef.h>

/* mount.c ------------------------------------------------------------------------------------ */

/*
 * mount(2). With `dir` set, relative paths in `data` are taken from there while the process keeps
 * its own working directory: `source` and `target` should then be absolute.
 */
int thaw_mount(const char *dir, const char *source, const char *target, const char *type,
               unsigned long flags, const char *data);

/* umount2(2). */
int thaw_umount(const char *target, int flags);

/* loop.c ------------------------------------------------------------------------------------- */

/*
 * Attaches `file` to a free loop device that the kernel clears by itself after its last user.
 * Returns a descriptor of the device, to be kept open until it is mounted, and its path in `name`.
 */
int thaw_loop_attach(const char *file, int readonly, int direct, char *name, size_t size);

/* Detaches `device`, for one that was never mounted or is held by somebody else. */
int thaw_loop_detach(const char *device);

/* notify.c ----------------------------------------------------------------------------------- */

/* A new inotify descriptor, close-on-exec and non-blocking. */
int thaw_inotify_init(void);

/* Watches `path` for `mask`; returns the watch. */
int thaw_inotify_add(int fd, const char *path, unsigned int mask);

/* Ends a watch. */
int thaw_inotify_remove(int fd, int watch);

/* process.c ---------------------------------------------------------------------------------- */

/* Orphaned descendants become children of this process (on) or of init again (off). */
int thaw_set_subreaper(int on);

/* A new core scheduling cookie for the process `pid` (0: this one), all its threads. */
int thaw_sched_core_create(int pid);

/* The calling thread, and what it starts, takes the core scheduling cookie of `pid`. */
int thaw_sched_core_join(int pid);
