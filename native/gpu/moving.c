/* See moving.h. */
#include "moving.h"

#include "contexts.h"
#include "entries.h"
#include "system.h"

/*
 * Whether the driver has refused to take memory that others have made. It does so (580.159.04, with
 * INVALID_DEVICE) in a process that it has restored on a GPU of which that process had not known:
 * what would be taken out of it could never come back.
 */
static bool confined;

bool is_movable(const struct piece *piece) {
    return !confined && piece->kept == MOVABLE && piece->size > 0 && piece->device >= 0;
}

static int export(struct piece *piece, int *descriptor, const char **call) {
    *call = "cuMemExportToShareableHandle";
    return driver.cuMemExportToShareableHandle(descriptor, piece->real, TYPE_DESCRIPTOR, 0);
}

/*
 * The driver may refuse to export what another process has made, and what it has itself restored
 * once. New memory it does export.
 */
int export_memory(struct piece *piece, int *descriptor, const char **call) {
    bool entered = context_enter(context_on(piece->device));
    int result = export(piece, descriptor, call);

    if (result != CUDA_SUCCESS && result != CUDA_OUT_OF_MEMORY) {
        result = rehome(piece, call);
        if (result == CUDA_SUCCESS)
            result = export(piece, descriptor, call);
    }
    context_leave(entered);
    return result;
}

static int map(const struct range *range, const char **call) {
    int result = driver.cuMemMap(range->at, range->size, range->offset, range->piece->real, 0);

    *call = "cuMemMap";
    if (result != CUDA_SUCCESS)
        return result;
    *call = "cuMemSetAccess";
    result = grant(range);
    if (result != CUDA_SUCCESS)
        driver.cuMemUnmap(range->at, range->size);
    return result;
}

/* The device's context is current meanwhile, as where programs make such calls. */
int map_piece(const struct piece *piece, const char **call) {
    bool entered = context_enter(context_on(piece->device));
    const struct range *range;
    int result = CUDA_SUCCESS;

    for (range = piece->ranges; range != NULL; range = range->next) {
        result = map(range, call);
        if (result != CUDA_SUCCESS)
            break;
    }
    if (result != CUDA_SUCCESS)
        for (const struct range *done = piece->ranges; done != range; done = done->next)
            driver.cuMemUnmap(done->at, done->size);
    context_leave(entered);
    return result;
}

int unmap_piece(const struct piece *piece) {
    bool entered = context_enter(context_on(piece->device));
    const char *ignored;
    const struct range *range;
    int result = CUDA_SUCCESS;

    for (range = piece->ranges; range != NULL; range = range->next) {
        result = driver.cuMemUnmap(range->at, range->size);
        if (result != CUDA_SUCCESS)
            break;
    }
    if (result != CUDA_SUCCESS)
        for (const struct range *done = piece->ranges; done != range; done = done->next)
            map(done, &ignored);
    context_leave(entered);
    return result;
}

/*
 * First all is unmapped, which can be undone; then all is released. What fails to be released stays
 * in this process: it is mapped again when it is given back.
 */
int empty_memory(const char **call) {
    const char *ignored;
    int result = CUDA_SUCCESS;
    size_t n;

    *call = "cuMemUnmap";
    for (n = 0; n < table.piece_count && result == CUDA_SUCCESS; n++)
        if (table.pieces[n]->out) {
            result = unmap_piece(table.pieces[n]);
            table.pieces[n]->away = result == CUDA_SUCCESS;
        }
    if (result != CUDA_SUCCESS) {
        for (size_t k = 0; k < n; k++)
            if (table.pieces[k]->away)
                table.pieces[k]->away = map_piece(table.pieces[k], &ignored) != CUDA_SUCCESS;
        return result;
    }
    *call = "cuMemRelease";
    for (n = 0; n < table.piece_count && result == CUDA_SUCCESS; n++)
        if (table.pieces[n]->away) {
            result = driver.cuMemRelease(table.pieces[n]->real);
            if (result == CUDA_SUCCESS)
                table.pieces[n]->real = 0;
        }
    return result;
}

static int import(struct piece *piece, int descriptor) {
    bool entered = context_enter(context_on(piece->device));
    int result = driver.cuMemImportFromShareableHandle(
        &piece->real, (void *)(uintptr_t)(unsigned int)descriptor, TYPE_DESCRIPTOR);

    context_leave(entered);
    return result;
}

int take_memory(struct piece *piece, int descriptor, const char **call) {
    bool kept = piece->real != 0;
    int result = CUDA_SUCCESS;

    *call = "cuMemImportFromShareableHandle";
    if (!kept)
        result = import(piece, descriptor);
    if (result != CUDA_SUCCESS) {
        piece->real = 0;
        return result;
    }
    result = map_piece(piece, call);
    piece->away = result != CUDA_SUCCESS;
    if (!kept)
        piece->given = result == CUDA_SUCCESS;
    if (result != CUDA_SUCCESS && !kept) {
        driver.cuMemRelease(piece->real);
        piece->real = 0;
    }
    return result;
}

int make_memory(struct piece *piece, int *descriptor, const char **call) {
    struct properties wanted = piece->asked;
    bool entered = context_enter(context_on(piece->device));
    int result;

    wanted.handle_types |= TYPE_DESCRIPTOR;
    *call = "cuMemCreate";
    result = driver.cuMemCreate(&piece->real, piece->size, &wanted, 0);
    if (result == CUDA_SUCCESS) {
        result = export(piece, descriptor, call);
        if (result == CUDA_SUCCESS) {
            result = map_piece(piece, call);
            if (result != CUDA_SUCCESS)
                SYSTEM_CALL(SYS_close, *descriptor, 0, 0, 0, 0, 0);
        }
        if (result != CUDA_SUCCESS)
            driver.cuMemRelease(piece->real);
    }
    context_leave(entered);
    if (result != CUDA_SUCCESS) {
        piece->real = 0;
        return result;
    }
    piece->away = piece->given = false;
    confined = true;
    return CUDA_SUCCESS;
}

void map_what_stayed(void) {
    const char *ignored;

    for (size_t n = 0; n < table.piece_count; n++) {
        struct piece *piece = table.pieces[n];

        if (piece->away && piece->real != 0)
            piece->away = map_piece(piece, &ignored) != CUDA_SUCCESS;
    }
}

bool any_given(void) {
    bool given = false;

    lock_read(&table.lock);
    for (size_t n = 0; n < table.piece_count && !given; n++)
        given = table.pieces[n]->given;
    unlock_read(&table.lock);
    return given;
}

bool any_away(void) {
    bool away = false;

    for (size_t n = 0; n < table.piece_count && !away; n++)
        away = table.pieces[n]->away;
    return away;
}
