/* See objects.h. */
#define _GNU_SOURCE
#include "objects.h"

#include "system.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdatomic.h>

/* What this library asks the loader to find for it, beside the environment. Weak: it does without,
   too. */
typedef __typeof__(dl_iterate_phdr) iterate_function;
extern iterate_function dl_iterate_phdr __attribute__((weak));
extern struct r_debug _r_debug __attribute__((weak));        /* glibc's */
extern struct r_debug *_dl_debug_addr __attribute__((weak)); /* musl's */

#define PATH 4096 /* bytes, as the kernel has it */

struct loaded {
    ElfW(Addr) base;
    const ElfW(Dyn) * dynamic; /* NULL: it has none */
};

/* Of one loaded file. */
struct tables {
    const ElfW(Sym) * symbols;
    const char *strings;
    const uint32_t *gnu;   /* DT_GNU_HASH */
    const uint32_t *plain; /* DT_HASH */
};

struct search {
    const char *file, *name; /* NULL: any file; none wanted */
    bool after;              /* only files that come after this library */
    bool here;               /* this library has come by */
    char *path;              /* PATH bytes for that of such a file; NULL: not wanted */
    void *found;
};

static struct loaded loaded(const struct dl_phdr_info *info) {
    struct loaded file = {info->dlpi_addr, NULL};

    for (size_t n = 0; n < info->dlpi_phnum; n++)
        if (info->dlpi_phdr[n].p_type == PT_DYNAMIC)
            file.dynamic = (const ElfW(Dyn) *)(file.base + info->dlpi_phdr[n].p_vaddr);
    return file;
}

static bool contains(const struct dl_phdr_info *info, const void *address) {
    for (size_t n = 0; n < info->dlpi_phnum; n++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[n];

        if (part->p_type == PT_LOAD &&
            (uintptr_t)address - info->dlpi_addr - part->p_vaddr < part->p_memsz)
            return true;
    }
    return false;
}

/* glibc has made addresses of the file's offsets; musl has not, nor has anyone of the vDSO's. */
static const void *place(const struct loaded *file, ElfW(Addr) value) {
    return (const void *)(value < file->base ? value + file->base : value);
}

static bool read_tables(const struct loaded *file, struct tables *tables) {
    *tables = (struct tables){NULL, NULL, NULL, NULL};
    if (file->dynamic == NULL)
        return false;
    for (const ElfW(Dyn) *at = file->dynamic; at->d_tag != DT_NULL; at++) {
        if (at->d_tag == DT_SYMTAB)
            tables->symbols = place(file, at->d_un.d_ptr);
        else if (at->d_tag == DT_STRTAB)
            tables->strings = place(file, at->d_un.d_ptr);
        else if (at->d_tag == DT_GNU_HASH)
            tables->gnu = place(file, at->d_un.d_ptr);
        else if (at->d_tag == DT_HASH)
            tables->plain = place(file, at->d_un.d_ptr);
    }
    return tables->symbols != NULL && tables->strings != NULL;
}

static bool fits(const struct tables *tables, uint32_t number, const char *name) {
    const ElfW(Sym) *symbol = &tables->symbols[number];
    unsigned int type = ELF64_ST_TYPE(symbol->st_info);

    return symbol->st_shndx != SHN_UNDEF && (type == STT_FUNC || type == STT_NOTYPE) &&
           text_equal(tables->strings + symbol->st_name, name);
}

/* The table begins with: buckets, the first symbol in it, words of the filter, a shift. */
static uint32_t by_gnu(const struct tables *tables, const char *name) {
    const uint32_t *table = tables->gnu;
    const uint32_t *buckets = table + 4 + table[2] * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
    const uint32_t *chain = buckets + table[0];
    uint32_t hash = 5381, number;

    for (const char *at = name; *at != '\0'; at++)
        hash = hash * 33 + (unsigned char)*at;
    if (table[0] == 0)
        return 0;
    number = buckets[hash % table[0]];
    if (number < table[1])
        return 0;
    for (;; number++) {
        uint32_t other = chain[number - table[1]];

        if ((other | 1) == (hash | 1) && fits(tables, number, name))
            return number;
        if ((other & 1) != 0)
            return 0;
    }
}

/* One symbol after the other: the table says how many there are. */
static uint32_t by_number(const struct tables *tables, const char *name) {
    for (uint32_t number = 1; number < tables->plain[1]; number++)
        if (fits(tables, number, name))
            return number;
    return 0;
}

static void *function(const struct loaded *file, const char *name) {
    struct tables tables;
    uint32_t number = 0;

    if (!read_tables(file, &tables))
        return NULL;
    if (tables.gnu != NULL)
        number = by_gnu(&tables, name);
    else if (tables.plain != NULL)
        number = by_number(&tables, name);
    return number == 0 ? NULL : (void *)(file->base + tables.symbols[number].st_value);
}

static const char *base_name(const char *path) {
    const char *base = path;

    for (; *path != '\0'; path++)
        if (*path == '/')
            base = path + 1;
    return base;
}

static int look(struct dl_phdr_info *info, size_t size, void *data) {
    struct search *search = data;
    struct loaded file = loaded(info);

    (void)size;
    if (contains(info, (const void *)&read_tables)) {
        search->here = true;
        return 0;
    }
    if ((search->after && !search->here) ||
        (search->file != NULL && !text_begins(base_name(info->dlpi_name), search->file)))
        return 0;
    if (search->path != NULL)
        text_copy(search->path, PATH, info->dlpi_name);
    if (search->name == NULL)
        return 1;
    search->found = function(&file, search->name);
    return search->found != NULL;
}

/*
 * The C library's own. A program may have one in front of it, which finds that by dlsym(3), and so
 * by us, when it is called, or has not found it yet. The list is read without the loader's lock,
 * but only up to the C library: what comes before that was loaded with the program, and stays.
 */
static iterate_function *real_iterate(void) {
    static _Atomic(iterate_function *) known;
    iterate_function *iterate = atomic_load(&known);
    const struct link_map *map = NULL;

    if (iterate != NULL)
        return iterate;
    if (&_r_debug != NULL)
        map = _r_debug.r_map;
    else if (&_dl_debug_addr != NULL)
        map = _dl_debug_addr->r_map;
    for (; map != NULL && iterate == NULL; map = map->l_next) {
        struct loaded file = {map->l_addr, map->l_ld};

        if (function(&file, "__libc_start_main") != NULL)
            iterate = (iterate_function *)function(&file, "dl_iterate_phdr");
    }
    if (iterate == NULL)
        iterate = dl_iterate_phdr;
    atomic_store(&known, iterate);
    return iterate;
}

static bool found(struct search *search) {
    iterate_function *iterate = real_iterate();

    return iterate != NULL && iterate(look, search) != 0;
}

void *object_function(const char *file, const char *name) {
    struct search search = {.file = file, .name = name};

    return found(&search) ? search.found : NULL;
}

void *next_function(const char *name) {
    struct search search = {.name = name, .after = true};

    return found(&search) ? search.found : NULL;
}

/* A program may open the driver's library to see whether there is one, and close it again. */
bool object_kept(const char *file) {
    char path[PATH];
    struct search search = {.file = file, .path = path};
    void *(*open)(const char *path, int flags);

    if (!found(&search))
        return false;
    open = (__typeof__(open))object_function("", "dlopen");
    return open != NULL && open(path, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE) != NULL;
}
