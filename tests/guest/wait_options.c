/* wait4, waitid and waitpid with every option; stopped and continued children; SIGCHLD and its order. */
#include "guest.h"
#include <sys/resource.h>

static pid_t child(int status, int64_t ms)
{
    pid_t pid = fork();
    if (pid == 0) {
        sleep_ms(ms);
        _exit(status);
    }
    return pid;
}

static void stop_and_continue(void)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    int status;
    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    CHECK(kill(pid, SIGSTOP) == 0);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED | WNOHANG) == 0); /* reported once */
    CHECK(kill(pid, SIGCONT) == 0);
    CHECK(waitpid(pid, &status, WCONTINUED) == pid && WIFCONTINUED(status));
    siginfo_t info = {0};
    CHECK(kill(pid, SIGSTOP) == 0);
    CHECK(waitid(P_PID, pid, &info, WSTOPPED | WNOWAIT) == 0 && info.si_code == CLD_STOPPED);
    CHECK(waitid(P_PID, pid, &info, WSTOPPED) == 0 && info.si_status == SIGSTOP);
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0 && info.si_code == CLD_KILLED);
    CHECK(waitid(P_ALL, 0, &info, WEXITED) == 0 && info.si_pid == pid && info.si_status == SIGKILL);
    FAILS(waitpid(pid, &status, 0), ECHILD);
}

/* A child that tells its end by something else than SIGCHLD is waited for when that is asked for. */
static void other_kinds(void)
{
    int status;
    for (int told = 0; told <= SIGURG; told += SIGURG) {
        pid_t pid = (pid_t)syscall(SYS_clone, told, 0, 0, 0, 0);
        if (pid == 0) {
            sleep_ms(200);
            _exit(4);
        }
        int64_t before = clock_ns(CLOCK_MONOTONIC);
        FAILS(waitpid(pid, &status, 0), ECHILD);
        FAILS(waitpid(-1, &status, 0), ECHILD);
        CHECK(clock_ns(CLOCK_MONOTONIC) - before < 100 * MS);
        CHECK(waitpid(pid, &status, __WCLONE) == pid && WEXITSTATUS(status) == 4);
        pid = (pid_t)syscall(SYS_clone, told, 0, 0, 0, 0);
        if (pid == 0) _exit(5);
        CHECK(waitpid(-1, &status, __WALL) == pid && WEXITSTATUS(status) == 5);
    }
    pid_t usual = child(6, 10);
    FAILS(waitpid(usual, &status, __WCLONE), ECHILD);
    CHECK(waitpid(usual, &status, 0) == usual && WEXITSTATUS(status) == 6);
}

static void groups(void)
{
    pid_t a = fork();
    if (a == 0) {
        setpgid(0, 0);
        sleep_ms(10);
        _exit(1);
    }
    setpgid(a, a);
    pid_t b = child(2, 20);
    int status;
    CHECK(waitpid(-a, &status, 0) == a && WEXITSTATUS(status) == 1);
    FAILS(waitpid(-a, &status, 0), ECHILD);
    CHECK(waitpid(0, &status, 0) == b && WEXITSTATUS(status) == 2);
    siginfo_t info;
    pid_t c = child(3, 0);
    CHECK(waitid(P_PGID, getpgrp(), &info, WEXITED) == 0 && info.si_pid == c);
    FAILS(waitid(P_PID, c, &info, 0), EINVAL);
}

static void any_order(void)
{
    pid_t pids[5];
    struct rusage usage;
    for (int i = 0; i < 5; i++)
        pids[i] = child(10 + i, (5 - i) * 40);
    for (int i = 4; i >= 0; i--) {
        int status;
        pid_t got = wait4(-1, &status, 0, &usage);
        CHECK(got == pids[i] && WEXITSTATUS(status) == 10 + i); /* by the time of their end */
    }
    note("rusage %ld.%06ld\n", (long)usage.ru_utime.tv_sec, (long)usage.ru_utime.tv_usec);
    for (int i = 0; i < 5; i++)
        pids[i] = child(20 + i, 0);
    for (int i = 0; i < 5; i++) {
        int status;
        pid_t got = wait(&status);
        note("%d:%d ", got - pids[0], WEXITSTATUS(status));
    }
    note("\n");
}

static volatile sig_atomic_t seen, last_code, last_status;
static volatile pid_t last_pid;

static void on_child(int number, siginfo_t *info, void *context)
{
    (void)context;
    CHECK(number == SIGCHLD);
    seen++;
    last_pid = info->si_pid;
    last_code = info->si_code;
    last_status = info->si_status;
}

static void sigchld(void)
{
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);
    pid_t pid = child(7, 5);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid); /* restarted after the handler */
    CHECK(seen == 1 && last_pid == pid && last_code == CLD_EXITED && last_status == 7);
    action.sa_flags |= SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, NULL);
    pid = child(0, 10000);
    kill(pid, SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid);
    CHECK(seen == 1);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGKILL);
    CHECK(seen == 2 && last_code == CLD_KILLED);

    on_signal(SIGCHLD, SIG_IGN, 0);
    pid = child(0, 5);
    FAILS(waitpid(pid, &status, 0), ECHILD); /* waits for the end, then finds nobody */
    on_signal(SIGCHLD, SIG_DFL, 0);
}

static int64_t used(int who)
{
    struct rusage usage;
    CHECK(getrusage(who, &usage) == 0);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * SECOND
        + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

static void work(int64_t ns)
{
    int64_t end = used(RUSAGE_SELF) + ns;
    while (used(RUSAGE_SELF) < end);
}

/* What children have used counts from the call on that waits for them, and what their children have used as well. */
static void usage(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(used(RUSAGE_CHILDREN) == 0);
        pid_t inner = fork();
        if (inner == 0) {
            work(SECOND / 2);
            _exit(0);
        }
        CHECK(waitpid(inner, &status, 0) == inner);
        _exit(0);
    }
    int64_t before = used(RUSAGE_CHILDREN);
    siginfo_t info;
    CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0 && used(RUSAGE_CHILDREN) == before);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(used(RUSAGE_CHILDREN) - before >= SECOND / 2);
}

int main(void)
{
    FAILS(wait(NULL), ECHILD);
    usage();
    stop_and_continue();
    groups();
    other_kinds();
    any_order();
    sigchld();
    return done();
}
