/*
 * containerd-shim-thaw-v1: what containerd executes.
 *
 * It finds the environment that it is installed in and becomes that environment's Python with
 * shim/__main__.py. Neither a console script nor `#!` would do: the first pays 15 ms for `site`,
 * the second cannot know the prefix. The start-up path `-IS` skips `site`, so __main__.py puts the
 * folder it lies under on sys.path itself.
 *
 * Only what needs no Python is answered here: `delete` of a container that is gone (finished.h).
 */
#define _GNU_SOURCE

#include "fail.h"
#include "finished.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INTERPRETER "bin/python3"
#define PROGRAM THAW_SITE_PACKAGES "/shim/__main__.py"

const char program_name[] = "containerd-shim-thaw-v1";

/* The folder above the one this program lies in, links in its path resolved by the kernel. */
static void find_prefix(char *prefix, size_t size) {
    ssize_t length = readlink("/proc/self/exe", prefix, size - 1);

    if (length < 0)
        fail("cannot read /proc/self/exe: %s (is /proc mounted?)", strerror(errno));
    prefix[length] = '\0';
    for (int level = 0; level < 2; level++) {
        char *slash = strrchr(prefix, '/');

        if (slash == NULL)
            fail("no prefix above %s", prefix);
        *slash = '\0';
    }
}

static char *below(const char *prefix, const char *path) {
    char *joined;

    if (asprintf(&joined, "%s/%s", prefix, path) < 0)
        fail("out of memory");
    return joined;
}

static void become_python(const char *prefix, int argc, char **argv) {
    char *interpreter = below(prefix, INTERPRETER);
    char *program = below(prefix, PROGRAM);
    char options[] = "-IS";
    char **args = calloc((size_t)argc + 3, sizeof(*args));

    if (args == NULL)
        fail("out of memory");
    if (access(program, R_OK) < 0)
        fail("cannot read %s: %s (was thaw installed into %s for another Python?)", program,
             strerror(errno), prefix);
    args[0] = interpreter;
    args[1] = options;
    args[2] = program;
    for (int i = 1; i < argc; i++)
        args[i + 2] = argv[i];
    execv(interpreter, args);
    fail("cannot run %s: %s (is %s still a Python environment?)", interpreter, strerror(errno),
         prefix);
}

int main(int argc, char **argv) {
    char prefix[PATH_MAX];

    if (answer_finished_delete(argc, argv))
        return 0;
    find_prefix(prefix, sizeof(prefix));
    become_python(prefix, argc, argv);
    return 1;
}
