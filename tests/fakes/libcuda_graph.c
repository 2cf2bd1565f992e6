/* Graphs: what was asked of a stream while it was captured. What can be launched is the graph. */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <stdlib.h>

enum { GLOBAL, THREAD_LOCAL, RELAXED };

static _Thread_local int thread_mode;

bool capture_forbids(const struct context *context) {
    bool under_way = false;

    pthread_mutex_lock(&stream_guard);
    for (const struct stream *stream = streams; stream != NULL; stream = stream->next)
        under_way |= stream->capture != NULL && !stream->ended &&
                     (context == NULL ? stream->mode == GLOBAL : stream->context == context);
    pthread_mutex_unlock(&stream_guard);
    return under_way && (context != NULL || thread_mode != RELAXED);
}

void spoil_captures(const struct context *context) {
    pthread_mutex_lock(&stream_guard);
    for (struct stream *stream = streams; stream != NULL; stream = stream->next)
        stream->spoilt |= stream->capture != NULL && stream->context == context;
    pthread_mutex_unlock(&stream_guard);
}

CALL(cuThreadExchangeStreamCaptureMode, int *mode) {
    int before = thread_mode;

    ENTER();
    if (*mode < GLOBAL || *mode > RELAXED)
        return INVALID_VALUE;
    thread_mode = *mode;
    *mode = before;
    return SUCCESS;
}

static int begin_capture(const char *call, struct stream *stream, int mode) {
    ENTER_CONTEXT_AS(call, context);
    (void)context;
    if ((uintptr_t)stream <= 2 || !is_stream(stream) || stream->capture != NULL || mode < GLOBAL ||
        mode > RELAXED)
        return INVALID_VALUE;
    stream->mode = mode;
    stream->spoilt = false;
    stream->capture = calloc(1, sizeof(*stream->capture));
    if (stream->capture == NULL)
        return OUT_OF_MEMORY;
    stream->capture->last = &stream->capture->first;
    return SUCCESS;
}

CALL(cuStreamBeginCapture, struct stream *stream) {
    return begin_capture(__func__, stream, GLOBAL);
}

CALL(cuStreamBeginCapture_v2, struct stream *stream, int mode) {
    return begin_capture(__func__, stream, mode);
}

CALL(cuStreamBeginCapture_v2_ptsz, struct stream *stream, int mode) {
    return begin_capture(__func__, stream, mode);
}

static int end_capture(const char *call, struct stream *stream, struct graph **graph) {
    ENTER_AS(call);
    if (!is_stream(stream) || stream->capture == NULL)
        return INVALID_VALUE;
    *graph = stream->spoilt ? NULL : stream->capture;
    stream->capture = NULL;
    return stream->spoilt ? CAPTURE_INVALIDATED : SUCCESS;
}

CALL(cuStreamEndCapture, struct stream *stream, struct graph **graph) {
    return end_capture(__func__, stream, graph);
}

CALL(cuStreamEndCapture_ptsz, struct stream *stream, struct graph **graph) {
    return end_capture(__func__, stream, graph);
}

/* ---- built without a stream ----------------------------------------------------------------- */

struct set_node { /* CUDA_MEMSET_NODE_PARAMS */
    uintptr_t to;
    size_t pitch;
    unsigned value, element;
    size_t width, height;
};

CALL(cuGraphCreate, struct graph **graph, unsigned flags) {
    ENTER();
    if (flags != 0)
        return INVALID_VALUE;
    *graph = calloc(1, sizeof(**graph));
    if (*graph == NULL)
        return OUT_OF_MEMORY;
    (*graph)->last = &(*graph)->first;
    return SUCCESS;
}

/* An address is looked up when a node gets it, and when its graph is made ready. */
static bool looked_up(const struct work *work) {
    return work->run != set_memory || accessible(work->to, work->size, work->device, true);
}

static int give(struct work *node, const struct set_node *what, const struct context *context) {
    struct work work = *node;

    if (!is_context(context) || what->element != 1 || what->height != 1)
        return INVALID_VALUE;
    work.run = set_memory;
    work.device = context->device;
    work.to = what->to;
    work.size = what->width;
    work.value = what->value;
    if (!looked_up(&work))
        return INVALID_VALUE;
    *node = work;
    return SUCCESS;
}

CALL(cuGraphAddMemsetNode, struct work **node, struct graph *graph, struct work *const *after,
     size_t count, const struct set_node *what, struct context *context) {
    struct work work = {.next = NULL};
    int result;

    ENTER();
    if (after != NULL || count != 0)
        return NOT_SUPPORTED;
    result = give(&work, what, context);
    if (result != SUCCESS)
        return result;
    *node = malloc(sizeof(work));
    if (*node == NULL)
        return OUT_OF_MEMORY;
    **node = work;
    *graph->last = *node;
    graph->last = &(*node)->next;
    return SUCCESS;
}

/* ---- made ready, launched ------------------------------------------------------------------- */

static int instantiate(const char *call, struct graph **ready, struct graph *graph) {
    ENTER_AS(call);
    for (const struct work *work = graph->first; work != NULL; work = work->next)
        if (!looked_up(work))
            return INVALID_VALUE;
    *ready = graph;
    return SUCCESS;
}

CALL(cuGraphInstantiate_v2, struct graph **ready, struct graph *graph, struct work **wrong,
     char *log, size_t size) {
    (void)wrong, (void)log, (void)size;
    return instantiate(__func__, ready, graph);
}

CALL(cuGraphInstantiateWithFlags, struct graph **ready, struct graph *graph,
     unsigned long long flags) {
    (void)flags;
    return instantiate(__func__, ready, graph);
}

CALL(cuGraphExecMemsetNodeSetParams, struct graph *ready, struct work *node,
     const struct set_node *what, struct context *context) {
    ENTER();
    (void)ready;
    return give(node, what, context);
}

static int launch_graph(const char *call, const struct graph *graph, struct stream *stream) {
    int result = SUCCESS;

    ENTER_CONTEXT_AS(call, context);
    (void)context;
    for (const struct work *work = graph->first; work != NULL && result == SUCCESS;
         work = work->next)
        result = submit(stream, work);
    return result;
}

CALL(cuGraphLaunch, struct graph *graph, struct stream *stream) {
    return launch_graph(__func__, graph, stream);
}

CALL(cuGraphLaunch_ptsz, struct graph *graph, struct stream *stream) {
    return launch_graph(__func__, graph, stream);
}
