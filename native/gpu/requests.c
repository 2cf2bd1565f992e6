/* See requests.h. All of it happens in the library's thread, one request after the other. */
#include "requests.h"

#include "allocations.h"
#include "captures.h"
#include "contexts.h"
#include "counted.h"
#include "drain.h"
#include "entries.h"
#include "gate.h"
#include "moving.h"
#include "system.h"
#include "table.h"

#define MILLISECOND UINT64_C(1000000)

static enum thaw_gpu_state state;

static void say(struct message *message, enum thaw_gpu_status status, const char *text) {
    message->header.status = status;
    text_copy(message->header.text, sizeof(message->header.text), text);
}

static void say_result(struct message *message, int result, const char *call) {
    if (result == CUDA_SUCCESS)
        return;
    say(message, THAW_GPU_CUDA, call);
    message->header.value = (uint64_t)(unsigned int)result;
}

static void name_devices(struct thaw_gpu_about *about) {
    int count = 0;

    if (driver.cuDeviceGetCount == NULL || driver.cuDeviceGetCount(&count) != CUDA_SUCCESS)
        return;
    for (int device = 0; device < count && device < THAW_GPU_DEVICES; device++) {
        unsigned char *uuid = about->uuids[device];
        int result = CUDA_NOT_SUPPORTED;

        /* The second knows the parts of a GPU (MIG), too. */
        if (driver.cuDeviceGetUuid_v2 != NULL)
            result = driver.cuDeviceGetUuid_v2(uuid, device);
        else if (driver.cuDeviceGetUuid != NULL)
            result = driver.cuDeviceGetUuid(uuid, device);
        if (result == CUDA_SUCCESS)
            about->devices = (uint32_t)device + 1;
    }
}

static void hello(struct message *message) {
    struct thaw_gpu_about *about = &message->body.about;

    __builtin_memset(about, 0, sizeof(*about));
    counted(about->left);
    lock_read(&table.lock);
    for (size_t n = 0; n < table.piece_count; n++) {
        const struct piece *piece = table.pieces[n];

        if (piece->given)
            about->flags = THAW_GPU_GIVEN;
        if (is_movable(piece)) {
            about->movable += piece->size;
            about->pieces++;
        } else if (piece->kept == THAW_GPU_LEFT_IMPORTED || piece->given) {
            about->left[THAW_GPU_LEFT_IMPORTED] += piece->size > 0 ? piece->size : 1;
        } else if (piece->device >= 0) {
            about->left[piece->kept < MOVABLE ? piece->kept : THAW_GPU_LEFT_OTHER] += piece->size;
        }
    }
    unlock_read(&table.lock);
    name_devices(about);
    message->header.count = 1;
    message->size = sizeof(*about);
}

/* Closes the gate at a moment when no stream is captured; false: there was none in time. */
static bool close_gate(uint64_t until) {
    for (;;) {
        uint64_t now = system_nanoseconds();

        if (!captures_under_way()) {
            if (!gate_close(now < until ? until - now : 0))
                return false;
            if (!captures_under_way())
                return true;
            gate_open();
        }
        if (now >= until)
            return false;
        system_sleep(MILLISECOND);
    }
}

static void hold(struct message *message) {
    uint64_t limit = message->header.value;
    uint64_t until, now;
    int result = CUDA_SUCCESS;

    if (state != THAW_GPU_RUNNING) {
        say(message, THAW_GPU_WRONG, "held already");
        return;
    }
    limit = limit < UINT32_MAX ? limit : UINT32_MAX;
    until = system_nanoseconds() + limit * MILLISECOND;
    if (!close_gate(until)) {
        say(message, THAW_GPU_BUSY, "calls are under way");
        return;
    }
    now = system_nanoseconds();
    if (!drain(now < until ? until - now : 0, &result)) {
        gate_open();
        say(message, THAW_GPU_BUSY, "the GPU is at work");
    } else if (result != CUDA_SUCCESS) {
        gate_open();
        say_result(message, result, "cuCtxSynchronize");
    } else {
        free_postponed();
        for (size_t n = 0; n < table.piece_count; n++)
            table.pieces[n]->out = false;
        state = THAW_GPU_HELD;
    }
}

static void export(struct message *message) {
    size_t first = piece_from(message->header.value);

    if (state != THAW_GPU_HELD) {
        say(message, THAW_GPU_WRONG, "only while held");
        return;
    }
    for (size_t n = first; n < table.piece_count && message->count < THAW_GPU_RECORDS; n++) {
        struct piece *piece = table.pieces[n];
        const char *call = "";
        int result;

        if (!is_movable(piece))
            continue;
        result = export_memory(piece, &message->descriptors[message->count], &call);
        if (result != CUDA_SUCCESS) {
            say_result(message, result, call);
            break;
        }
        message->body.records[message->count++] =
            (struct thaw_gpu_memory){piece->id, piece->size, (uint32_t)piece->device,
                                     piece->asked.flags.rdma != 0 ? THAW_GPU_RDMA : 0};
    }
    if (message->header.status == THAW_GPU_OK) {
        message->header.count = (uint32_t)message->count;
        message->size = message->count * sizeof(struct thaw_gpu_memory);
    } else if (any_away()) {
        state = THAW_GPU_EMPTIED;
    }
}

