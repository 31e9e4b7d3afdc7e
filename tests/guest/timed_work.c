/* Programs that measure how long a piece of work takes, and do something else before the next one: they see it take time,
 * more if it is more, and come to an end. */
#include "guest.h"
#include <sys/times.h>

static int64_t by_ticks(void)
{
    struct tms used;
    CHECK(times(&used) != -1);
    return (used.tms_utime + used.tms_stime) * (SECOND / sysconf(_SC_CLK_TCK));
}

static int64_t by_thread(void) { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }
static int64_t by_call(void) { return called_clock_ns(CLOCK_BOOTTIME); }

static int64_t (*const clocks[])(void) = {usage_ns, by_ticks, by_thread, now_ns, by_call};
enum { CLOCKS = sizeof clocks / sizeof *clocks };

static int64_t took(int64_t (*look)(void), long turns)
{
    int64_t start = look();
    compute_turns(turns);
    int64_t result = look() - start;
    something_else();
    return result;
}

/* Work that grows from one measurement to the next until it takes long enough. */
static void grow(int64_t (*look)(void), long times, long by)
{
    long turns = 1000, rows = 0;
    int64_t ns;
    while ((ns = took(look, turns)) < SECOND / 20) {
        CHECK(turns < 1l << 33);
        turns = turns * times / by + 1, rows++;
    }
    note("%ld rows, %ld turns, %lld\n", rows, turns, (long long)ns);
}

/* Some 2 ms of work, as often as it takes. */
static void repeat(int64_t (*look)(void))
{
    int64_t sum = 0;
    long rows = 0;
    for (; sum < SECOND / 5; rows++) sum += took(look, 1000000);
    CHECK(rows > 15 && rows < 10000);
    note("%ld rows, %lld\n", rows, (long long)sum);
}

/* Three looks, of which the last two have the work between them. */
static void in_three(void)
{
    long turns = 1000;
    int64_t first, second, third;
    do {
        first = now_ns();
        second = now_ns();
        compute_turns(turns);
        third = now_ns();
        something_else();
        CHECK(second > first && (turns *= 2) < 1l << 33);
    } while (third - second < SECOND / 50);
    note("%ld turns, %lld and %lld\n", turns, (long long)(second - first), (long long)(third - second));
}

/* Waits for the next tick with short stretches between its looks, works, and looks once more: all in one row. */
static int64_t from_a_tick(int64_t (*look)(void), long turns)
{
    int64_t before = look(), start;
    for (long wait = 100; (start = look()) < before + SECOND / 100; wait += wait / 10) compute_turns(wait);
    compute_turns(turns);
    return look() - start;
}

static void ticks(int64_t (*look)(void))
{
    long turns = 1;
    int64_t ns, sum = 0;
    for (int i = 0; i < 25; i++) look(); /* which take long */
    while ((ns = from_a_tick(look, turns)) < SECOND / 10) CHECK((turns *= 2) < 1l << 33);
    for (int i = 0; i < 5; i++) sum += from_a_tick(look, 2 * turns);
    CHECK(sum > 5 * SECOND / 10 && sum < 40 * SECOND / 10);
    note("%ld turns take %lld, five times twice as many %lld\n", turns, (long long)ns, (long long)sum);
    something_else();
}

/* An interpreter that looks whether its time is over from wherever it happens to be, and does nothing else. */
__attribute__((noipa)) static int64_t look_at_depth(int depth)
{
    return depth ? look_at_depth(depth - 1) - 1 : now_ns();
}

static void limited(int places, long turns)
{
    int64_t end = now_ns() + SECOND / 2;
    long looks = 0;
    while (look_at_depth((computed >> 33) % places) < end) compute_turns(turns), looks++;
    CHECK(looks < 4000);
    note("%ld looks from %d places, %lld\n", looks, places, (long long)now_ns());
    something_else();
}

/* Much and little by turns, and nothing. */
static void changing(void)
{
    int64_t much = 0, little = 0;
    for (int i = 0; i < 40; i++) much += took(now_ns, 2000000), little += took(now_ns, 2000);
    note("%lld and %lld\n", (long long)much, (long long)little);
    for (int i = 0; i < 3000; i++) CHECK(took(now_ns, 0) < SECOND);
    note("at %lld\n", (long long)now_ns());
}

static atomic_int alarms;

static void alarmed(int signo)
{
    (void)signo;
    alarms++;
    compute_turns(1000);
}

/* Signals come while it is measured, and in a child it is measured anew. */
static void disturbed(void)
{
    on_signal(SIGUSR1, alarmed, 0);
    long turns = 1000;
    int64_t start, ns;
    do {
        start = now_ns();
        compute_turns(turns);
        raise(SIGUSR1);
        now_ns();
        compute_turns(turns);
        ns = now_ns() - start;
        something_else();
        CHECK((turns *= 2) < 1l << 33);
    } while (ns < SECOND / 20);
    note("%ld turns, %lld\n", turns, (long long)ns);
    for (int i = 0; i < 30; i++) {
        start = usage_ns();
        if (i % 3) raise(SIGUSR1);
        compute_turns(500000);
        if (i % 4) kill(getpid(), SIGUSR1);
        CHECK(usage_ns() > start);
    }
    note("%d signals, %lld\n", (int)alarms, (long long)usage_ns());
    pid_t child = fork();
    if (child == 0) {
        grow(now_ns, 2, 1);
        ticks(usage_ns);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
    for (int i = 0; i < CLOCKS; i++) grow(clocks[i], 2, 1);
    grow(now_ns, 4, 3);
    repeat(now_ns);
    repeat(usage_ns);
    in_three();
    ticks(by_ticks);
    ticks(usage_ns);
    limited(3, 1000000);
    limited(5, 300000);
    limited(1, 300000);
    changing();
    disturbed();
    return done();
}
