/*
 * thaw-criu-hook: CRIU's action-script.
 *
 * CRIU runs it without arguments at every stage of a dump or restore (seven times per restore),
 * with CRTOOLS_SCRIPT_ACTION, CRTOOLS_INIT_PID and CRTOOLS_IMAGE_DIR in the environment, and fails
 * the stage if it exits non-zero. It asks the process that waits behind `hook.sock` and passes on
 * the answer; a broken connection is a no, so a dead engine never lets a worker run.
 *
 * Each container has a folder with a link to this program, the socket, and the list of the stages
 * worth asking about. The folder is taken from argv[0], the path as CRIU was given it: the link
 * must not be resolved.
 */
#define _GNU_SOURCE

#include "fail.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET "hook.sock"
#define ACTIONS "hook.actions"

const char program_name[] = "thaw-criu-hook";

static const char *environment(const char *name, const char *otherwise) {
    const char *value = getenv(name);

    return value != NULL && *value != '\0' ? value : otherwise;
}

/* `name` beside the link that CRIU executed. */
static void beside(const char *self, const char *name, char *path, size_t size) {
    const char *slash = strrchr(self, '/');
    int folder = slash == NULL ? 1 : (int)(slash - self);
    int length = snprintf(path, size, "%.*s/%s", folder, slash == NULL ? "." : self, name);

    if (length < 0 || (size_t)length >= size)
        fail("path too long: %s beside %s", name, self);
}

/* Whether anybody wants to hear of this stage. No list: yes. An unreadable one: ask, to be safe. */
static int wanted(const char *self, const char *action) {
    char path[PATH_MAX], line[64];
    int found = 0;
    FILE *list;

    beside(self, ACTIONS, path, sizeof(path));
    list = fopen(path, "re");
    if (list == NULL)
        return 1;
    while (!found && fgets(line, sizeof(line), list) != NULL) {
        line[strcspn(line, "\r\n")] = '\0';
        found = strcmp(line, action) == 0;
    }
    found = found || ferror(list);
    fclose(list);
    return found;
}

/* A socket's own limit is 107 bytes: a longer path is reached through its folder. */
static void enter_folder_of(char *path, size_t size) {
    char *slash = strrchr(path, '/');
    char name[sizeof(((struct sockaddr_un *)0)->sun_path)];

    if (slash == NULL || strlen(slash + 1) >= sizeof(name))
        fail("path too long for a socket: %s", path);
    snprintf(name, sizeof(name), "%s", slash + 1);
    *slash = '\0';
    if (chdir(path) < 0)
        fail("cannot enter %s: %s", path, strerror(errno));
    snprintf(path, size, "%s", name);
}

static FILE *dial(char *path, size_t size) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    FILE *stream;
    int fd;

    if (strlen(path) >= sizeof(address.sun_path))
        enter_folder_of(path, size);
    memcpy(address.sun_path, path, strlen(path) + 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        fail("cannot make a socket: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
        fail("cannot connect to %s: %s (is the engine of this container alive?)", path,
             strerror(errno));
    stream = fdopen(fd, "r+e");
    if (stream == NULL)
        fail("out of memory");
    return stream;
}

static void ask(FILE *stream, const char *action) {
    char answer[512];

    if (fprintf(stream, "%s %s %s\n", action, environment("CRTOOLS_INIT_PID", "0"),
                environment("CRTOOLS_IMAGE_DIR", "-")) < 0 ||
        fflush(stream) != 0)
        fail("cannot send %s: %s", action, strerror(errno));
    if (fgets(answer, sizeof(answer), stream) == NULL)
        fail("no answer to %s: the connection was closed", action);
    if (strcmp(answer, "ok\n") != 0) {
        answer[strcspn(answer, "\n")] = '\0';
        fail("%s was refused: %s", action, answer);
    }
}

int main(int argc, char **argv) {
    const char *action = environment("CRTOOLS_SCRIPT_ACTION", NULL);
    const char *self = argc > 0 ? argv[0] : "";
    const char *given = environment("THAW_HOOK_SOCKET", NULL);
    char path[PATH_MAX];

    if (action == NULL)
        fail("CRTOOLS_SCRIPT_ACTION is not set (only CRIU runs this program)");
    if (!wanted(self, action))
        return 0;
    beside(self, SOCKET, path, sizeof(path));
    if (access(path, F_OK) < 0 && given != NULL && strlen(given) < sizeof(path))
        memcpy(path, given, strlen(given) + 1);
    ask(dial(path, sizeof(path)), action);
    return 0;
}
