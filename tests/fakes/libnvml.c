// A libnvidia-ml.so.1 without GPUs. What it says is in the file that THAW_FAKE_NVML names, read at
// every call, so that a test can change it at any time; see nvml.py beside this file.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 2, SMALL = 7, UNINITIALIZED = 1, LINE = 1024 };

struct gpu {
    unsigned minor, mig;
    unsigned long long total, free, virtual;
    char uuid[96], pids[256], name[256];
};

struct memory { unsigned long long total, free, used; };
struct process { unsigned pid; unsigned long long used; unsigned instance, compute; };

static int ready;

// Calls `each` with every line of the world until it answers 1; answers whether one did.
static int look(int (*each)(const char *line, void *what), void *what) {
    const char *path = getenv("THAW_FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[LINE];
    int found = 0;
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        found = each(line, what);
    }
    if (file) fclose(file);
    return found;
}

struct failure { const char *call; int index, code; };

static int fails(const char *line, void *what) {
    struct failure *wanted = what;
    char call[128];
    int index, code;
    if (sscanf(line, "fail %127s %d %d", call, &index, &code) != 3) return 0;
    if (strcmp(call, wanted->call) || index != wanted->index) return 0;
    wanted->code = code;
    return 1;
}

// The code that a call shall fail with; -1 stands for the calls that are about no GPU.
static int scripted(const char *call, int index) {
    struct failure wanted = {call, index, SUCCESS};
    look(fails, &wanted);
    return wanted.code;
}

static int text(const char *told, char *buffer, unsigned size) {
    if (strlen(told) >= size) return SMALL;
    strcpy(buffer, told);
    return SUCCESS;
}

struct search { int left, seen; struct gpu gpu; };

static int next(const char *line, void *what) {
    struct search *search = what;
    struct gpu *gpu = &search->gpu;
    if (strncmp(line, "gpu ", 4)) return 0;
    search->seen++;
    if (search->left--) return 0;
    return sscanf(line, "gpu %u %llu %llu %u %llu %95s %255s %255[^\n]", &gpu->minor, &gpu->total,
                  &gpu->free, &gpu->mig, &gpu->virtual, gpu->uuid, gpu->pids, gpu->name) == 8;
}

// Handles are indexes from 1 on.
static int find(const char *call, void *handle, struct gpu *gpu) {
    int index = (int)(intptr_t)handle - 1;
    struct search search = {index, 0, {0}};
    if (!ready) return UNINITIALIZED;
    int code = scripted(call, index);
    if (code) return code;
    if (!look(next, &search)) return INVALID;
    *gpu = search.gpu;
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) {
    int code = scripted("nvmlInitWithFlags", -1);
    ready |= !code;
    return flags ? INVALID : code;
}

const char *nvmlErrorString(int code) {
    static char said[64];
    snprintf(said, sizeof said, "fake error %d", code);
    return said;
}

static int version(const char *line, void *what) { return sscanf(line, "driver %79s", (char *)what) == 1; }

int nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    char told[80] = "";
    int code = scripted("nvmlSystemGetDriverVersion", -1);
    look(version, told);
    return code ? code : text(told, buffer, size);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    struct search search = {-1, 0, {0}};
    look(next, &search);
    *count = (unsigned)search.seen;
    return scripted("nvmlDeviceGetCount_v2", -1);
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    struct gpu gpu;
    *handle = (void *)(intptr_t)(index + 1);
    return find("nvmlDeviceGetHandleByIndex_v2", *handle, &gpu);
}

struct named { int index, seen; const char *uuid; };

static int with_uuid(const char *line, void *what) {
    struct named *named = what;
    char uuid[96];
    if (sscanf(line, "gpu %*u %*u %*u %*u %*u %95s", uuid) != 1) return 0;
    named->index = named->seen++;
    return !strcmp(uuid, named->uuid);
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    struct named named = {0, 0, uuid};
    int code = scripted(__func__, -1);
    if (code) return code;
    if (!ready || !look(with_uuid, &named)) return ready ? 6 : UNINITIALIZED;  // NOT_FOUND
    *handle = (void *)(intptr_t)(named.index + 1);
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned size) {
    struct gpu gpu;
    int code = find(__func__, handle, &gpu);
    return code ? code : text(gpu.uuid, buffer, size);
}

int nvmlDeviceGetName(void *handle, char *buffer, unsigned size) {
    struct gpu gpu;
    int code = find(__func__, handle, &gpu);
    return code ? code : text(gpu.name, buffer, size);
}

int nvmlDeviceGetMinorNumber(void *handle, unsigned *minor) {
    struct gpu gpu;
    int code = find(__func__, handle, &gpu);
    if (!code) *minor = gpu.minor;
    return code;
}

int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
    struct gpu gpu;
    int code = find(__func__, handle, &gpu);
    if (!code) *memory = (struct memory){gpu.total, gpu.free, gpu.total - gpu.free};
    return code;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    struct gpu gpu;
    int code = find(__func__, handle, &gpu);
    if (!code) *current = gpu.mig, *pending = !gpu.mig;
    return code;
}

#ifndef OLD  // drivers before 510 have other processes, those before 430 no virtual GPUs
int nvmlDeviceGetVirtualizationMode(void *handle, unsigned long long *mode) {
    struct gpu gpu;
    int code = find(__func__, handle, &gpu);
    if (!code) *mode = gpu.virtual;
    return code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, struct process *list) {
    struct gpu gpu;
    unsigned room = *count, found = 0;
    int code = find(__func__, handle, &gpu);
    if (code) return code;
    for (char *word = strtok(gpu.pids, ","); word; word = strtok(NULL, ","))
        if (strcmp(word, "-")) {
            if (found < room) list[found] = (struct process){(unsigned)atoi(word), 1 << 20, 0, 0};
            found++;
        }
    *count = found;
    return found > room ? SMALL : SUCCESS;
}
#endif
