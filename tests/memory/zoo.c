/*
 * zoo SEED TMPFS DISK: three processes with four threads each, and all kinds of memory in each.
 *
 * SIGUSR1: every process verifies every byte and prints a line per region, with a digest.
 * SIGUSR2: every process goes on: one more in its counter of each region. SIGTERM: the end.
 * TMPFS and DISK are folders for the files that are mapped.
 */
#define _GNU_SOURCE

#include "zoo.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define THREADS 3
#define STACK_BYTES (32u << 10)
#define LINE 160

/* A process's regions are shared out to its threads, which all wait for the next command. */
static struct {
    enum role role;
    uint64_t seed, ticks;
    struct region regions[64];
    size_t count;
    char lines[64][LINE];
    int failed;
    pthread_mutex_t lock;
    pthread_cond_t told, answered;
    unsigned long orders, answers;
    char order;
} here = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .told = PTHREAD_COND_INITIALIZER,
          .answered = PTHREAD_COND_INITIALIZER};

static const char *const role_names[ROLES] = {"main", "child", "alone"};

static void work_on(size_t number, char order) {
    struct region *region = &here.regions[number];
    const char *wrong = NULL;
    uint64_t digest = 0;

    here.lines[number][0] = '\0';
    if (!region->present)
        return;
    if (order == 'g') {
        tick(region, here.role);
        return;
    }
    wrong = verify(region, here.role, here.ticks, &digest);
    if (wrong != NULL)
        __atomic_store_n(&here.failed, 1, __ATOMIC_RELAXED);
    snprintf(here.lines[number], LINE, "region %s %s %lx %zu %016lx %s\n", role_names[here.role],
             region->name, (unsigned long)(uintptr_t)region->base, region->pages,
             (unsigned long)digest, wrong == NULL ? "ok" : wrong);
}

/* Every thread also has something on its stack that must stay. */
static void *serve(void *argument) {
    unsigned long mine = (unsigned long)(uintptr_t)argument, seen = 0;
    unsigned char stack[STACK_BYTES], should[STACK_BYTES];

    random_bytes(here.seed + mine, stack, sizeof(stack));
    for (;;) {
        char order;

        pthread_mutex_lock(&here.lock);
        while (here.orders == seen)
            pthread_cond_wait(&here.told, &here.lock);
        seen = here.orders;
        order = here.order;
        pthread_mutex_unlock(&here.lock);
        for (size_t n = mine; n < here.count; n += THREADS)
            work_on(n, order);
        random_bytes(here.seed + mine, should, sizeof(should));
        if (memcmp(stack, should, sizeof(stack)) != 0)
            __atomic_store_n(&here.failed, 1, __ATOMIC_RELAXED);
        pthread_mutex_lock(&here.lock);
        here.answers++;
        pthread_cond_signal(&here.answered);
        pthread_mutex_unlock(&here.lock);
    }
    return NULL;
}

static void start_threads(void) {
    pthread_t thread;

    for (uintptr_t n = 0; n < THREADS; n++)
        if (pthread_create(&thread, NULL, serve, (void *)n) != 0)
            die("pthread_create");
}

/* Has all threads of this process do one thing; prints what they found. Whether all is well. */
static int everyone(char order) {
    pthread_mutex_lock(&here.lock);
    here.order = order;
    here.answers = 0;
    here.failed = 0;
    here.orders++;
    pthread_cond_broadcast(&here.told);
    while (here.answers < THREADS)
        pthread_cond_wait(&here.answered, &here.lock);
    pthread_mutex_unlock(&here.lock);
    here.ticks += order == 'g';
    for (size_t n = 0; n < here.count; n++)
        if (write(STDOUT_FILENO, here.lines[n], strlen(here.lines[n])) < 0)
            die("write");
    return !here.failed;
}

/* A process that is told by its parent what to do; ends with its parent. */
static _Noreturn void obey(int orders, int answers) {
    char order, answer = 'y'; /* once it is ready, and then to every order */

    start_threads();
    while (write(answers, &answer, 1) == 1 && read(orders, &order, 1) == 1)
        answer = everyone(order) ? 'y' : 'n';
    _exit(0);
}

struct peer {
    int orders, answers; /* our ends */
};

static pid_t fork_peer(struct peer *peer, int *orders, int *answers) {
    int there[2], back[2];
    pid_t pid;

    if (pipe(there) < 0 || pipe(back) < 0 || (pid = fork()) < 0)
        die("fork");
    if (pid == 0) {
        close(there[1]);
        close(back[0]);
        *orders = there[0];
        *answers = back[1];
        return 0;
    }
    close(there[0]);
    close(back[1]);
    *peer = (struct peer){there[1], back[0]};
    return pid;
}

static int told(const struct peer *peer, char order) {
    char answer;

    return (order == 0 || write(peer->orders, &order, 1) == 1) &&
           read(peer->answers, &answer, 1) == 1 && answer == 'y';
}

static void execute(char **argv, int orders, int answers) {
    char pipes[2][16];

    snprintf(pipes[0], sizeof(pipes[0]), "%d", orders);
    snprintf(pipes[1], sizeof(pipes[1]), "%d", answers);
    execl("/proc/self/exe", argv[0], argv[1], argv[2], argv[3], pipes[0], pipes[1], (char *)NULL);
    die("execl");
}

static void make(char **argv, enum role role) {
    here.role = role;
    here.seed = strtoul(argv[1], NULL, 10) + role;
    here.count = make_regions(here.regions, sizeof(here.regions) / sizeof(here.regions[0]),
                              here.seed, role, argv[2], argv[3]);
}

/* One thing done everywhere, one process after the other, so that counters never race. */
static void command(struct peer *peers, char order) {
    int good = everyone(order);
    const char *verb = order == 'g' ? "went on" : "verified";

    for (int n = 0; n < 2; n++)
        good = told(&peers[n], order) && good;
    printf("%s %lu %s\n", verb, (unsigned long)here.ticks, good ? "well" : "BADLY");
}

int main(int argc, char **argv) {
    struct signalfd_siginfo signal;
    struct peer peers[2];
    int orders, answers, told_by;
    sigset_t signals;

    setvbuf(stdout, NULL, _IOLBF, LINE);
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigaddset(&signals, SIGUSR2);
    sigaddset(&signals, SIGTERM);
    if (argc == 6) {
        make(argv, ALONE);
        change_regions(here.regions, here.count, ALONE);
        obey(atoi(argv[4]), atoi(argv[5]));
    }
    if (argc != 4)
        return 2;
    sigprocmask(SIG_BLOCK, &signals, NULL);
    /* Not sigwait(): a dump interrupts it, and the error's number would be a change of memory. */
    told_by = signalfd(-1, &signals, SFD_CLOEXEC);
    if (told_by < 0)
        die("signalfd");
    if (fork_peer(&peers[0], &orders, &answers) == 0)
        execute(argv, orders, answers);
    make(argv, MAIN);
    if (fork_peer(&peers[1], &orders, &answers) == 0) {
        here.role = CHILD;
        change_regions(here.regions, here.count, CHILD);
        obey(orders, answers);
    }
    change_regions(here.regions, here.count, MAIN);
    start_threads();
    if (!told(&peers[0], 0) || !told(&peers[1], 0))
        die("a process did not start");
    printf("booted\n");
    while (read(told_by, &signal, sizeof(signal)) == sizeof(signal) && signal.ssi_signo != SIGTERM)
        command(peers, signal.ssi_signo == SIGUSR1 ? 'v' : 'g');
    return 0; /* the others read the end of their pipes */
}
