/* Programs that ask the kernel again and again until another process has done something, without a pause. */
#include "guest.h"

static int ready[2];

/* A child that first lets its parent ask for a while. */
static pid_t later(void)
{
    pid_t pid = fork();
    if (pid == 0) sleep_ms(20);
    return pid;
}

static void parent(void)
{
    char byte;
    CHECK(pipe(ready) == 0);
    if (fork() == 0) {
        pid_t middle = getpid();
        if (fork() == 0) {
            while (getppid() == middle);
            CHECK(write(ready[1], "x", 1) == 1);
            _exit(0);
        }
        sleep_ms(20);
        _exit(0);
    }
    CHECK(read(ready[0], &byte, 1) == 1 && wait(NULL) > 0);
}

static void group_and_session(void)
{
    pid_t pid = later();
    if (pid == 0) {
        setpgid(0, 0);
        for (;;) pause();
    }
    while (getpgid(pid) != pid);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
    pid = later();
    if (pid == 0) {
        setsid();
        for (;;) pause();
    }
    while (getsid(pid) != pid);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, NULL, 0) == pid);
    pid = fork();
    if (pid == 0) {
        while (getpgrp() != getpid());
        _exit(0);
    }
    sleep_ms(20);
    CHECK(setpgid(pid, pid) == 0 && waitpid(pid, NULL, 0) == pid);
}

static void pending(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    pid_t asking = getpid(), pid = later();
    if (pid == 0) {
        kill(asking, SIGUSR1);
        _exit(0);
    }
    do CHECK(sigpending(&set) == 0);
    while (!sigismember(&set, SIGUSR1));
    CHECK(waitpid(pid, NULL, 0) == pid);
}

int main(void)
{
    parent();
    group_and_session();
    pending();
    return done();
}
