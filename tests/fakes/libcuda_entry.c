/*
 * cuGetProcAddress. Compiled with ENTRIES, which tests/fakes/cuda.py makes of all that the other
 * files have: X(cuInit) X(cuMemAlloc_v2) and so on, but for what the library shall lack.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <string.h>

/* Where each begins, under a name that does not claim to know how it is called. */
#define X(name) extern const char place_##name[] __asm__(#name);
ENTRIES
#undef X

static const struct entry {
    const char *name;
    const void *function;
} entries[] = {
#define X(name) {#name, place_##name},
    ENTRIES
#undef X
};

/* With which CUDA version a function came; what is not here: 2000, and a second version 3020. */
static const struct {
    const char *name;
    int version;
} since[] = {
    {"cuCheckpointProcessCheckpoint", 12080},
    {"cuCheckpointProcessGetRestoreThreadId", 12080},
    {"cuCheckpointProcessGetState", 12080},
    {"cuCheckpointProcessLock", 12080},
    {"cuCheckpointProcessRestore", 12080},
    {"cuCheckpointProcessUnlock", 12080},
    {"cuCtxCreate_v3", 11040},
    {"cuCtxCreate_v4", 12050},
    {"cuCtxDestroy_v2", 4000},
    {"cuCtxDisablePeerAccess", 4000},
    {"cuCtxEnablePeerAccess", 4000},
    {"cuCtxGetCurrent", 4000},
    {"cuCtxGetFlags", 7000},
    {"cuCtxPopCurrent_v2", 4000},
    {"cuCtxPushCurrent_v2", 4000},
    {"cuCtxSetCurrent", 4000},
    {"cuCtxSetFlags", 12010},
    {"cuDeviceGetUuid", 9020},
    {"cuDeviceGetUuid_v2", 11040},
    {"cuDevicePrimaryCtxGetState", 7000},
    {"cuDevicePrimaryCtxRelease", 7000},
    {"cuDevicePrimaryCtxRelease_v2", 11000},
    {"cuDevicePrimaryCtxRetain", 7000},
    {"cuEventDestroy_v2", 4000},
    {"cuGetProcAddress", 11030},
    {"cuGetProcAddress_v2", 12000},
    {"cuGraphAddMemsetNode", 10000},
    {"cuGraphCreate", 10000},
    {"cuGraphExecMemsetNodeSetParams", 10020},
    {"cuGraphInstantiateWithFlags", 11040},
    {"cuGraphInstantiate_v2", 11000},
    {"cuGraphLaunch", 10000},
    {"cuIpcCloseMemHandle", 4010},
    {"cuIpcGetMemHandle", 4010},
    {"cuIpcOpenMemHandle_v2", 11000},
    {"cuLaunchKernel", 4000},
    {"cuLaunchKernel_v2", 99000},
    {"cuMemAddressFree", 10020},
    {"cuMemAddressReserve", 10020},
    {"cuMemAllocAsync", 11020},
    {"cuMemAllocManaged", 6000},
    {"cuMemCreate", 10020},
    {"cuMemExportToShareableHandle", 10020},
    {"cuMemFreeAsync", 11020},
    {"cuMemGetAccess", 10020},
    {"cuMemGetAllocationGranularity", 10020},
    {"cuMemGetAllocationPropertiesFromHandle", 10020},
    {"cuMemHostRegister_v2", 6050},
    {"cuMemHostUnregister", 4000},
    {"cuMemImportFromShareableHandle", 10020},
    {"cuMemMap", 10020},
    {"cuMemRelease", 10020},
    {"cuMemRetainAllocationHandle", 11000},
    {"cuMemSetAccess", 10020},
    {"cuMemUnmap", 10020},
    {"cuMemsetD8Async", 3020},
    {"cuPointerGetAttribute", 4000},
    {"cuPointerGetAttributes", 7000},
    {"cuPointerSetAttribute", 6000},
    {"cuStreamBeginCapture", 10000},
    {"cuStreamBeginCapture_v2", 10010},
    {"cuStreamDestroy_v2", 4000},
    {"cuStreamEndCapture", 10000},
    {"cuThreadExchangeStreamCaptureMode", 10010},
};

