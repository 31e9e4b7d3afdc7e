/* Programs that adapt their work after two or three looks at a clock that stopwatches look at. */
#include "guest.h"
#include <sys/mman.h>
#include <sys/time.h>

static int64_t by_day(void) { return clock_ns(CLOCK_REALTIME); }
static int64_t by_raw(void) { return clock_ns(CLOCK_MONOTONIC_RAW); }
static int64_t by_process(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }
static int64_t by_calls(void) { return called_clock_ns(CLOCK_REALTIME); }

static int64_t by_timeval(void)
{
    struct timeval now;
    CHECK(gettimeofday(&now, NULL) == 0);
    return now.tv_sec * SECOND + now.tv_usec * 1000l;
}

static int64_t (*const clocks[])(void) = {by_day, by_raw, by_process, by_calls, by_timeval, usage_ns};
static const char *const names[] = {"day", "raw", "process", "calls", "timeval", "usage"};
enum { CLOCKS = sizeof clocks / sizeof *clocks };

/* Sixteen times as much work each time until it takes 20 ms: it would be 2^39 turns without a measurement by the ninth. */
static void grow(int64_t (*look)(void), const char *name)
{
    long turns = 2000;
    int64_t ns;
    for (;;) {
        int64_t start = look();
        compute_turns(turns);
        ns = look() - start;
        something_else();
        if (ns >= SECOND / 50) break;
        turns *= 16;
        CHECK(turns < 1l << 29);
    }
    note("%s: %ld turns take %lld\n", name, turns, (long long)ns);
}

/* As often as fits into 0.2 s, by one measurement of 5,000,000 turns. */
static void choose(int64_t (*look)(void), const char *name)
{
    int64_t start = look();
    char *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    compute_turns(5000000);
    CHECK(munmap(memory, 1 << 20) == 0);
    int64_t ns = look() - start, times = SECOND / 5 / ns;
    CHECK(ns > SECOND / 1000 && times < 200);
    start = look();
    for (long i = 0; i < times; i++) compute_turns(5000000);
    ns = look() - start;
    something_else();
    CHECK(ns > SECOND / 20 && ns < 20 * SECOND);
    note("%s: %lld times take %lld\n", name, (long long)times, (long long)ns);
}

/* The same again and again: some of it is taken to be what it was. */
static void repeat(void)
{
    int64_t least = SECOND, most = 0;
    for (int i = 0; i < 200; i++) {
        int64_t start = by_day();
        compute_turns(400000);
        int64_t ns = by_day() - start;
        something_else();
        if (ns < least) least = ns;
        if (ns > most) most = ns;
    }
    CHECK(least > 0);
    note("between %lld and %lld\n", (long long)least, (long long)most);
}

static atomic_int alarms;

static void alarmed(int signo)
{
    (void)signo;
    alarms++;
    compute_turns(200000);
}

/* Signals, children and another program in the middle of it. */
static void disturbed(void)
{
    on_signal(SIGUSR1, alarmed, 0);
    for (int i = 0; i < 12; i++) {
        int64_t start = by_day();
        compute_turns(1000000);
        if (i % 3 == 0) raise(SIGUSR1);
        if (i % 4 == 0) {
            pid_t child = fork();
            if (child == 0) {
                compute_turns(1000000);
                execl("/bin/true", "true", (char *)NULL);
                _exit(1);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        compute_turns(1000000);
        CHECK(by_day() > start);
    }
    note("%d signals, at %lld\n", (int)alarms, (long long)by_day());
}

/* Looks with nothing behind them cost no more than others. */
static void often(void)
{
    int64_t start = by_day();
    for (int i = 0; i < 20000; i++) by_day();
    for (int i = 0; i < 3000; i++) by_day(), something_else();
    note("%lld\n", (long long)(by_day() - start));
}

int main(void)
{
    for (int i = 0; i < CLOCKS; i++) grow(clocks[i], names[i]);
    choose(by_day, "day");
    choose(by_raw, "raw");
    repeat();
    disturbed();
    often();
    return done();
}
