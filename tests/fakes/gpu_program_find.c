/* How the program finds the CUDA functions: see gpu_program.h. */
#define _GNU_SOURCE

#include "gpu_program.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#define DECLARED(name, exported, arguments) extern int exported arguments;
#ifdef LINKED
FUNCTIONS(DECLARED)
#endif

struct functions cuda;

static void missing(const char *name) {
    fprintf(stderr, "no %s\n", name);
    exit(3);
}

#ifdef LINKED
#define FIND(name, exported, arguments) cuda.name = exported;

void find_functions(void) {
    (void)missing;
    FUNCTIONS(FIND)
}
#else
static void *opened(void) {
    const char *name = getenv("CUDA_LIBRARY");
    void *library = dlopen(name != NULL ? name : "libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);

    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(3);
    }
    return library;
}
#endif

#ifdef BY_DLSYM
#define FIND(name, exported, arguments)                                                            \
    *(void **)&cuda.name = dlsym(library, #exported);                                              \
    if (cuda.name == NULL)                                                                         \
        missing(#exported);

void find_functions(void) {
    void *library = opened();

    FUNCTIONS(FIND)
}
#endif

#ifdef BY_ENTRY
#define FIND(name, exported, arguments)                                                            \
    if (get(#name, (void **)&cuda.name, 12080, flags, NULL) != 0 || cuda.name == NULL)             \
        missing(#name);

/* The CUDA runtime asks for the function itself, too, and goes on with what it gets. */
void find_functions(void) {
    int (*get)(const char *, void **, int, uint64_t, int *) = NULL;
    uint64_t flags = getenv("PER_THREAD") != NULL ? 2 : 0;
    int status = -1;

    *(void **)&get = dlsym(opened(), "cuGetProcAddress_v2");
    if (get == NULL || get("cuGetProcAddress", (void **)&get, 12080, flags, &status) != 0 ||
        status != 0)
        missing("cuGetProcAddress");
    FUNCTIONS(FIND)
}
#endif
