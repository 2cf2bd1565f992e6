/*
 * What the files of the fake libcuda have in common: see libcuda.c.
 *
 * A function of the driver is written CALL(name, arguments) { ... }, so that tests/fakes/cuda.py
 * finds them all; ENTER comes first in those that are about the calling process itself.
 */
#pragma once

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))
#define CALL(name, ...)                                                                            \
    EXPORT int name(__VA_ARGS__);                                                                  \
    EXPORT int name(__VA_ARGS__)

enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    OPERATING_SYSTEM = 304,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    PEER_ACCESS_ALREADY_ENABLED = 704,
    PEER_ACCESS_NOT_ENABLED = 705,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901
};

/* ---- the world: libcuda_world.c ------------------------------------------------------------ */

enum { RUNNING, LOCKED, CHECKPOINTED, FAILED, CHECKPOINTING, RESTORING, STATES, NOBODY = -1 };

extern const char *const names[STATES];
extern atomic_bool initialized;

enum { DEVICES = 16 };

/* What cuInit leaves in the memory of whoever calls it; others read and write it there. */
extern struct own {
    char mark[16];
    volatile int state;
    atomic_int imported; /* mappings of memory that came from another process */
    volatile int watched; /* 1: somebody looks at `turn`; libcuda_away.c */
    volatile int turn;
    volatile int gpus[DEVICES]; /* which one each device is: a number as of tests/fakes/nvml.py */
} own;
enum { HERE, GO, AWAY, COME }; /* `turn`: where VMM memory is, and what shall be done */
extern const char mark[16];

/* Opens FOLDER/NAME; -1 if that is not there. */
int world(int flags, const char *format, ...) __attribute__((format(printf, 2, 3)));
bool is_so(const char *name); /* whether there is such a file */
/* What the file says, as a string; false if it is not there. Closes it. */
bool content(int fd, char *text, size_t size);
int state_of(int pid);
int imported_by(int pid); /* `imported` of its `own` */
void set_state(int pid, const char *state);
/* From now on its devices are others: `count` times an UUID's 16 bytes, and another's. */
void change_gpus(int pid, const unsigned char *pairs, unsigned count);
/* Has a process move its VMM memory, and waits until it has; false if that takes too long. */
bool move_memory(int pid, int wanted, int then);
int unknown(int pid);
void log_line(const char *what, const char *call, int pid, int result, const char *detail);
bool delay(const char *call, int pid);
bool answer(const char *call, int pid, int *result);
int version(void);

/* ---- the calling process: libcuda_context.c ------------------------------------------------ */

struct context {
    int device;
    bool primary;
    int retained; /* of a primary one */
    unsigned peers; /* a bit for each device whose memory it reaches */
    unsigned flags;
    struct context *next;
};

/* What a call that has much to do begins with: waits while the process is not running, for as long
   as FOLDER/holds/CALL[.PID] is there, and as long as delays/CALL says. What is to be answered at
   once, or -1: it has its work to do. */
int enter(const char *call);

#define ENTER_AS(call)                                                                             \
    do {                                                                                           \
        int said_ = enter(call);                                                                   \
        if (said_ >= 0)                                                                            \
            return said_;                                                                          \
    } while (0)
#define ENTER() ENTER_AS(__func__)

/* The same, with nothing but a current context, which comes back. */
#define ENTER_CONTEXT_AS(call, variable)                                                           \
    struct context *variable;                                                                      \
    ENTER_AS(call);                                                                                \
    variable = current();                                                                          \
    if (variable == NULL)                                                                          \
        return INVALID_CONTEXT
#define ENTER_CONTEXT(variable) ENTER_CONTEXT_AS(__func__, variable)

struct context *current(void); /* NULL: there is none */
bool is_context(const struct context *context);
int device_count(void);
bool rdma_capable(void); /* of VMM memory; not if there is a file FOLDER/no-rdma */
void uuid_of(int device, unsigned char uuid[16]); /* as tests/fakes/nvml.py numbers them */
bool reaches(int device, int other); /* by a context of `device` with peer access to `other` */
void note_init(void);

/* ---- memory: libcuda_memory.c and libcuda_vmm.c -------------------------------------------- */

#define GRANULARITY ((size_t)2 << 20)

enum kind { LINEAR, POOLED, MANAGED, REGISTERED, OPENED };

struct ipc { /* CUipcMemHandle */
    uint64_t start, size, pid;
    uint64_t more[5];
};

struct piece {
    uintptr_t at;
    size_t size;   /* as asked for */
    size_t mapped; /* bytes of the mapping; 0: the program's own memory, registered */
    enum kind kind;
    int device;
    struct context *context;
    unsigned long long id;
    struct ipc ipc; /* that it was opened by, */
    int opened;     /* so often */
    struct piece *next;
};

