/* The driver's functions that build graphs: a part of the table in entries.h, which includes it. */
#pragma once

/*
 * Passed on as they are, once the gate is open: they look up the addresses that they are given.
 * While memory is away these are not mapped, and a program would be told that they are wrong; for
 * it, there is no such time. What only takes note of a kernel's arguments looks nothing up.
 */
#define GRAPH_NODES(X)                                                                             \
    X(cuGraphAddMemcpyNode, cuGraphAddMemcpyNode, 10000, STREAM_ANY,                               \
      (void **node, void *graph, const void *after, size_t count, const void *copy, context here), \
      (node, graph, after, count, copy, here))                                                     \
    X(cuGraphAddMemsetNode, cuGraphAddMemsetNode, 10000, STREAM_ANY,                               \
      (void **node, void *graph, const void *after, size_t count, const void *set, context here),  \
      (node, graph, after, count, set, here))                                                      \
    X(cuGraphAddBatchMemOpNode, cuGraphAddBatchMemOpNode, 11070, STREAM_ANY,                       \
      (void **node, void *graph, const void *after, size_t count, const void *what),               \
      (node, graph, after, count, what))                                                           \
    X(cuGraphAddNode, cuGraphAddNode, 12020, STREAM_ANY,                                           \
      (void **node, void *graph, const void *after, size_t count, void *what),                     \
      (node, graph, after, count, what))                                                           \
    X(cuGraphAddNode_v2, cuGraphAddNode, 12030, STREAM_ANY,                                        \
      (void **node, void *graph, const void *after, const void *edges, size_t count, void *what),  \
      (node, graph, after, edges, count, what))                                                    \
    X(cuGraphMemcpyNodeSetParams, cuGraphMemcpyNodeSetParams, 10000, STREAM_ANY,                   \
      (void *node, const void *copy), (node, copy))                                                \
    X(cuGraphMemsetNodeSetParams, cuGraphMemsetNodeSetParams, 10000, STREAM_ANY,                   \
      (void *node, const void *set), (node, set))                                                  \
    X(cuGraphBatchMemOpNodeSetParams, cuGraphBatchMemOpNodeSetParams, 11070, STREAM_ANY,           \
      (void *node, const void *what), (node, what))                                                \
    X(cuGraphNodeSetParams, cuGraphNodeSetParams, 12020, STREAM_ANY, (void *node, void *what),     \
      (node, what))

/* Of a graph that was made ready to be launched. */
#define GRAPHS_READY(X)                                                                            \
    X(cuGraphInstantiate, cuGraphInstantiate, 10000, STREAM_ANY,                                   \
      (void **ready, void *graph, void **wrong, char *log, size_t size),                           \
      (ready, graph, wrong, log, size))                                                            \
    X(cuGraphInstantiate_v2, cuGraphInstantiate, 11000, STREAM_ANY,                                \
      (void **ready, void *graph, void **wrong, char *log, size_t size),                           \
      (ready, graph, wrong, log, size))                                                            \
    X(cuGraphInstantiateWithFlags, cuGraphInstantiateWithFlags, 11040, STREAM_ANY,                 \
      (void **ready, void *graph, flags64 flags), (ready, graph, flags))                           \
    BOTH(X, _ptsz, cuGraphInstantiateWithParams, cuGraphInstantiateWithParams, 12000,              \
         (void **ready, void *graph, void *how), (ready, graph, how))                              \
    X(cuGraphExecUpdate, cuGraphExecUpdate, 10020, STREAM_ANY,                                     \
      (void *ready, void *graph, void **wrong, int *how), (ready, graph, wrong, how))              \
    X(cuGraphExecUpdate_v2, cuGraphExecUpdate, 12000, STREAM_ANY,                                  \
      (void *ready, void *graph, void *how), (ready, graph, how))                                  \
    X(cuGraphExecMemcpyNodeSetParams, cuGraphExecMemcpyNodeSetParams, 10020, STREAM_ANY,           \
      (void *ready, void *node, const void *copy, context here), (ready, node, copy, here))        \
    X(cuGraphExecMemsetNodeSetParams, cuGraphExecMemsetNodeSetParams, 10020, STREAM_ANY,           \
      (void *ready, void *node, const void *set, context here), (ready, node, set, here))          \
    X(cuGraphExecBatchMemOpNodeSetParams, cuGraphExecBatchMemOpNodeSetParams, 11070, STREAM_ANY,   \
      (void *ready, void *node, const void *what), (ready, node, what))                            \
    X(cuGraphExecNodeSetParams, cuGraphExecNodeSetParams, 12020, STREAM_ANY,                       \
      (void *ready, void *node, void *what), (ready, node, what))

/* No graph, but the same holds for it. */
#define TEXTURES(X)                                                                                \
    X(cuTexObjectCreate, cuTexObjectCreate, 5000, STREAM_ANY,                                      \
      (unsigned long long *texture, const void *memory, const void *how, const void *view),        \
      (texture, memory, how, view))                                                                \
    X(cuTexRefSetAddress_v2, cuTexRefSetAddress, 3020, STREAM_ANY,                                 \
      (size_t *offset, void *texture, address at, size_t size), (offset, texture, at, size))       \
    X(cuTexRefSetAddress2D_v3, cuTexRefSetAddress2D, 4010, STREAM_ANY,                             \
      (void *texture, const void *array, address at, size_t pitch), (texture, array, at, pitch))

#define GRAPHS(X) GRAPH_NODES(X) GRAPHS_READY(X) TEXTURES(X)

/* Functions of the table that have a second name for cuGetProcAddress, from some version on. */
#define ALIASES(X) X(cuGraphInstantiateWithFlags, cuGraphInstantiate, 12000, STREAM_ANY)
