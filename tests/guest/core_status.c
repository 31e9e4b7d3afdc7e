/* How a process ends: by each kind of fatal signal, with or without a core, and what its parent reads. */
#include "guest.h"
#include <sys/resource.h>

static int ended_by(int number, rlim_t core)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {core, core};
        setrlimit(RLIMIT_CORE, &limit);
        raise(number);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static int ended_by_fault(int kind)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {0, 0};
        setrlimit(RLIMIT_CORE, &limit);
        volatile int zero = 0;
        if (kind == 0)
            *(volatile int *)16 = 1;
        if (kind == 1)
            zero = 7 / zero;
        if (kind == 2)
            __builtin_trap();
        if (kind == 3)
            abort();
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    return WTERMSIG(status);
}

int main(void)
{
    static const int numbers[] = {SIGHUP, SIGINT, SIGQUIT, SIGABRT, SIGKILL, SIGSEGV, SIGPIPE, SIGALRM, SIGTERM,
                                  SIGUSR1, SIGXCPU, SIGSYS, SIGTRAP, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        signal(numbers[i], SIG_DFL);  /* natively it may be ignored: shells do that for jobs in the background */
        int status = ended_by(numbers[i], 0);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == numbers[i]);
        note("%d %d\n", numbers[i], WCOREDUMP(status) != 0);
    }
    CHECK(ended_by_fault(0) == SIGSEGV);
    CHECK(ended_by_fault(1) == SIGFPE);
    CHECK(ended_by_fault(2) == SIGILL);
    CHECK(ended_by_fault(3) == SIGABRT);
    CHECK(WEXITSTATUS(ended_by(SIGCHLD, 0)) == 0 && WIFEXITED(ended_by(SIGURG, 0)));
    return done();
}