struct location {
    int type, id; /* 1: device */
};

struct properties { /* CUmemAllocationProp */
    int type, handle_types;
    struct location location;
    void *win32;
    unsigned char compression, rdma;
    unsigned short usage;
    unsigned char reserved[4];
};

struct access { /* CUmemAccessDesc */
    struct location location;
    int flags;
};

/* What all processes share of a multicast group. */
struct group {
    unsigned wanted;          /* devices; 0: it is none, but memory */
    atomic_uint added, bound; /* GPUs, by bit: own.gpus */
};

/* Behind the end of memory's file: what it is. The file of a group ends with it, too. */
struct about {
    char mark[16];
    unsigned char uuid[16];
    uint64_t size;
};

struct handle {
    unsigned long long id;
    size_t size;
    struct group *group; /* NULL: it is memory */
    int references, mappings; /* of the program; of addresses */
    int fd;                   /* -1 while it is away */
    void *away;               /* where it is then */
    bool imported;
    struct properties properties;
    struct handle *next;
};

struct mapping {
    uintptr_t at;
    size_t size, offset;
    struct handle *handle;
    unsigned char access[DEVICES]; /* flags: 1 read, 3 read and write */
    struct mapping *next;
};

extern struct handle *handles;
extern struct mapping *mappings;

bool aligned(uint64_t number); /* to the granularity, and not zero */
struct handle *handle_of(uint64_t id);
void settle(struct handle *handle); /* it goes when neither the program nor an address has it */
bool overlaps_mapping(uintptr_t at, size_t size);
int memory_file(size_t size, int device, bool rdma);
int new_handle(uint64_t *id, size_t size, const struct properties *properties, int fd,
               bool imported);
void find_group(struct handle *handle); /* that its file tells of, if it does */
void await_group(uint64_t id); /* until all of its devices were added, if it is one */
size_t granularity(void); /* of VMM memory: GRANULARITY, or what THAW_FAKE_GRANULARITY says */
int protection_of(const struct mapping *mapping);
void watch_over_memory(void); /* from now on others may have it moved */
void free_all_of(const struct context *context);

/* All tables are read and written with this held; it is taken by these two only. */
void lock_tables(void);
void unlock_tables(void);

/* Takes note of memory that a device needs; false if it has not so much left. */
bool charge(int device, size_t size);
void discharge(int device, size_t size);

/* With the tables locked: what `at` lies in; NULL for neither. */
struct piece *piece_at(uintptr_t at);
struct mapping *mapping_at(uintptr_t at);
const struct properties *properties_of(const struct mapping *mapping);
unsigned long long id_of(const struct mapping *mapping);

/* Whether a device gets at all of it. Locks the tables itself. */
bool accessible(uintptr_t at, size_t size, int device, bool write);
bool is_reserved(uintptr_t at, size_t size); /* for VMM memory, mapped or not */

/* ---- streams: libcuda_stream.c and libcuda_graph.c ----------------------------------------- */

/* One thing that a device does, when its turn in the stream comes. */
struct work {
    int (*run)(const struct work *work);
    int device;
    uintptr_t to, from;
    size_t size;
    uint64_t value;  /* memset: the byte; copies: which sides are a device's; fill: its seed */
    uint64_t number; /* in its stream */
    struct work *next;
};

struct stream {
    struct context *context;
    unsigned flags;
    struct work *first, **last;
    uint64_t asked; /* pieces of work, ever */
    struct graph *capture; /* of what is asked for now */
    int mode;              /* of the capture */
    bool spoilt;           /* it is no good any more */
    bool ended;            /* it stays in the list, as others may be looking at it */
    pthread_mutex_t turn;  /* held by who does its work */
    struct stream *next;
};

struct graph {
    struct work *first, **last;
};

extern struct stream *streams;
extern pthread_mutex_t stream_guard; /* of all lists of streams and of work */
bool is_stream(const struct stream *wanted);
struct stream *stream_of(struct stream *stream); /* what 0 stands for, too; NULL: no stream */

/* Has it done now, or later, in order. A stream that is captured keeps it for the graph. */
int submit(struct stream *stream, const struct work *work);
int run_now(const struct work *work); /* when everything before has ended */
int set_memory(const struct work *work); /* the work of a memset: libcuda_copy.c */
int drain_stream(struct stream *stream);
/* Whether a capture is under way that forbids to wait for this context; NULL: to make or free memory. */
bool capture_forbids(const struct context *context);
int drain_context(const struct context *context); /* NULL: of all */
void spoil_captures(const struct context *context);
