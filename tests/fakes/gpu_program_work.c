/* Kernels, graphs, threads, devices and children: see gpu_program.c. */
#define _GNU_SOURCE

#include "gpu_program.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static graph built;
static node built_of;
static ready_graph ready;
static atomic_long launches;
static atomic_bool spinning;
static pthread_t spinner;

/* ---- launches ------------------------------------------------------------------------------- */

static int launch_fill(const struct object *mine, uint64_t seed, stream where) {
    device_pointer at = mine->at;
    uint64_t size = mine->size;
    void *arguments[] = {&at, &size, &seed};

    TRY(cuLaunchKernel, fill_kernel, 1, 1, 1, 256, 1, 1, 0, where, arguments, NULL);
    atomic_fetch_add(&launches, 1);
    return 0;
}

static int fill(char **words) {
    if (launch_fill(object(words[1]), number(words[2]), own_stream) < 0)
        return -1;
    TRY(cuStreamSynchronize, own_stream);
    return tell("filled");
}

/* Nobody waits for it. */
static int launch(char **words) {
    return launch_fill(object(words[1]), number(words[2]), own_stream) < 0 ? -1 : tell("launched");
}

static int capture(char **words) {
    graph captured;

    TRY(cuStreamBeginCapture, own_stream, 0);
    if (launch_fill(object(words[1]), number(words[2]), own_stream) < 0)
        return -1;
    TRY(cuStreamEndCapture, own_stream, &captured);
    TRY(cuGraphInstantiate, &ready, captured, 0);
    return tell("captured");
}

static struct set_node set_to(char **words) {
    const struct object *mine = object(words[1]);

    return (struct set_node){mine->at, 0, (unsigned)number(words[2]), 1, mine->size, 1};
}

static int build(char **words) {
    struct set_node what = set_to(words);

    TRY(cuGraphCreate, &built, 0);
    TRY(cuGraphAddMemsetNode, &built_of, built, NULL, 0, &what, contexts[0]);
    return tell("built");
}

static int instantiate(char **words) {
    (void)words;
    TRY(cuGraphInstantiate, &ready, built, 0);
    return tell("ready");
}

static int change(char **words) {
    struct set_node what = set_to(words);

    TRY(cuGraphExecMemsetNodeSetParams, ready, built_of, &what, contexts[0]);
    return tell("changed");
}

static int replay(char **words) {
    (void)words;
    TRY(cuGraphLaunch, ready, own_stream);
    TRY(cuStreamSynchronize, own_stream);
    return tell("replayed");
}

/* Whether all is done. */
static int query(char **words) {
    (void)words;
    TRY(cuStreamQuery, own_stream);
    return tell("idle");
}

static int synchronize(char **words) {
    (void)words;
    TRY(cuCtxSynchronize);
    return tell("idle");
}

static event made;

static int record(char **words) {
    (void)words;
    if (made == NULL)
        TRY(cuEventCreate, &made, 0);
    TRY(cuEventRecord, made, own_stream);
    return tell("recorded");
}

static int await(char **words) {
    (void)words;
    TRY(cuEventSynchronize, made);
    return tell("over");
}

static void *spin(void *mine) {
    stream mine_alone;

    if (cuda.cuCtxSetCurrent(contexts[0]) != 0 || cuda.cuStreamCreate(&mine_alone, 1) != 0)
        abort();
    for (uint64_t seed = 1; atomic_load(&spinning); seed++)
        if (launch_fill(mine, seed, mine_alone) < 0 || cuda.cuStreamSynchronize(mine_alone) != 0)
            abort();
    return NULL;
}

/* A thread that does nothing but launch kernels, until `rest`. */
static int start_spinning(char **words) {
    atomic_store(&spinning, true);
    if (pthread_create(&spinner, NULL, spin, object(words[1])) != 0)
        abort();
    return tell("spinning");
}

static int stop_spinning(char **words) {
    (void)words;
    atomic_store(&spinning, false);
    pthread_join(spinner, NULL);
    return tell("%ld", atomic_load(&launches));
}

static int count_launches(char **words) {
    (void)words;
    return tell("%ld", atomic_load(&launches));
}

/* ---- many threads --------------------------------------------------------------------------- */

struct rounds {
    uint64_t rounds, seed, size;
    int result;
};

