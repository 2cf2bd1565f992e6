/*
 * A program that uses a GPU, as it is told: for the tests of the GPU memory library, on the fake
 * driver. gpu_program.h says how it finds that, tests/fakes/gpu.py builds and starts it.
 *
 *     gpu_program                 a command from stdin, one line of an answer, and so on
 *     gpu_program serve PORT      the same on the loopback interface, a connection for each command
 *     gpu_program ask PORT WORDS  asks such a server; exits with 1 if it answers an error
 *
 * An answer is "ok" and what was wanted, or "error RESULT CALL". Memory has numbers, from 1 on, that
 * it is known by; sizes are bytes, or with K, M, G.
 *
 * The commands stand at the end of gpu_program_memory.c and gpu_program_work.c.
 */
#define _GNU_SOURCE

#include "gpu_program.h"
#include "gpu_program_kernel.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OBJECTS = 4096, WORDS = 8, LINE = 512 };

static struct object objects[OBJECTS];
static int count; /* of objects ever */
context contexts[GPUS];
function fill_kernel;
stream own_stream;
static char said[LINE];

int failed(int result, const char *call) {
    snprintf(said, sizeof(said), "error %d %s", result, call);
    return -1;
}

int tell(const char *format, ...) {
    va_list arguments;

    strcpy(said, "ok ");
    va_start(arguments, format);
    vsnprintf(said + 3, sizeof(said) - 3, format, arguments);
    va_end(arguments);
    return 0;
}

uint64_t number(const char *word) {
    char *end;
    uint64_t found = strtoull(word, &end, 0);

    return *end == 'K' ? found << 10 : *end == 'M' ? found << 20 : *end == 'G' ? found << 30 : found;
}

struct object *object(const char *word) {
    uint64_t found = number(word);

    if (found == 0 || found > (uint64_t)count || objects[found - 1].kind == NOTHING) {
        fprintf(stderr, "no memory %s\n", word);
        exit(4);
    }
    return &objects[found - 1];
}

int keep(enum kind kind, device_pointer at, size_t size, handle memory) {
    if (count == OBJECTS)
        exit(4);
    objects[count++] = (struct object){kind, at, size, memory};
    return tell("%d %#llx", count, (unsigned long long)at);
}

/* ---- commands ------------------------------------------------------------------------------- */

static void obey(char *line) {
    const struct command *const tables[] = {memory_commands, work_commands};
    char *words[WORDS + 1] = {NULL};
    int found = 0;

    for (char *word = strtok(line, " \n"); word != NULL && found < WORDS; word = strtok(NULL, " \n"))
        words[found++] = word;
    snprintf(said, sizeof(said), "error -1 command");
    for (size_t n = 0; found > 0 && n < sizeof(tables) / sizeof(tables[0]); n++)
        for (const struct command *command = tables[n]; command->name != NULL; command++)
            if (strcmp(command->name, words[0]) == 0 && found > command->words)
                command->run(words);
}

static void check(int result, const char *call) {
    if (result == 0)
        return;
    fprintf(stderr, "%s: %d\n", call, result);
    exit(3);
}

static void begin(void) {
    module kernels;

    find_functions();
    check(cuda.cuInit(0), "cuInit");
    check(cuda.cuDevicePrimaryCtxRetain(&contexts[0], 0), "cuDevicePrimaryCtxRetain");
    check(cuda.cuCtxSetCurrent(contexts[0]), "cuCtxSetCurrent");
    check(cuda.cuStreamCreate(&own_stream, 1), "cuStreamCreate");
    check(cuda.cuModuleLoadData(&kernels, fill_ptx), "cuModuleLoadData");
    check(cuda.cuModuleGetFunction(&fill_kernel, kernels, "fill"), "cuModuleGetFunction");
}

/* ---- a server ------------------------------------------------------------------------------- */

static int open_socket(const char *port, int (*way)(int, const struct sockaddr *, socklen_t)) {
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;

    place.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (fd < 0 || way(fd, (struct sockaddr *)&place, sizeof(place)) < 0) {
        perror("socket");
        exit(5);
    }
    return fd;
}

static int serve(const char *port) {
    int listening = open_socket(port, bind);

    if (listen(listening, 16) < 0)
        return 5;
    printf("booted\n");
    fflush(stdout);
    for (;;) {
        char line[LINE] = "";
        int fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0)
            continue;
        if (read(fd, line, sizeof(line) - 1) > 0) {
            obey(line);
            dprintf(fd, "%s\n", said);
        }
        close(fd);
    }
}

static int ask(char **arguments) {
    int fd = open_socket(arguments[0], connect);
    char line[LINE] = "";
    ssize_t got;

    for (size_t n = 1; arguments[n] != NULL; n++)
        snprintf(line + strlen(line), sizeof(line) - strlen(line), "%s%s", n > 1 ? " " : "",
                 arguments[n]);
    if (write(fd, line, strlen(line)) < 0)
        return 5;
    got = read(fd, line, sizeof(line) - 1);
    line[got > 0 ? got : 0] = '\0';
    printf("%s", line);
    return strncmp(line, "ok", 2) == 0 ? 0 : 1;
}

int main(int count_of_arguments, char **arguments) {
    char line[LINE];

    if (count_of_arguments > 2 && strcmp(arguments[1], "ask") == 0)
        return ask(arguments + 2);
    begin();
    if (count_of_arguments > 2 && strcmp(arguments[1], "serve") == 0)
        return serve(arguments[2]);
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin) != NULL) {
        obey(line);
        printf("%s\n", said);
        fflush(stdout);
    }
    return 0;
}
