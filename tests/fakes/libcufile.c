/*
 * A cuFile without GPUDirect: it reads files to where the fake libcuda's memory lies, which is here.
 * Its world is that one's, too: answers/, holds/ and delays/ of its functions, and in the folder
 *
 *     nvidia-fs   the kernel has that driver: without it, only the compatibility mode will do
 *     kinds       how many kinds of storage that driver knows (1)
 *     insists     it stays in its compatibility mode, whatever it is told
 *     shorter     a read ends after so many bytes
 *     flipped     a bit of what is read comes wrong
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { DRIVER_NOT_INITIALIZED = 5001, IO_NOT_SUPPORTED = 5008, DIO_NOT_SET = 5020,
       INVALID = 5022, DRIVER_ALREADY_OPEN = 5026, HANDLE_NOT_REGISTERED = 5027 };
enum { MAY_BE_COMPATIBLE = 1, MUST_BE_COMPATIBLE = 2 };

struct said {
    int error, driver;
};

struct description {
    int type;
    union {
        int file;
        void *other;
    } handle;
    const void *operations;
};

struct abilities {
    unsigned major, minor;
    size_t poll_threshold, most_direct;
    unsigned status, control, features, others[5];
};

struct file {
    int file;
};

static atomic_bool is_open;
static bool compatible = true; /* unless the program says otherwise */

static struct said say(int error) {
    return (struct said){error, 0};
}

/* Whether the call is to do its work: notes that it was made, waits as told. */
static bool has_work(const char *call, int *error) {
    const struct timespec step = {0, 2000000};
    int fd = world(O_WRONLY | O_APPEND, "calls");

    if (fd >= 0)
        dprintf(fd, "%s %d\n", call, getpid());
    if (fd >= 0)
        close(fd);
    while ((fd = world(O_RDONLY, "holds/%s", call)) >= 0) {
        close(fd);
        nanosleep(&step, NULL);
    }
    *error = 0;
    return !answer(call, 0, error) || *error < 0;
}

static size_t number(const char *name, size_t otherwise) {
    char text[64];

    return content(world(O_RDONLY, "%s", name), text, sizeof(text)) ? (size_t)atol(text)
                                                                     : otherwise;
}

EXPORT struct said cuFileSetParameterBool(int parameter, bool value);
EXPORT struct said cuFileSetParameterBool(int parameter, bool value) {
    int error;

    if (!has_work(__func__, &error))
        return say(error);
    if (is_open)
        return say(DRIVER_ALREADY_OPEN);
    if (parameter == MAY_BE_COMPATIBLE)
        compatible = value || is_so("insists");
    return say(parameter == MAY_BE_COMPATIBLE || parameter == MUST_BE_COMPATIBLE ? 0 : INVALID);
}

EXPORT struct said cuFileDriverOpen(void);
EXPORT struct said cuFileDriverOpen(void) {
    int error;

    if (!has_work(__func__, &error))
        return say(error);
    if (!compatible && !is_so("nvidia-fs"))
        return say(DRIVER_NOT_INITIALIZED);
    is_open = true;
    return say(0);
}

EXPORT struct said cuFileDriverClose_v2(void);
EXPORT struct said cuFileDriverClose_v2(void) {
    int error;

    if (!has_work(__func__, &error))
        return say(error);
    compatible = true;
    is_open = false;
    return say(0);
}

EXPORT struct said cuFileDriverGetProperties(struct abilities *properties);
EXPORT struct said cuFileDriverGetProperties(struct abilities *properties) {
    int error;

    if (!has_work(__func__, &error))
        return say(error);
    memset(properties, 0, sizeof(*properties));
    if (is_so("nvidia-fs")) {
        properties->major = 2;
        properties->minor = 26;
        properties->status = (1U << number("kinds", 1)) - 1;
    }
    properties->control = compatible ? 1U << MAY_BE_COMPATIBLE : 0;
    return say(0);
}

EXPORT struct said cuFileHandleRegister(struct file **handle, const struct description *told);
EXPORT struct said cuFileHandleRegister(struct file **handle, const struct description *told) {
    int error, flags = fcntl(told->handle.file, F_GETFL);

    if (!has_work(__func__, &error))
        return say(error);
    if (!is_open)
        return say(DRIVER_NOT_INITIALIZED);
    if (told->type != 1 || flags < 0)
        return say(INVALID);
    if (!compatible && (flags & O_DIRECT) == 0)
        return say(DIO_NOT_SET);
    *handle = malloc(sizeof(**handle));
    (*handle)->file = told->handle.file;
    return say(0);
}

EXPORT void cuFileHandleDeregister(struct file *handle);
EXPORT void cuFileHandleDeregister(struct file *handle) {
    int error;

    has_work(__func__, &error);
    free(handle);
}

EXPORT ssize_t cuFileRead(const struct file *handle, char *base, size_t size, off_t offset,
                          off_t place);
EXPORT ssize_t cuFileRead(const struct file *handle, char *base, size_t size, off_t offset,
                          off_t place) {
    size_t most = number("shorter", size);
    ssize_t got;
    int error;

    if (!has_work(__func__, &error)) {
        errno = error;
        return error > 5000 ? -error : error == 0 ? 0 : -1;
    }
    if (handle == NULL)
        return -HANDLE_NOT_REGISTERED;
    got = pread(handle->file, base + place, size < most ? size : most, offset);
    if (got > 0 && is_so("flipped"))
        base[place + got / 2] ^= 8;
    return got;
}

EXPORT int fakeIsOpen(void);
EXPORT int fakeIsOpen(void) {
    return is_open;
}
