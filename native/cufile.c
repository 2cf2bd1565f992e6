/*
 * cuFile, NVIDIA's way from files to GPUs: loaded when it is wanted, as libcuda is.
 *
 * It writes a log into the working directory unless CUFILE_LOGFILE_PATH says otherwise, whatever
 * its parameters say (1.14): that is for whoever starts this process to set.
 */
#define _GNU_SOURCE

#include "cufile.h"

#include "driver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALL(field, name) {name, offsetof(struct cufile_calls, field), false}

static const struct cuda_symbol symbols[] = {
    CALL(open, "cuFileDriverOpen"),
    CALL(close, "cuFileDriverClose_v2"),
    CALL(properties, "cuFileDriverGetProperties"),
    CALL(set_flag, "cuFileSetParameterBool"),
    CALL(add, "cuFileHandleRegister"),
    CALL(drop, "cuFileHandleDeregister"),
    CALL(read, "cuFileRead"),
};

/* CUFileBoolConfigParameter_t, and the bit of it in what GetProperties answers. */
enum { MAY_BE_COMPATIBLE = 1, MUST_BE_COMPATIBLE = 2 };
#define MAY_BE_COMPATIBLE_BIT (1U << 1)

static int said(const char **call, const char *name, struct cufile_answer answer) {
    if (answer.error != 0)
        *call = name;
    return answer.error;
}

/* What is set here goes before the environment and cufile.json. */
static int tell(const struct thaw_cufile *cufile, const char **call) {
    const struct cufile_calls *calls = &cufile->calls;
    int err = said(call, "cuFileSetParameterBool",
                   calls->set_flag(MAY_BE_COMPATIBLE, cufile->compatible));

    if (err == 0 && !cufile->compatible)
        err = said(call, "cuFileSetParameterBool", calls->set_flag(MUST_BE_COMPATIBLE, false));
    return err;
}

/* Why no file at all is read directly; NULL if some may be. */
static const char *obstacle(const struct cufile_properties *properties) {
    if (properties->major == 0 && properties->minor == 0)
        return "there is no nvidia-fs";
    if ((properties->control & MAY_BE_COMPATIBLE_BIT) != 0)
        return "it keeps to its compatibility mode";
    if (properties->status == 0)
        return "nvidia-fs knows none of this machine's storage";
    return NULL;
}

/* Nothing is open after a failure. */
static int begin(const struct thaw_cufile *cufile, const char **call, char *why, size_t size) {
    const struct cufile_calls *calls = &cufile->calls;
    struct cufile_properties properties;
    const char *reason = NULL;
    int err = tell(cufile, call);

    if (err == 0)
        err = said(call, "cuFileDriverOpen", calls->open());
    if (err != 0 || cufile->compatible)
        return err;
    memset(&properties, 0, sizeof(properties));
    err = said(call, "cuFileDriverGetProperties", calls->properties(&properties));
    if (err == 0)
        reason = obstacle(&properties);
    if (reason != NULL)
        snprintf(why, size, "%s", reason);
    if (err != 0 || reason != NULL)
        calls->close();
    return reason != NULL ? -ENOTSUP : err;
}

/* Its threads, and the driver's, get no signals for good. */
int thaw_cufile_open(const char *library, int compatible, struct thaw_cufile **opened,
                     const char **call, char *why, size_t size) {
    struct thaw_cufile *cufile = calloc(1, sizeof(*cufile));
    sigset_t before;
    int err;

    *opened = NULL;
    *call = NULL;
    if (cufile == NULL)
        return -ENOMEM;
    cufile->compatible = compatible != 0;
    cuda_hold_signals(&before);
    err = cuda_load(library, symbols, sizeof(symbols) / sizeof(symbols[0]), &cufile->calls, why,
                    size);
    if (err == 0)
        err = begin(cufile, call, why, size);
    cuda_release_signals(&before, 0);
    if (err != 0)
        free(cufile);
    else
        *opened = cufile;
    return err;
}

void thaw_cufile_close(struct thaw_cufile *cufile) {
    if (cufile == NULL)
        return;
    cufile->calls.close();
    free(cufile);
}
