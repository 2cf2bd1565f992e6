/*
 * The library's side of the conversation with the engine: the marker, the sockets and the thread
 * that wire.h tells of. Made with the first memory that can be moved, never before: what the
 * program is started by (env, a shell) and what it starts itself stay as they are.
 */
#pragma once

#include <stdbool.h>

/* Makes it all, if it is not there yet. False: it cannot be, so nothing may be taken over. */
bool control_ready(void);

/* Starts a thread of the program's C library, with all signals held back. */
bool start_thread(void *(*run)(void *), void *data, unsigned long *thread);

/* Waits for its end. */
void join_thread(unsigned long thread);
