/* fork, vfork, clone3, posix_spawn, daemons by double fork, and orphans. */
#include "guest.h"
#include <linux/sched.h>
#include <spawn.h>
#include <sys/prctl.h>

extern char **environ;

static void by_vfork(void)
{
    volatile int shared = 1;
    pid_t pid = vfork();
    if (pid == 0) {
        shared = 2; /* same memory: the parent sees it, and only runs after the exec or exit */
        _exit(3);
    }
    CHECK(shared == 2);
    reap(pid, 3);
    pid = vfork();
    if (pid == 0) {
        execl("/bin/sh", "sh", "-c", "exit 5", NULL);
        _exit(127);
    }
    reap(pid, 5);
    pid = vfork();
    if (pid == 0) {
        execl("/nonexistent", "x", NULL);
        _exit(errno == ENOENT ? 6 : 7);
    }
    reap(pid, 6);
}

static void by_clone3(void)
{
    pid_t tid_word = 0;
    int pidfd = -1;
    struct clone_args args = {.flags = CLONE_PARENT_SETTID | CLONE_PIDFD, .exit_signal = SIGCHLD,
                              .parent_tid = (uintptr_t)&tid_word, .pidfd = (uintptr_t)&pidfd};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == -1 && errno == ENOSYS) { /* libraries fall back to clone */
        pid = fork();
        if (pid == 0)
            _exit(8);
        reap(pid, 8);
        return;
    }
    if (pid == 0)
        _exit(8);
    CHECK(tid_word == pid);
    struct pollfd p = {pidfd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    siginfo_t info;
    CHECK(waitid(P_PIDFD, pidfd, &info, WEXITED) == 0 && info.si_pid == pid && info.si_status == 8);
}

static void by_posix_spawn(void)
{
    posix_spawn_file_actions_t actions;
    int ends[2];
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    char *argv[] = {"sh", "-c", "echo spawned", NULL};
    pid_t pid;
    CHECK(posix_spawn(&pid, "/bin/sh", &actions, NULL, argv, environ) == 0);
    close(ends[1]);
    char text[32] = "";
    CHECK(read(ends[0], text, sizeof text) == 8 && strcmp(text, "spawned\n") == 0);
    reap(pid, 0);
    CHECK(posix_spawnp(&pid, "no-such-program", NULL, NULL, argv, environ) == ENOENT);
    close(ends[0]);
}

static void daemon_and_orphan(void)
{
    int ends[2];
    pid_t told[2];
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(setsid() == getpid());
        pid_t parent = getpid();
        if (fork() == 0) {
            while (getppid() == parent)
                sleep_ms(1);
            told[0] = getpid();
            told[1] = getppid();
            CHECK(write(ends[1], told, sizeof told) == sizeof told);
            _exit(9);
        }
        _exit(0);
    }
    reap(pid, 0);
    CHECK(read(ends[0], told, sizeof told) == sizeof told);
    note("daemon %d under %s\n", told[0] - pid, told[1] == 1 ? "init" : "a subreaper");

    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid = fork();
    if (pid == 0) {
        if (fork() == 0) {
            sleep_ms(20);
            _exit(11);
        }
        _exit(0);
    }
    reap(pid, 0);
    int status;
    CHECK(wait(&status) > 0 && WEXITSTATUS(status) == 11); /* the orphan became our child */
    FAILS(wait(NULL), ECHILD);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 0) == 0);
}

static void death_signal(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        pid_t parent = getpid();
        if (fork() == 0) {
            CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
            if (getppid() == parent)
                CHECK(write(ends[1], "r", 1) == 1);
            pause();
        }
        char byte;
        CHECK(read(ends[0], &byte, 1) == 1);
        _exit(0);
    }
    reap(pid, 0);
    close(ends[1]);
    char byte;
    CHECK(read(ends[0], &byte, 1) == 0); /* the grandchild died too, so the last writer is gone */
}

int main(void)
{
    by_vfork();
    by_clone3();
    by_posix_spawn();
    daemon_and_orphan();
    death_signal();
    note("pid %d parent %d\n", getpid() - getppid(), getpid() > 1);
    return done();
}