/* Memory that was made, set and read again by each; what one wrote no other sees. */
static int one_round(struct rounds *mine) {
    uint64_t seen[2] = {0, 0}, marked = mine->seed << 32 | mine->rounds;
    device_pointer at;

    TRY(cuMemAlloc, &at, mine->size);
    TRY(cuMemcpyHtoD, at, &marked, sizeof(marked));
    TRY(cuMemcpyHtoD, at + mine->size - sizeof(marked), &marked, sizeof(marked));
    TRY(cuMemcpyDtoH, &seen[0], at, sizeof(marked));
    TRY(cuMemcpyDtoH, &seen[1], at + mine->size - sizeof(marked), sizeof(marked));
    TRY(cuMemFree, at);
    return seen[0] == marked && seen[1] == marked ? 0 : failed(-1, "cuMemcpyDtoH");
}

static void *go_round(void *argument) {
    struct rounds *mine = argument;

    mine->result = cuda.cuCtxSetCurrent(contexts[0]);
    for (; mine->rounds > 0 && mine->result == 0; mine->rounds--)
        mine->result = one_round(mine);
    return NULL;
}

static int threads(char **words) {
    struct rounds each[64];
    pthread_t started[64];
    size_t wanted = number(words[1]) < 64 ? number(words[1]) : 64;
    int result = 0;

    for (size_t n = 0; n < wanted; n++) {
        each[n] = (struct rounds){number(words[2]), n + 1, number(words[3]), 0};
        if (pthread_create(&started[n], NULL, go_round, &each[n]) != 0)
            abort();
    }
    for (size_t n = 0; n < wanted; n++) {
        pthread_join(started[n], NULL);
        result |= each[n].result;
    }
    return result == 0 ? tell("done") : -1;
}

/* ---- devices and processes ------------------------------------------------------------------ */

static int use(char **words) {
    int device = (int)number(words[1]) % GPUS;

    if (contexts[device] == NULL)
        TRY(cuDevicePrimaryCtxRetain, &contexts[device], device);
    TRY(cuCtxSetCurrent, contexts[device]);
    TRY(cuStreamCreate, &own_stream, 1);
    return tell("device %d", device);
}

static int peer(char **words) {
    int device = (int)number(words[1]) % GPUS;

    if (contexts[device] == NULL)
        TRY(cuDevicePrimaryCtxRetain, &contexts[device], device);
    TRY(cuCtxEnablePeerAccess, contexts[device], 0);
    return tell("peer %d", device);
}

static int no_peer(char **words) {
    TRY(cuCtxDisablePeerAccess, contexts[number(words[1]) % GPUS]);
    return tell("no peer");
}

/* How many threads and descriptors a child has, and what CUDA says to it. */
static int fork_one(char **words) {
    int status, result;
    pid_t child = fork();

    (void)words;
    if (child == 0) {
        device_pointer at;

        result = cuda.cuMemAlloc(&at, 4 << 20);
        _exit(result < 100 ? result : 100);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return failed(errno, "fork");
    return tell("%d", WEXITSTATUS(status));
}

/* ---- commands ------------------------------------------------------------------------------- */

const struct command work_commands[] = {
    {"fill", 2, fill},        /* NUMBER SEED, by a kernel */
    {"launch", 2, launch},    /* the same without waiting for it */
    {"capture", 2, capture},  /* NUMBER SEED: a graph that fills it */
    {"build", 2, build},      /* NUMBER BYTE: a graph that sets it, not ready yet */
    {"instantiate", 0, instantiate},
    {"change", 2, change}, /* NUMBER BYTE: what that graph sets, ready */
    {"replay", 0, replay}, /* the graph that was made ready last */
    {"query", 0, query},      /* of the stream */
    {"synchronize", 0, synchronize},
    {"record", 0, record}, /* an event */
    {"await", 0, await},   /* it, once it was recorded */
    {"spin", 1, start_spinning},
    {"rest", 0, stop_spinning}, /* ok LAUNCHES */
    {"count", 0, count_launches},
    {"threads", 3, threads}, /* COUNT ROUNDS SIZE */
    {"device", 1, use},            /* go on with another one */
    {"peer", 1, peer},             /* this device reaches that one's memory */
    {"nopeer", 1, no_peer},
    {"fork", 0, fork_one}, /* ok RESULT of a child's cuMemAlloc */
    {NULL, 0, NULL},
};
