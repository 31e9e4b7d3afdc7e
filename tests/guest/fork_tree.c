/* A chain of 200 generations and a wide tree; process numbers are what the fork order says. */
#include "guest.h"

static int descend(int depth)
{
    if (depth == 0)
        return 0;
    pid_t pid = fork();
    if (pid == 0)
        _exit(descend(depth - 1));
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return (WEXITSTATUS(status) + 1) % 251;
}

static void widen(int depth, int log)
{
    pid_t pids[3];
    for (int i = 0; depth > 0 && i < 3; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            widen(depth - 1, log);
            _exit(0);
        }
    }
    for (int i = 0; depth > 0 && i < 3; i++)
        reap(pids[i], 0);
    dprintf(log, "%d %d\n", depth, getpid() - getpgrp());
}

int main(void)
{
    int generations = descend(200);
    CHECK(generations == 200);
    int log = open("tree", O_CREAT | O_WRONLY | O_APPEND, 0644);
    CHECK(log >= 0);
    widen(3, log);
    CHECK(lseek(log, 0, SEEK_END) > 40);
    return done();
}
