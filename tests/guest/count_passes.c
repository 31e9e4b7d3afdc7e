/* Loops without calls that end when a timer's signal comes: one too far away to be stepped, and a limit of CPU time. */
#include "guest.h"
#include <sys/resource.h>

static volatile sig_atomic_t run;

static void stop(int signo) { (void)signo; run = 0; }

static unsigned long compute(unsigned long *turns)
{
    unsigned long x = 1;
    for (*turns = 0; run; ++*turns)
        for (int i = 0; i < 50; i++)
            x = x * 6364136223846793005ul + (x >> 17);
    return x;
}

int main(void)
{
    unsigned long turns, x;
    struct timespec before, after;
    signal(SIGALRM, stop);
    signal(SIGXCPU, stop);
    run = 1;
    clock_gettime(CLOCK_MONOTONIC, &before);
    alarm(2);
    x = compute(&turns);
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK(after.tv_sec - before.tv_sec >= 2 && after.tv_sec - before.tv_sec <= 3);
    CHECK(turns > 1000);
    note("%lu turns, %lx\n", turns, x);

    struct rlimit limit;
    struct timespec used;
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0 && getrlimit(RLIMIT_CPU, &limit) == 0);
    limit.rlim_cur = (rlim_t)used.tv_sec + 1;
    CHECK(setrlimit(RLIMIT_CPU, &limit) == 0);
    run = 1;
    x = compute(&turns);
    CHECK(turns > 10);
    note("%lu turns, %lx\n", turns, x);
    return done();
}
