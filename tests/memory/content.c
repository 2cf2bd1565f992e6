/* What lies in a page: a function of the region's key, of who wrote it last, and of the ticks. */
#include "zoo.h"

#include <string.h>

/* splitmix64's finalizer, by Sebastiano Vigna (public domain). */
uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

void random_bytes(uint64_t key, void *buffer, size_t size) {
    uint64_t *words = buffer;

    for (size_t n = 0; n < size / sizeof(*words); n++)
        words[n] = mix(key + n * 0x9e3779b97f4a7c15u);
}

static uint64_t page_key(const struct region *region, unsigned version, size_t page) {
    return mix(mix(region->key + version) + page);
}

/* Whether this process has a counter in the region. */
int counts(const struct region *region, enum role role) {
    if (region->flags & CONSTANT || !region->present)
        return 0;
    return !(region->flags & FLIPPED && role == CHILD);
}

/*
 * Both single pages and a run of 1 MiB were changed after the fork; never the same ones by both,
 * or nobody could tell who was the last in shared memory.
 */
int changed_by(const struct region *region, enum role role, size_t page) {
    if (region->flags & (CONSTANT | SPARSE | WIPED) || page == 0 || guard(region, page))
        return 0;
    if (page % 97 == 5 || (page >= 512 && page < 768))
        return role == CHILD && !(region->flags & FLIPPED);
    return role != CHILD && (page % 89 == 7 || (page >= 1024 && page < 1280));
}

/* The child gave a stretch of private memory back: zeros there, data in its parent. */
int discarded(const struct region *region, enum role role, size_t page) {
    unsigned not_here = SHARED | CONSTANT | FILE_PRIVATE | SPARSE | LOCKED | GUARDED;

    return role == CHILD && !(region->flags & not_here) && page >= 768 && page < 896;
}

int guard(const struct region *region, size_t page) {
    return region->flags & GUARDED && page % 64 >= 60;
}

static int zero_at_first(const struct region *region, size_t page) {
    if (page == 0)
        return 0;
    if (region->flags & SPARSE)
        return page % 16384 != 0;
    if (region->flags & MIXED)
        return page_key(region, 0, page) % 8 == 0 || (page >= 2048 && page < 4096);
    return 0;
}

/* Pages that nobody ever touched: half of the zero ones, in the stretch a whole half of it. */
int untouched(const struct region *region, size_t page) {
    if (!zero_at_first(region, page))
        return 0;
    return region->flags & SPARSE || (page < 2048 ? page % 2 : page < 3072);
}

void first_content(const struct region *region, size_t page, void *buffer) {
    uint64_t key = page_key(region, 0, page);

    memset(buffer, 0, PAGE);
    if (zero_at_first(region, page))
        return;
    if (page != 0 && key % 64 == 1) /* nearly a zero page */
        ((unsigned char *)buffer)[PAGE - 1] = 1;
    else if (page != 0 && key % 64 == 2)
        ((unsigned char *)buffer)[0] = 1;
    else
        random_bytes(key, buffer, PAGE);
}

/* A quarter of what was changed, and a stretch of 512 KiB, was cleared: over data, in a child. */
void changed_content(const struct region *region, enum role by, size_t page, void *buffer) {
    uint64_t key = page_key(region, 1u + (unsigned)by, page);

    if (key % 4 == 0 || (page >= 512 && page < 640))
        memset(buffer, 0, PAGE);
    else
        random_bytes(key, buffer, PAGE);
}

/* A function that returns CODE_ANSWER: mov eax, 17; ret, or the like. */
static void function(unsigned char *place) {
#if defined(__x86_64__)
    static const unsigned char code[] = {0xb8, 17, 0, 0, 0, 0xc3, 0xcc, 0xcc};
#elif defined(__aarch64__)
    static const unsigned char code[] = {0x20, 0x02, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6};
#else
#error "no code for this machine"
#endif
    memcpy(place, code, sizeof(code));
}

/* What the process sees in a page now. Words 0 to ROLES - 1 of the first page are the counters. */
void expected(const struct region *region, enum role role, size_t page, uint64_t ticks,
              void *buffer) {
    uint64_t counters[ROLES] = {0};

    if (region->flags & WIPED && role == CHILD)
        memset(buffer, 0, PAGE);
    else if (region->flags & SHARED && role != ALONE && changed_by(region, CHILD, page))
        changed_content(region, CHILD, page, buffer);
    else if (region->flags & SHARED && role != ALONE && changed_by(region, MAIN, page))
        changed_content(region, MAIN, page, buffer);
    else if (discarded(region, role, page))
        memset(buffer, 0, PAGE);
    else if (changed_by(region, role, page))
        changed_content(region, role, page, buffer);
    else
        first_content(region, page, buffer);
    if (page == 0 && region->flags & CODE)
        function((unsigned char *)buffer + CODE_PLACE);
    if (page != 0 || region->flags & CONSTANT)
        return;
    for (int other = MAIN; other < ROLES; other++)
        if (other == (int)role || (region->flags & SHARED && role != ALONE && other != ALONE))
            counters[other] = counts(region, (enum role)other) ? ticks : 0;
    memcpy(buffer, counters, sizeof(counters));
}
