/* Which processors a thread runs on, and which memory node its first touch takes memory from. */
#define _GNU_SOURCE

#include "fill.h"

#include <linux/mempolicy.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NODES = 1024, WORD = 8 * sizeof(unsigned long) };

/* A list of sysfs, such as "0-3,8": those of `own` among them. */
static void parse(const char *text, const cpu_set_t *own, cpu_set_t *found) {
    char *end;

    CPU_ZERO(found);
    for (; *text >= '0' && *text <= '9'; text = end + (*end == ',')) {
        unsigned long first = strtoul(text, &end, 10), last = first;

        if (*end == '-')
            last = strtoul(end + 1, &end, 10);
        for (unsigned long cpu = first; cpu <= last && cpu < CPU_SETSIZE; cpu++)
            if (CPU_ISSET(cpu, own))
                CPU_SET(cpu, found);
    }
}

static bool place_find(const char *root, int node, const cpu_set_t *own, struct place *place) {
    char path[256], text[4096];
    FILE *file;
    bool found;

    snprintf(path, sizeof(path), "%s/node%d/cpulist", root, node);
    file = fopen(path, "re");
    if (file == NULL)
        return false;
    /* A line without its end is cut off, perhaps within a number. */
    found = fgets(text, sizeof(text), file) != NULL && strchr(text, '\n') != NULL;
    fclose(file);
    if (!found)
        return false;
    parse(text, own, &place->processors);
    place->node = node;
    return CPU_COUNT(&place->processors) > 0;
}

size_t places_find(const char *root, const int *nodes, size_t count, const cpu_set_t *own,
                   struct place *places) {
    size_t made = 0;

    for (size_t number = 0; number < count; number++)
        if (nodes[number] >= 0 && nodes[number] < NODES &&
            place_find(root, nodes[number], own, &places[made]))
            made++;
    return made;
}

uint32_t places_processors(const struct place *places, size_t count) {
    cpu_set_t all;

    CPU_ZERO(&all);
    for (size_t number = 0; number < count; number++)
        CPU_OR(&all, &all, &places[number].processors);
    return (uint32_t)CPU_COUNT(&all);
}

/*
 * Not being allowed to is no failure: it is only slower. A page that process_vm_writev has to make
 * comes from where the policy of the writing thread says (get_vma_policy, get_task_policy).
 */
void place_enter(const struct place *place) {
    unsigned long mask[NODES / WORD] = {0};
    unsigned int node = (unsigned int)place->node;

    if (place->node < 0)
        return;
    sched_setaffinity(0, sizeof(place->processors), &place->processors);
    mask[node / WORD] = 1UL << node % WORD;
    /* One more than there are: the kernel takes one off (get_nodes). */
    syscall(SYS_set_mempolicy, MPOL_PREFERRED, mask, (unsigned long)NODES + 1);
}
