/* Short processes, one after the other and in a window of 16: 300 of them, or as many as the argument says. */
#include "guest.h"

int main(int argc, char **argv)
{
    int n = argc > 1 ? atoi(argv[1]) : 300, running = 0, status;
    unsigned order = 0;
    pid_t first = 0;
    for (int i = 0; i < n; i++) {
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0)
            _exit(i % 100);
        first = first ? first : pid;
        if (i % 2 == 0) {
            reap(pid, i % 100);
        } else if (++running == 16) {
            pid = wait(&status);
            CHECK(pid > 0 && WIFEXITED(status));
            order = order * 31 + (unsigned)(pid - first);
            running--;
        }
    }
    while (running-- > 0)
        CHECK(wait(&status) > 0);
    FAILS(wait(&status), ECHILD);
    note("order %u\n", order);
    return done();
}
