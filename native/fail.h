/* How our programs give up: one sentence on stderr, exit 1. */
#pragma once

/* Each program defines its own. */
extern const char program_name[];

__attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...);