static const char *suffix_of(const char *name) {
    const char *end = name + strlen(name);

    if (end - name > 5 && (strcmp(end - 5, "_ptsz") == 0 || strcmp(end - 5, "_ptds") == 0))
        return end - 5;
    return end;
}

/* cuMemAlloc of cuMemAlloc_v2_ptds. */
static size_t base_length(const char *name) {
    const char *end = suffix_of(name);

    return (size_t)(end - name > 3 && end[-3] == '_' && end[-2] == 'v' ? end - 3 - name
                                                                        : end - name);
}

static int version_of(const char *name) {
    size_t length = (size_t)(suffix_of(name) - name);

    for (size_t n = 0; n < sizeof(since) / sizeof(since[0]); n++)
        if (strlen(since[n].name) == length && strncmp(since[n].name, name, length) == 0)
            return since[n].version;
    return base_length(name) < length ? 3020 : 2000;
}

enum { PER_THREAD = 2 };
enum { FOUND, MISSING, TOO_OLD }; /* CUdriverProcAddressQueryResult */

/* The newest that `wanted` knows of, and the thread's variant, where there is one, if asked for. */
static const struct entry *find(const char *symbol, int wanted, bool thread, int *status) {
    const struct entry *best = NULL;

    *status = MISSING;
    for (size_t n = 0; n < sizeof(entries) / sizeof(entries[0]); n++) {
        const struct entry *entry = &entries[n];
        bool variant = *suffix_of(entry->name) != '\0';
        int rank;

        if (base_length(entry->name) != strlen(symbol) ||
            strncmp(entry->name, symbol, strlen(symbol)) != 0 || (variant && !thread))
            continue;
        if (*status == MISSING)
            *status = TOO_OLD;
        if (version_of(entry->name) > wanted)
            continue;
        *status = FOUND;
        rank = best == NULL ? 1 : version_of(entry->name) - version_of(best->name);
        if (rank > 0 || (rank == 0 && variant))
            best = entry;
    }
    return best;
}

/* From CUDA 12 on this name means a function that has another one as a symbol. */
static const char *meant(const char *symbol, int wanted) {
    return wanted >= 12000 && strcmp(symbol, "cuGraphInstantiate") == 0
               ? "cuGraphInstantiateWithFlags"
               : symbol;
}

/* A driver may have another name for a function than it shows. */
extern int shown_mem_alloc(uintptr_t *at, size_t size) __asm__("cuMemAlloc_v2");

static int mem_alloc(uintptr_t *at, size_t size) {
    return shown_mem_alloc(at, size);
}

/* What is not there is no error for who can tell by the status. */
static int look_up(const char *call, const char *symbol, void **function, int wanted,
                   unsigned long long flags, int *status) {
    const struct entry *entry;
    int found, result;

    if (symbol == NULL || function == NULL || flags > 3 || wanted > version())
        return INVALID_VALUE;
    if (atomic_load(&initialized)) { /* it may be asked before cuInit */
        result = enter(call);
        if (result >= 0)
            return result;
    }
    entry = find(meant(symbol, wanted), wanted, (flags & PER_THREAD) != 0, &found);
    *function = entry != NULL ? (void *)(uintptr_t)entry->function : NULL;
    if (entry != NULL && strcmp(entry->name, "cuMemAlloc_v2") == 0 && is_so("aliases"))
        *function = (void *)(uintptr_t)mem_alloc;
    if (status != NULL)
        *status = found;
    return entry != NULL || status != NULL ? SUCCESS : NOT_FOUND;
}

CALL(cuGetProcAddress, const char *symbol, void **function, int wanted, unsigned long long flags) {
    return look_up(__func__, symbol, function, wanted, flags, NULL);
}

CALL(cuGetProcAddress_v2, const char *symbol, void **function, int wanted,
     unsigned long long flags, int *status) {
    return look_up(__func__, symbol, function, wanted, flags, status);
}
