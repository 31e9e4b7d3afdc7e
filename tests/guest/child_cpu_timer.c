/* A timer by the CPU clock of another process expires while that one computes, with few calls in between. */
#include "guest.h"
#include <signal.h>
#include <time.h>

static volatile sig_atomic_t expired;

static void count(int signo)
{
    (void)signo;
    expired++;
}

static void computes(void)
{
    static volatile char buffer[4096];
    for (;;) {
        for (int turn = 0; turn < 200; turn++)
            for (size_t i = 0; i < sizeof buffer; i++)
                buffer[i] = (char)turn;
        if (getppid() == 1)
            _exit(1);
    }
}

int main(void)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec when = {{0, 100000000}, {0, 500000000}}, left;
    sigset_t blocked, before;
    clockid_t clock;
    timer_t timer, never;

    CHECK(signal(SIGUSR1, count) != SIG_ERR);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &blocked, &before) == 0);
    pid_t pid = fork();
    if (pid == 0)
        computes();
    CHECK(clock_getcpuclockid(pid, &clock) == 0);
    CHECK(timer_create(clock, &event, &timer) == 0 && timer_settime(timer, 0, &when, NULL) == 0);
    CHECK(timer_create(clock, &event, &never) == 0);
    while (expired < 5)
        sigsuspend(&before);
    CHECK(timer_gettime(timer, &left) == 0 && left.it_interval.tv_nsec == 100000000);
    struct timespec used;
    CHECK(clock_gettime(clock, &used) == 0 && used.tv_nsec + used.tv_sec * 1000000000 >= 900000000 && used.tv_sec <= 20);
    CHECK(timer_delete(timer) == 0 && timer_delete(never) == 0);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);
    return done();
}
