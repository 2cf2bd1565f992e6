/* See table.h. */
#include "table.h"

#include "entries.h"
#include "system.h"

/* No handle of the driver's looks like that: its own are small numbers or addresses. */
#define MARK UINT64_C(0x7468000000000000)
#define MARK_BITS UINT64_C(0xffff000000000000)

#define SLAB ((size_t)64 << 10)
#define ROOM 512

struct table table;
static uint64_t last_id;

/* What pieces and ranges are cut from; free ones are linked. Never given back. */
struct slab {
    size_t size;
    void *free;
};

static struct slab piece_slab = {sizeof(struct piece), NULL};
static struct slab range_slab = {sizeof(struct range), NULL};

static void give(struct slab *slab, void *item) {
    *(void **)item = slab->free;
    slab->free = item;
}

static void *take(struct slab *slab) {
    void *item;

    if (slab->free == NULL) {
        char *fresh = system_memory(SLAB);

        if (fresh == NULL)
            return NULL;
        for (size_t at = 0; at + slab->size <= SLAB; at += slab->size)
            give(slab, fresh + at);
    }
    item = slab->free;
    slab->free = *(void **)item;
    __builtin_memset(item, 0, slab->size);
    return item;
}

/* Room for one more pointer, in a list that doubles. */
static bool make_room(void *list, size_t count, size_t *room) {
    size_t wanted = *room == 0 ? ROOM : *room * 2;
    void *larger;

    if (count < *room)
        return true;
    larger = system_larger(*(void **)list, *room * sizeof(void *), wanted * sizeof(void *));
    if (larger == NULL)
        return false;
    *(void **)list = larger;
    *room = wanted;
    return true;
}

size_t range_from(address at) {
    size_t low = 0, high = table.range_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct range *range = table.ranges[middle];

        if (range->at + range->size <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

size_t piece_from(uint64_t id) {
    size_t low = 0, high = table.piece_count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (table.pieces[middle]->id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct range *range_at(address at) {
    size_t n = range_from(at);

    return n < table.range_count && table.ranges[n]->at <= at ? table.ranges[n] : NULL;
}

struct piece *piece_by_id(uint64_t id) {
    size_t n = piece_from(id);

    return n < table.piece_count && table.pieces[n]->id == id ? table.pieces[n] : NULL;
}

handle handle_of(const struct piece *piece) {
    return MARK | piece->id;
}

struct piece *piece_by_handle(handle memory) {
    struct piece *piece;

    if ((memory & MARK_BITS) != MARK)
        return NULL;
    piece = piece_by_id(memory & ~MARK_BITS);
    return piece != NULL && piece->users > 0 ? piece : NULL;
}

struct piece *add_piece(uint64_t size, handle real, const struct properties *asked) {
    struct piece *piece;

    if (!make_room(&table.pieces, table.piece_count, &table.piece_room))
        return NULL;
    piece = take(&piece_slab);
    if (piece == NULL)
        return NULL;
    piece->id = ++last_id; /* the largest yet: the list stays in order */
    piece->size = size;
    piece->real = real;
    piece->asked = *asked;
    piece->device = asked->location.type == LOCATION_DEVICE ? asked->location.id : -1;
    piece->kept = MOVABLE;
    table.pieces[table.piece_count++] = piece;
    return piece;
}

struct range *add_range(struct piece *piece, address at, uint64_t size, uint64_t offset) {
    size_t n = range_from(at);
    struct range *range;

    if (!make_room(&table.ranges, table.range_count, &table.range_room))
        return NULL;
    range = take(&range_slab);
    if (range == NULL)
        return NULL;
    range->at = at;
    range->size = size;
    range->offset = offset;
    range->piece = piece;
    range->next = piece->ranges;
    piece->ranges = range;
    __builtin_memmove(table.ranges + n + 1, table.ranges + n,
                      (table.range_count - n) * sizeof(struct range *));
    table.ranges[n] = range;
    table.range_count++;
    return range;
}

void remove_range(struct range *range) {
    size_t n = range_from(range->at);

    table.range_count--;
    __builtin_memmove(table.ranges + n, table.ranges + n + 1,
                      (table.range_count - n) * sizeof(struct range *));
    for (struct range **at = &range->piece->ranges; *at != NULL; at = &(*at)->next)
        if (*at == range) {
            *at = range->next;
            break;
        }
    give(&range_slab, range);
}

bool is_unused(const struct piece *piece) {
    return piece->users == 0 && piece->calls == 0 && piece->ranges == NULL;
}

void remove_piece(struct piece *piece) {
    size_t n = piece_from(piece->id);

    table.piece_count--;
    __builtin_memmove(table.pieces + n, table.pieces + n + 1,
                      (table.piece_count - n) * sizeof(struct piece *));
    give(&piece_slab, piece);
}

int grant(const struct range *range) {
    struct access list[THAW_GPU_DEVICES];
    size_t count = 0;

    for (int device = 0; device < THAW_GPU_DEVICES; device++) {
        bool reads = (range->readers >> device & 1) != 0, writes = (range->writers >> device & 1);

        if (reads || writes)
            list[count++] = (struct access){{LOCATION_DEVICE, device},
                                            writes ? ACCESS_WRITE : ACCESS_READ};
    }
    return count == 0 ? CUDA_SUCCESS : driver.cuMemSetAccess(range->at, range->size, list, count);
}
