/* Waits with nothing but calls that tell, or that block signals and open them again: they are loops without end all the same. */
#include "guest.h"
#include <sys/syscall.h>
#include <sys/wait.h>

#define LONG 20 /* s: a wait of 10 s and more is not counted for */

static volatile sig_atomic_t children, alarms;
static volatile int flag;

static void counts(int number)
{
    if (number == SIGCHLD)
        children++;
    else
        alarms++;
}

/* As shells wait for a job that is stopped. */
static void for_a_child(void)
{
    sigset_t child, old;
    int64_t began = now_ns();
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    pid_t pid = fork();
    if (!pid) {
        sleep(LONG);
        _exit(7);
    }
    for (int seen = 0; !seen;) {
        sigprocmask(SIG_BLOCK, &child, &old);
        seen = children;
        sigprocmask(SIG_SETMASK, &old, NULL);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 7);
    CHECK((now_ns() - began) / 1000000000 == LONG);
}

static void *raise_flag(void *unused)
{
    sleep(LONG);
    flag = 1;
    return unused;
}

static void for_a_thread(void)
{
    int64_t began = now_ns();
    pthread_t thread = start(raise_flag, NULL);
    while (!flag)
        CHECK(syscall(SYS_getpid) == getpid() && syscall(SYS_gettid) == getpid());
    join(thread);
    CHECK((now_ns() - began) / 1000000000 == LONG);
}

/* It would never take the signal where it is blocked. */
static void blocked_most_of_the_time(void)
{
    sigset_t all, none;
    sigfillset(&all);
    sigdelset(&all, SIGTRAP);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &all, NULL);
    pid_t parent = getpid(), pid = fork();
    if (!pid) {
        sleep(LONG);
        kill(parent, SIGALRM);
        _exit(0);
    }
    while (!alarms) {
        sigprocmask(SIG_SETMASK, &none, NULL);
        sigprocmask(SIG_SETMASK, &all, NULL);
        for (int i = 0; i < 5; i++)
            __builtin_ia32_pause();
    }
    CHECK(alarms == 1);
    sigprocmask(SIG_SETMASK, &none, NULL);
    CHECK(waitpid(pid, NULL, 0) == pid);
}

int main(void)
{
    on_signal(SIGCHLD, counts, 0);
    on_signal(SIGALRM, counts, 0);
    for_a_child();
    for_a_thread();
    blocked_most_of_the_time();
    return done();
}
