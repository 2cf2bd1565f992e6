/* dlsym(3), in front of the real one: programs that open the driver's library find ours in it. */
#include "entries.h"
#include "objects.h"

#include <stdatomic.h>

#define NEXT ((void *)-1L) /* RTLD_NEXT */

typedef void *dlsym_function(void *where, const char *symbol);

static dlsym_function *real_dlsym(void) {
    static _Atomic(dlsym_function *) known;
    dlsym_function *function = atomic_load(&known);

    if (function == NULL) {
        function = (dlsym_function *)next_function("dlsym");
        atomic_store(&known, function);
    }
    return function;
}

EXPORTED void *dlsym(void *where, const char *symbol);

/*
 * The last call is a jump: the real one looks at who has called it, for RTLD_NEXT, and for
 * RTLD_DEFAULT, too, which for a library that was opened with RTLD_LOCAL means what that needs, as
 * well. So only what has a name of ours is looked up from here. Who asks for RTLD_NEXT stands
 * between the program and the driver, and gets what comes after it.
 */
__attribute__((optimize("optimize-sibling-calls", "omit-frame-pointer"))) EXPORTED void *
dlsym(void *where, const char *symbol) {
    dlsym_function *function = real_dlsym();

    if (function == NULL)
        return NULL;
    if (where != NEXT && symbol != NULL && taken_over(symbol))
        return instead_of(symbol, function(where, symbol));
    return function(where, symbol);
}
