/*
 * Streams, events, and what moves bytes. What a stream has to do is done as late as may be: when
 * somebody waits for it. So whoever does not wait for an end, but relies on it, is found out.
 */
#define _GNU_SOURCE

#include "libcuda_fake.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { NON_BLOCKING = 1 };

struct event {
    struct stream *stream; /* what it was recorded in */
    uint64_t number;       /* of the last piece of work then */
};

pthread_mutex_t stream_guard = PTHREAD_MUTEX_INITIALIZER;
struct stream *streams;
static struct stream defaults[DEVICES]; /* the legacy ones, of each device */

/* ---- work ----------------------------------------------------------------------------------- */

/* The next, up to that number; NULL if there is no more. */
static struct work *take(struct stream *stream, uint64_t number) {
    struct work *work;

    pthread_mutex_lock(&stream_guard);
    work = stream->first;
    if (work != NULL && work->number > number)
        work = NULL;
    if (work != NULL) {
        stream->first = work->next;
        if (stream->first == NULL)
            stream->last = &stream->first;
    }
    pthread_mutex_unlock(&stream_guard);
    return work;
}

static int drain_until(struct stream *stream, uint64_t number) {
    int result = SUCCESS;

    pthread_mutex_lock(&stream->turn);
    for (struct work *work; (work = take(stream, number)) != NULL; free(work)) {
        int done = work->run(work);

        result = result == SUCCESS ? done : result;
    }
    pthread_mutex_unlock(&stream->turn);
    return result;
}

static int drain(struct stream *stream) {
    return drain_until(stream, UINT64_MAX);
}

bool is_stream(const struct stream *wanted) {
    const struct stream *stream;

    pthread_mutex_lock(&stream_guard);
    for (stream = streams; stream != NULL && stream != wanted; stream = stream->next)
        ;
    pthread_mutex_unlock(&stream_guard);
    return stream != NULL && !stream->ended;
}

static void open_stream(struct stream *stream, struct context *context, unsigned flags) {
    memset(stream, 0, sizeof(*stream));
    stream->context = context;
    stream->flags = flags;
    pthread_mutex_init(&stream->turn, NULL);
    pthread_mutex_lock(&stream_guard);
    stream->last = &stream->first;
    stream->next = streams;
    streams = stream;
    pthread_mutex_unlock(&stream_guard);
}

/* 0 and 1 are the default stream of the current context's device, 2 is the thread's: the same. */
struct stream *stream_of(struct stream *stream) {
    struct stream *legacy;

    if ((uintptr_t)stream > 2)
        return is_stream(stream) ? stream : NULL;
    legacy = &defaults[current()->device];
    if (!is_stream(legacy))
        open_stream(legacy, current(), 0);
    return legacy;
}

/* All of a context, or of all; or of all but the streams that wait for nobody. */
static int drain_those(const struct context *context, bool patient) {
    struct stream *stream;
    int result = SUCCESS;

    pthread_mutex_lock(&stream_guard);
    stream = streams;
    pthread_mutex_unlock(&stream_guard);
    for (; stream != NULL; stream = stream->next) {
        int done = SUCCESS;

        if ((context == NULL || stream->context == context) &&
            (patient || (stream->flags & NON_BLOCKING) == 0))
            done = drain(stream);
        result = result == SUCCESS ? done : result;
    }
    return result;
}

int drain_context(const struct context *context) {
    return drain_those(context, true);
}

static void keep(struct work ***last, const struct work *work, uint64_t number) {
    struct work *copy = malloc(sizeof(*copy));

    if (copy == NULL)
        abort();
    *copy = *work;
    copy->number = number;
    copy->next = NULL;
    **last = copy;
    *last = &copy->next;
}

int submit(struct stream *given, const struct work *work) {
    struct stream *stream = stream_of(given);

    if (stream == NULL)
        return INVALID_HANDLE;
    pthread_mutex_lock(&stream_guard);
    if (stream->capture != NULL)
        keep(&stream->capture->last, work, 0);
    else
        keep(&stream->last, work, ++stream->asked);
    pthread_mutex_unlock(&stream_guard);
    return SUCCESS;
}

int drain_stream(struct stream *given) {
    struct stream *stream = stream_of(given);

    return stream != NULL ? drain(stream) : INVALID_HANDLE;
}

int run_now(const struct work *work) {
    int result = drain_those(current(), false), done = work->run(work);

    return result == SUCCESS ? done : result;
}

/* ---- streams -------------------------------------------------------------------------------- */

CALL(cuStreamCreate, struct stream **stream, unsigned flags) {
    ENTER_CONTEXT(context);
    if (flags > 1)
        return INVALID_VALUE;
    *stream = malloc(sizeof(**stream));
    if (*stream == NULL)
        return OUT_OF_MEMORY;
    open_stream(*stream, context, flags);
    return SUCCESS;
}

CALL(cuStreamDestroy_v2, struct stream *stream) {
    ENTER();
    if ((uintptr_t)stream <= 2 || !is_stream(stream))
        return INVALID_HANDLE;
    drain(stream);
    stream->ended = true;
    return SUCCESS;
}

/* For tests: how many streams there are. */
CALL(fakeStreams, void) {
    int count = 0;

    pthread_mutex_lock(&stream_guard);
    for (const struct stream *stream = streams; stream != NULL; stream = stream->next)
        count += !stream->ended && (stream < defaults || stream >= defaults + DEVICES);
    pthread_mutex_unlock(&stream_guard);
    return count;
}

static int synchronize(const char *call, struct stream *stream) {
    ENTER_CONTEXT_AS(call, context);
    (void)context;
    stream = stream_of(stream);
    if (stream == NULL)
        return INVALID_HANDLE;
    return stream->capture == NULL ? drain(stream) : CAPTURE_UNSUPPORTED;
}

CALL(cuStreamSynchronize, struct stream *stream) {
    return synchronize(__func__, stream);
}

CALL(cuStreamSynchronize_ptsz, struct stream *stream) {
    return synchronize(__func__, stream);
}

static int query(const char *call, struct stream *stream) {
    int result = SUCCESS;

    ENTER_CONTEXT_AS(call, context);
    (void)context;
    stream = stream_of(stream);
    if (stream == NULL)
        return INVALID_HANDLE;
    pthread_mutex_lock(&stream_guard);
    if (stream->capture != NULL)
        result = CAPTURE_UNSUPPORTED;
    else if (stream->first != NULL)
        result = NOT_READY;
    pthread_mutex_unlock(&stream_guard);
    return result;
}

CALL(cuStreamQuery, struct stream *stream) {
    return query(__func__, stream);
}

CALL(cuStreamQuery_ptsz, struct stream *stream) {
    return query(__func__, stream);
}

CALL(cuEventCreate, struct event **event, unsigned flags) {
    ENTER_CONTEXT(context);
    (void)context, (void)flags;
    *event = calloc(1, sizeof(**event));
    return *event != NULL ? SUCCESS : OUT_OF_MEMORY;
}

CALL(cuEventDestroy_v2, struct event *event) {
    ENTER();
    free(event);
    return SUCCESS;
}

CALL(cuEventRecord, struct event *event, struct stream *stream) {
    ENTER_CONTEXT(context);
    (void)context;
    event->stream = stream_of(stream);
    if (event->stream == NULL)
        return INVALID_HANDLE;
    event->number = event->stream->asked;
    return SUCCESS;
}

CALL(cuEventSynchronize, struct event *event) {
    ENTER();
    if (event->stream == NULL || !is_stream(event->stream))
        return SUCCESS;
    return drain_until(event->stream, event->number);
}
