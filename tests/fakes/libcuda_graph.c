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
    *graph = stream->capture;
    stream->capture = NULL;
    return SUCCESS;
}

CALL(cuStreamEndCapture, struct stream *stream, struct graph **graph) {
    return end_capture(__func__, stream, graph);
}

CALL(cuStreamEndCapture_ptsz, struct stream *stream, struct graph **graph) {
    return end_capture(__func__, stream, graph);
}

CALL(cuGraphInstantiateWithFlags, struct graph **executable, struct graph *graph,
     unsigned long long flags) {
    ENTER();
    (void)flags;
    *executable = graph;
    return SUCCESS;
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
