#ifndef THAW_FINISHED_H
#define THAW_FINISHED_H

#include <stdbool.h>

/*
 * Answer `delete` for a container of which nothing is left, and say whether that was so.
 *
 * containerd runs `delete` after every task, although the daemon has removed everything by then.
 * The daemon keeps a file MARKER in the bundle for as long as there is something to remove; without
 * it there is nothing to do but to say so, which needs neither Python (35 ms) nor runc (25 ms).
 */
bool answer_finished_delete(int argc, char **argv);

#endif
