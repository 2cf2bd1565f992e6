#define _GNU_SOURCE

#include "finished.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MARKER "thaw.live" /* shim/bundle.py: Bundle.marker */
#define KILLED 137         /* what containerd's own shim answers: 128 + SIGKILL */

/* The value of -name VALUE, -name=VALUE or with two dashes; NULL if it is not given. */
static const char *flag(int argc, char **argv, const char *name) {
    size_t length = strlen(name);

    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];

        if (*word++ != '-')
            continue;
        if (*word == '-')
            word++;
        if (strncmp(word, name, length) != 0)
            continue;
        if (word[length] == '=')
            return word + length + 1;
        if (word[length] == '\0' && i + 1 < argc)
            return argv[i + 1];
    }
    return NULL;
}

/* The bundle's path, as deletion.py computes it: -bundle, or the folder of -id beside ours. */
static bool find_bundle(int argc, char **argv, char *path, size_t size) {
    const char *bundle = flag(argc, argv, "bundle");
    const char *id = flag(argc, argv, "id");
    int length;

    if (bundle != NULL && *bundle != '\0')
        length = snprintf(path, size, "%s", bundle);
    else if (id != NULL && *id != '\0')
        length = snprintf(path, size, "../%s", id);
    else
        return false;
    return length > 0 && (size_t)length < size;
}

static uint64_t read_pid(const char *bundle) {
    char path[4096], text[24] = "";
    int length = snprintf(path, sizeof(path), "%s/init.pid", bundle);
    FILE *file;

    if (length < 0 || (size_t)length >= sizeof(path) || (file = fopen(path, "re")) == NULL)
        return 0;
    if (fgets(text, sizeof(text), file) == NULL)
        text[0] = '\0';
    fclose(file);
    return strtoul(text, NULL, 10) & UINT32_MAX;
}

/* One varint field of a protobuf message; zero is not written. */
static unsigned char *put(unsigned char *at, unsigned char field, uint64_t value) {
    if (value == 0)
        return at;
    *at++ = (unsigned char)(field << 3);
    for (; value > 0x7f; value >>= 7)
        *at++ = (unsigned char)(value | 0x80);
    *at++ = (unsigned char)value;
    return at;
}

/* containerd.task.v2.DeleteResponse: 1 pid, 2 exit status, 3 exited at (1 seconds, 2 nanos). */
static bool answer(uint64_t pid) {
    unsigned char message[64], stamp[32], *end;
    struct timespec now;
    size_t length;

    clock_gettime(CLOCK_REALTIME, &now);
    end = put(put(stamp, 1, (uint64_t)now.tv_sec), 2, (uint64_t)now.tv_nsec);
    length = (size_t)(end - stamp);
    end = put(put(message, 1, pid), 2, KILLED);
    *end++ = 3 << 3 | 2; /* a message of `length` bytes, fewer than 128 */
    *end++ = (unsigned char)length;
    memcpy(end, stamp, length);
    end += length;
    return write(STDOUT_FILENO, message, (size_t)(end - message)) == end - message;
}

bool answer_finished_delete(int argc, char **argv) {
    char bundle[4096], marker[4096 + sizeof(MARKER)];

    if (argc < 2 || strcmp(argv[argc - 1], "delete") != 0 ||
        !find_bundle(argc, argv, bundle, sizeof(bundle)))
        return false;
    snprintf(marker, sizeof(marker), "%s/%s", bundle, MARKER);
    if (access(marker, F_OK) == 0 || errno != ENOENT)
        return false;
    return answer(read_pid(bundle));
}