void was_sent(const struct message *message) {
    if (message->header.kind == THAW_GPU_EXPORT)
        for (size_t n = 0; n < message->count; n++)
            piece_by_id(message->body.records[n].id)->out = true;
}

static void empty(struct message *message) {
    const char *call = "";
    int result;

    if (state != THAW_GPU_HELD) {
        say(message, THAW_GPU_WRONG, "only while held");
        return;
    }
    result = empty_memory(&call);
    if (result == CUDA_SUCCESS || any_away())
        state = THAW_GPU_EMPTIED;
    say_result(message, result, call);
}

static const char *wrong_with(const struct thaw_gpu_memory *record, const struct piece *piece) {
    if (piece == NULL)
        return "no such memory";
    if (!piece->away)
        return "given already";
    if (record->size != piece->size)
        return "another size";
    if (record->device != (uint32_t)piece->device)
        return "another device";
    return NULL;
}

static void make_anew(struct message *message) {
    const struct thaw_gpu_memory *record = &message->body.records[0];
    struct piece *piece = piece_by_id(record->id);
    const char *wrong = wrong_with(record, piece), *call = "";
    int result;

    if (state != THAW_GPU_EMPTIED)
        wrong = "only while emptied";
    else if (wrong == NULL && piece->real != 0)
        wrong = "it has stayed";
    if (wrong != NULL) {
        say(message, THAW_GPU_WRONG, wrong);
        return;
    }
    result = make_memory(piece, &message->descriptors[0], &call);
    say_result(message, result, call);
    if (result == CUDA_SUCCESS) {
        message->header.count = 1;
        message->count = 1;
        message->size = sizeof(*record);
    }
}

static void take_back(struct message *message, uint32_t count, size_t descriptors) {
    if (state != THAW_GPU_EMPTIED) {
        say(message, THAW_GPU_WRONG, "only while emptied");
        return;
    }
    if (count != descriptors) {
        say(message, THAW_GPU_WRONG, "one descriptor for each record");
        return;
    }
    for (uint32_t n = 0; n < count && message->header.status == THAW_GPU_OK; n++) {
        const struct thaw_gpu_memory *record = &message->body.records[n];
        struct piece *piece = piece_by_id(record->id);
        const char *wrong = wrong_with(record, piece), *call = "";
        int result = CUDA_SUCCESS;

        if (wrong != NULL)
            say(message, THAW_GPU_WRONG, wrong);
        else
            result = take_memory(piece, message->descriptors[n], &call);
        say_result(message, result, call);
    }
}

static void go_on(struct message *message) {
    if (state == THAW_GPU_EMPTIED)
        map_what_stayed();
    if (state == THAW_GPU_EMPTIED && any_away()) {
        say(message, THAW_GPU_MISSING, "not all was given back");
        return;
    }
    if (state != THAW_GPU_RUNNING)
        gate_open();
    state = THAW_GPU_RUNNING;
}

/* NULL: it is as long as it says. */
static const char *malformed(const struct message *message) {
    const struct thaw_gpu_header *header = &message->header;

    if (header->kind != THAW_GPU_GIVE && header->kind != THAW_GPU_MAKE)
        return header->count == 0 && message->size == 0 ? NULL : "no records wanted";
    if (header->kind == THAW_GPU_MAKE && header->count != 1)
        return "one record wanted";
    return header->count <= THAW_GPU_RECORDS &&
                   message->size == header->count * sizeof(struct thaw_gpu_memory)
               ? NULL
               : "not as many records as it says";
}

void answer(struct message *message) {
    const char *wrong = malformed(message);
    uint32_t kind = message->header.kind, count = message->header.count;
    uint64_t value = message->header.value;
    size_t descriptors = message->count;

    message->header = (struct thaw_gpu_header){.kind = kind, .value = value};
    message->size = 0;
    message->count = 0;
    if (wrong != NULL) {
        say(message, THAW_GPU_WRONG, wrong);
    } else if (kind == THAW_GPU_GIVE) {
        take_back(message, count, descriptors);
    } else if (descriptors > 0) {
        say(message, THAW_GPU_WRONG, "no descriptors wanted");
    } else if (kind == THAW_GPU_HELLO) {
        hello(message);
    } else if (kind == THAW_GPU_HOLD) {
        hold(message);
    } else if (kind == THAW_GPU_EXPORT) {
        export(message);
    } else if (kind == THAW_GPU_EMPTY) {
        empty(message);
    } else if (kind == THAW_GPU_OPEN) {
        go_on(message);
    } else if (kind == THAW_GPU_MAKE) {
        make_anew(message);
    } else {
        say(message, THAW_GPU_WRONG, "no such request");
    }
    if (message->header.status != THAW_GPU_CUDA)
        message->header.value = 0;
    message->header.state = state;
}
