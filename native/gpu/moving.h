/* Taking memory out of the process, and back in at the same addresses. While the gate is closed. */
#pragma once

#include "table.h"

/* Whether it goes out of the process for a snapshot. */
bool is_movable(const struct piece *piece);

/* All return what the driver answers; `call`: which call that was. */

/* A descriptor that keeps the memory alive. */
int export_memory(struct piece *piece, int *descriptor, const char **call);

/* Unmaps and releases what was exported. If not all can be unmapped, all is mapped again. */
int empty_memory(const char **call);

/* Memory for a piece that is away, mapped where it was. */
int take_memory(struct piece *piece, int descriptor, const char **call);

/* The same by new memory of this process's own, of which others get a descriptor. From then on
   nothing is movable. */
int make_memory(struct piece *piece, int *descriptor, const char **call);

/* All of a piece's ranges, or none. */
int map_piece(const struct piece *piece, const char **call);
int unmap_piece(const struct piece *piece);

/* rehoming.c: the same, in new memory of this process's own, at the same addresses. On a failure it
   is where it was; or away, if it could not even be mapped there any more. */
int rehome(struct piece *piece, const char **call);

/* Maps again what is away and yet was never released: nobody else has to give it back. */
void map_what_stayed(void);

/* Whether any piece is away. */
bool any_away(void);

/* Whether any piece has come from outside: the driver cannot restore a process that has such. */
bool any_given(void);
