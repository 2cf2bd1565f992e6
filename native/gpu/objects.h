/*
 * What is loaded into this process, and where its functions are.
 *
 * dlsym(3) will not do: the library has one of its own, and how the real one is to be found differs
 * from one C library to the next. The tables of loaded files do not.
 */
#pragma once

#include <stdbool.h>

/* A function of the loaded file whose name, without folders, begins like this; NULL: none. */
void *object_function(const char *file, const char *name);

/* A function of whichever file comes after this library, in the order of loading; NULL: none. */
void *next_function(const char *name);

/* Whether such a file is loaded. It stays so then, whoever closes it. */
bool object_kept(const char *file);
