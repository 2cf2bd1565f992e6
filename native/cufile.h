/*
 * What of cuFile's interface is needed, after cufile.h of 1.14 (CUDA 12.9), with which it got
 * parameters that a program can set.
 */
#pragma once

#include "direct.h"

#include <stdbool.h>
#include <sys/types.h>

/* What most of its functions return. */
struct cufile_answer {
    int error;  /* CUfileOpError; 0: none */
    int driver; /* CUresult, if that was to blame */
};

/* CUfileDescr_t */
struct cufile_description {
    int type; /* CUFILE_DESCRIPTOR */
    union {
        int file;
        void *other;
    };
    const void *operations; /* NULL: the kernel's */
};

enum { CUFILE_DESCRIPTOR = 1 };

/* CUfileDrvProps_t */
struct cufile_properties {
    unsigned int major, minor; /* of nvidia-fs; 0: it is not there */
    size_t poll_threshold, most_direct;
    unsigned int status;  /* a bit for each kind of storage that it can read directly */
    unsigned int control; /* bit 1: it may read through memory instead */
    unsigned int features, device_cache, buffer_cache, pinned, batch, batch_time;
};

_Static_assert(sizeof(struct cufile_description) == 24 && sizeof(struct cufile_properties) == 56,
               "cuFile's structs");

/* One pointer per function. */
struct cufile_calls {
    struct cufile_answer (*open)(void);
    struct cufile_answer (*close)(void);
    struct cufile_answer (*properties)(struct cufile_properties *properties);
    struct cufile_answer (*set_flag)(int parameter, bool value);
    struct cufile_answer (*add)(void **handle, struct cufile_description *description);
    void (*drop)(void *handle);
    ssize_t (*read)(void *handle, void *base, size_t size, off_t offset, off_t place);
};

struct thaw_cufile {
    struct cufile_calls calls;
    bool compatible;
};
