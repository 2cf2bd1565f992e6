/* Loop devices: a file as a block device, for snapshotters that hand out images. */
#define _GNU_SOURCE

#include "thaw.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { ATTEMPTS = 100 };

static int free_device(void) {
    int control, number;

    control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return -errno;
    number = ioctl(control, LOOP_CTL_GET_FREE);
    if (number < 0)
        number = -errno;
    close(control);
    return number;
}

/* LOOP_CONFIGURE is Linux 5.8's: descriptor and flags at once, so no half-made device is seen. */
static int configure(int device, int backing, const struct loop_info64 *info) {
    struct loop_config config;

    memset(&config, 0, sizeof(config));
    config.fd = (unsigned int)backing;
    config.info = *info;
    return ioctl(device, LOOP_CONFIGURE, &config) < 0 ? -errno : 0;
}

static void pause_before_retry(int attempt) {
    struct timespec wait = {0, 1000000L * (1 + attempt % 10)};

    nanosleep(&wait, NULL);
}

static int attach_to(const char *device, int mode, int backing, const struct loop_info64 *info) {
    int fd, err;

    fd = open(device, mode | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    err = configure(fd, backing, info);
    if (err < 0) {
        close(fd);
        return err;
    }
    return fd;
}

/* Another process may take the free device between the two calls (EBUSY): ask for the next. */
static int attach_to_free(int mode, int backing, const struct loop_info64 *info, char *name,
                          size_t size) {
    int result = -EBUSY;

    for (int attempt = 0; attempt < ATTEMPTS && result == -EBUSY; attempt++) {
        int number;

        if (attempt > 0)
            pause_before_retry(attempt);
        number = free_device();
        if (number < 0)
            return number;
        snprintf(name, size, "/dev/loop%d", number);
        result = attach_to(name, mode, backing, info);
    }
    return result;
}

int thaw_loop_attach(const char *file, int readonly, int direct, char *name, size_t size) {
    struct loop_info64 info;
    int mode = readonly ? O_RDONLY : O_RDWR;
    int backing, result;

    memset(&info, 0, sizeof(info));
    snprintf((char *)info.lo_file_name, sizeof(info.lo_file_name), "%s", file);
    info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (readonly)
        info.lo_flags |= LO_FLAGS_READ_ONLY;
    if (direct)
        info.lo_flags |= LO_FLAGS_DIRECT_IO;

    backing = open(file, mode | O_CLOEXEC);
    if (backing < 0)
        return -errno;
    result = attach_to_free(mode, backing, &info, name, size);
    close(backing);
    return result;
}

int thaw_loop_detach(const char *device) {
    int fd, err = 0;

    fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (ioctl(fd, LOOP_CLR_FD, 0) < 0)
        err = -errno;
    close(fd);
    return err;
}
