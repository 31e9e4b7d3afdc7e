/* Programs that look at clocks: who waits by doing nothing else comes to the end of its wait soon; who computes between
 * its looks sees time pass, about as much as it takes, and is not taken through hours. */
#include "guest.h"
#include <sys/resource.h>

static int64_t by_usage(void)
{
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * SECOND + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

static int64_t by_process(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }
static int64_t by_clock(void) { return clock_ns(CLOCK_MONOTONIC); }
static int64_t by_call(void)
{
    struct timespec t;
    CHECK(syscall(SYS_clock_gettime, CLOCK_BOOTTIME, &t) == 0);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static int64_t (*const clocks[])(void) = {by_usage, by_process, by_clock, by_call};
enum { CLOCKS = sizeof clocks / sizeof *clocks };

/* A call that does something: what follows are no looks in a row any more. */
static void begin_anew(void)
{
    char here[PATH_MAX];
    CHECK(syscall(SYS_getcwd, here, sizeof here) > 0);
}

static void wait_for(int64_t (*look)(void), int64_t ns)
{
    begin_anew();
    int64_t start = look(), now;
    long looks = 0;
    do now = look(), looks++;
    while (now < start + ns);
    note("%ld looks, %lld\n", looks, (long long)(now - start));
}

static unsigned long x = 1;

static void compute(long turns)
{
    for (long i = 0; i < turns; i++) x = x * 6364136223846793005ul + (x >> 17);
}

/* Some 2 ms of work in each turn. */
static void work_for(int64_t (*look)(void), int64_t ns)
{
    begin_anew();
    int64_t start = look();
    long turns = 0;
    for (; look() < start + ns; turns++) compute(1000000);
    CHECK(turns > 15 && turns < 30000);
    note("%ld turns, %lx\n", turns, x);
}

/* Some 3 us of work in each of very many turns. */
static void measure(void)
{
    begin_anew();
    int64_t start = by_clock();
    for (int i = 0; i < 50000; i++) {
        by_clock();
        compute(1500);
    }
    int64_t took = by_clock() - start;
    CHECK(took > SECOND / 20 && took < 20 * SECOND);
    note("computed in %lld, %lx\n", (long long)took, x);
}

/* Work that is doubled until it takes long enough. */
static void calibrate(void)
{
    begin_anew();
    long turns = 1;
    for (;; turns *= 2) {
        CHECK(turns < 1l << 33);
        int64_t start = by_clock();
        compute(turns);
        if (by_clock() - start >= SECOND / 20) break;
    }
    note("%ld turns\n", turns);
}

int main(void)
{
    for (int i = 0; i < CLOCKS; i++) wait_for(clocks[i], SECOND / 5);
    wait_for(by_clock, 20 * SECOND);
    work_for(by_clock, SECOND / 2);
    work_for(by_call, SECOND / 2);
    measure();
    calibrate();
    return done();
}
