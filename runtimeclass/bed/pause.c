/* The first process of a pod: it holds the pod's namespaces, reaps what is orphaned in a shared pid
 * namespace, and ends when it is asked to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void leave(int signal_number) { (void)signal_number; _exit(0); }

static void reap(int signal_number) { (void)signal_number; while (waitpid(-1, 0, WNOHANG) > 0) { } }

int main(void)
{
    signal(SIGINT, leave);
    signal(SIGTERM, leave);
    signal(SIGCHLD, reap);
    for (;;)
        pause();
}
