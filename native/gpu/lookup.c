/*
 * How programs find the driver's functions, and how they are given ours instead: as symbols (those
 * that link libcuda: ours come first), by dlsym(3) (dlsym.c), and by the driver's own
 * cuGetProcAddress, which the CUDA runtime uses for nearly everything.
 *
 * Ours is given only for what is the real one: when the real look-up has found something else, or
 * nothing, that is the answer.
 */
#include "entries.h"
#include "lock.h"
#include "objects.h"
#include "system.h"

#define LIBRARY "libcuda.so"

enum which { STREAM_ANY, STREAM_LEGACY, STREAM_THREAD };
enum { PER_THREAD_STREAM = 2 }; /* of cuGetProcAddress's flags */
enum { THREADS_SINCE = 7000 };

struct entry {
    const char *symbol, *name;
    int version;
    enum which which;
    size_t place; /* in struct driver */
    void *ours;   /* NULL: not taken over */
};

#define ENTRY(symbol, name, version, which, parameters, arguments)                                 \
    {#symbol, #name, version, which, offsetof(struct driver, symbol), (void *)&symbol},
#define CALLED_ENTRY(symbol, name, version, which, parameters, arguments)                          \
    {#symbol, #name, version, which, offsetof(struct driver, symbol), NULL},
#define ALIAS_ENTRY(symbol, name, version, which) ENTRY(symbol, name, version, which, , )
static const struct entry entries[] = {GATED(ENTRY) TAKEN(ENTRY) CALLED(CALLED_ENTRY)
                                           ALIASES(ALIAS_ENTRY)};

#define COUNT (sizeof(entries) / sizeof(entries[0]))

struct driver driver;
static atomic_bool found, out, out_known;
static struct lock finding;

static void *real(const struct entry *entry) {
    void *function;

    __builtin_memcpy(&function, (char *)&driver + entry->place, sizeof(function));
    return function;
}

/* Without the lock: the loader has one, too, and whoever holds that may be waiting for ours. */
static void find(void) {
    struct driver fresh;

    if (!object_kept(LIBRARY))
        return;
    for (size_t n = 0; n < COUNT; n++) {
        void *function = object_function(LIBRARY, entries[n].symbol);

        __builtin_memcpy((char *)&fresh + entries[n].place, &function, sizeof(function));
    }
    lock_write(&finding);
    if (!atomic_load(&found))
        driver = fresh;
    atomic_store(&found, true);
    unlock_write(&finding);
}

bool driver_found(void) {
    if (!atomic_load_explicit(&found, memory_order_acquire))
        find();
    return atomic_load_explicit(&found, memory_order_acquire);
}

int driver_lacks(void) {
    return driver_found() ? CUDA_NOT_SUPPORTED : CUDA_NO_LIBRARY;
}

bool opted_out(void) {
    char value[16];

    if (!atomic_load(&out_known)) {
        if (system_environment("THAW_GPU_MEMORY", value, sizeof(value)) &&
            text_equal(value, "driver"))
            atomic_store(&out, true);
        atomic_store(&out_known, true);
    }
    return atomic_load(&out);
}

static const struct entry *by_symbol(const char *symbol) {
    for (size_t n = 0; n < COUNT; n++)
        if (entries[n].ours != NULL && text_equal(entries[n].symbol, symbol))
            return &entries[n];
    return NULL;
}

/*
 * The driver chooses the newest that is not newer than what was asked for; so does this, among
 * those that the driver has. Functions with one symbol for both kinds of default streams are of
 * any kind.
 */
static const struct entry *by_name(const char *name, int version, flags64 flags) {
    enum which which = (flags & PER_THREAD_STREAM) != 0 ? STREAM_THREAD : STREAM_LEGACY;
    const struct entry *best = NULL;

    for (size_t n = 0; n < COUNT; n++) {
        const struct entry *entry = &entries[n];

        if (entry->ours == NULL || entry->version > version || real(entry) == NULL ||
            (entry->which != STREAM_ANY && entry->which != which) ||
            (best != NULL && best->version >= entry->version) || !text_equal(entry->name, name))
            continue;
        best = entry;
    }
    return best;
}

/* The version of CUDA that is asked for to get this one, and no newer one than it. The variants for
   streams of threads all came later. */
static int oldest(const struct entry *entry, int wanted) {
    int version = entry->which == STREAM_THREAD && entry->version < THREADS_SINCE ? THREADS_SINCE
                                                                                  : entry->version;

    return version < wanted ? version : wanted;
}

/* Whether the driver gives this function to those, too, who know no newer version than ours is. */
static bool is_of_version(const char *name, const void *function, int version, flags64 flags) {
    void *other = NULL;
    int status, result;

    if (driver.cuGetProcAddress_v2 != NULL)
        result = driver.cuGetProcAddress_v2(name, &other, version, flags, &status);
    else
        result = driver.cuGetProcAddress(name, &other, version, flags);
    return result == CUDA_SUCCESS && other == function;
}

/*
 * What the driver has found is one of those whose names are exported, or an alias of it: or one
 * that is newer than this library, which takes other arguments.
 */
static void replace(const char *name, void **function, int version, flags64 flags) {
    const struct entry *entry = NULL;

    if (name == NULL || function == NULL || *function == NULL || opted_out())
        return;
    for (size_t n = 0; n < COUNT && entry == NULL; n++)
        if (real(&entries[n]) == *function && text_equal(entries[n].name, name))
            entry = &entries[n];
    if (entry == NULL) {
        entry = by_name(name, version, flags);
        if (entry != NULL && !is_of_version(name, *function, oldest(entry, version), flags))
            entry = NULL;
    }
    if (entry != NULL && entry->ours != NULL)
        *function = entry->ours;
}

int cuGetProcAddress(const char *name, void **function, int version, flags64 flags) {
    int result;

    REAL(cuGetProcAddress);
    result = driver.cuGetProcAddress(name, function, version, flags);
    if (result == CUDA_SUCCESS)
        replace(name, function, version, flags);
    return result;
}

int cuGetProcAddress_v2(const char *name, void **function, int version, flags64 flags,
                        int *status) {
    int result;

    REAL(cuGetProcAddress_v2);
    result = driver.cuGetProcAddress_v2(name, function, version, flags, status);
    if (result == CUDA_SUCCESS)
        replace(name, function, version, flags);
    return result;
}

/* Nearly all that programs look for begins otherwise. */
bool taken_over(const char *symbol) {
    return symbol[0] == 'c' && symbol[1] == 'u' && by_symbol(symbol) != NULL;
}

void *instead_of(const char *symbol, void *function) {
    const struct entry *entry = by_symbol(symbol);
    bool is_ours;

    if (entry == NULL || function == NULL)
        return function;
    is_ours = function == entry->ours;
    if (!driver_found() || real(entry) == NULL)
        return is_ours ? NULL : function;
    if (opted_out())
        return is_ours ? real(entry) : function;
    return is_ours || function == real(entry) ? entry->ours : function;
}
