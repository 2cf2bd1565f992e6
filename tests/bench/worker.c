/*
 * worker BYTES PROCESSES PAGES SEED: random private memory, split over some processes.
 *
 * PAGES is `huge`, `small`, or `any`, as the machine has it. Says `ready` when all is filled; at SIGUSR1 every process looks at
 * all of its memory again and says `well` or `BADLY`. All ends with the first process.
 */
#define _GNU_SOURCE

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define PROCESSES 256
#define PIECE (4u << 20)
#define HUGE_PAGE (2u << 20)

static uint64_t *memory, seed;
static size_t bytes, next_piece;
static int bad, checking;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void say(const char *what) {
    if (write(STDOUT_FILENO, what, strlen(what)) < 0)
        fail("write");
}

/* splitmix64, by Sebastiano Vigna (public domain). */
static uint64_t random_word(uint64_t place) {
    uint64_t value = seed + place * 0x9e3779b97f4a7c15u;

    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static void *work(void *unused) {
    size_t first, end;

    (void)unused;
    while ((first = __atomic_fetch_add(&next_piece, PIECE, __ATOMIC_RELAXED)) < bytes) {
        end = first + PIECE < bytes ? first + PIECE : bytes;
        for (size_t n = first / sizeof(*memory); n < end / sizeof(*memory); n++)
            if (!checking)
                memory[n] = random_word(n);
            else if (memory[n] != random_word(n))
                __atomic_store_n(&bad, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* All memory filled or checked by as many threads as there are processors for each process. */
static void go_over(size_t threads) {
    pthread_t others[64];
    size_t count = 0;

    next_piece = 0;
    while (count + 1 < threads && count < sizeof(others) / sizeof(others[0]) &&
           pthread_create(&others[count], NULL, work, NULL) == 0)
        count++;
    work(NULL);
    while (count > 0)
        pthread_join(others[--count], NULL);
}

static void allocate(const char *pages) {
    int advice = strcmp(pages, "huge") == 0 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    unsigned char *all = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t more;

    if (all == MAP_FAILED)
        fail("mmap");
    more = (HUGE_PAGE - (uintptr_t)all % HUGE_PAGE) % HUGE_PAGE;
    memory = (void *)(all + more);
    if (strcmp(pages, "any") != 0 && madvise(memory, bytes, advice) < 0)
        fail("madvise");
}

int main(int argc, char **argv) {
    struct signalfd_siginfo signal;
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    size_t processes, mine = 0;
    pid_t children[PROCESSES];
    int ready[2], told;
    char byte = 0;
    sigset_t signals;

    if (argc != 5 || (processes = strtoul(argv[2], NULL, 10)) < 1 || processes > PROCESSES)
        return 2;
    bytes = strtoul(argv[1], NULL, 10) / processes / HUGE_PAGE * HUGE_PAGE;
    seed = strtoul(argv[4], NULL, 10);
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    if (pipe(ready) < 0)
        fail("pipe");
    for (size_t n = 1; mine == 0 && n < processes; n++)
        if ((children[n] = fork()) == 0)
            mine = n;
        else if (children[n] < 0)
            fail("fork");
    if (mine != 0 && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        fail("prctl");
    seed += mine;
    allocate(argv[3]);
    go_over((size_t)processors / processes);
    checking = 1;
    if (mine != 0 && write(ready[1], &byte, 1) != 1)
        fail("write");
    for (size_t n = 1; mine == 0 && n < processes; n++)
        if (read(ready[0], &byte, 1) != 1)
            fail("read");
    close(ready[0]);
    close(ready[1]);
    told = signalfd(-1, &signals, SFD_CLOEXEC);
    if (told < 0)
        fail("signalfd");
    if (mine == 0)
        say("ready\n");
    while (read(told, &signal, sizeof(signal)) == sizeof(signal)) {
        for (size_t n = 1; mine == 0 && n < processes; n++)
            kill(children[n], SIGUSR1);
        go_over((size_t)processors / processes);
        say(bad ? "BADLY\n" : "well\n");
    }
    return 1;
}
