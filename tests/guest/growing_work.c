/* Work that is done ten times as often until it takes long enough, by any clock and with nothing else between the looks:
 * after twenty looks it would be 10^9 times as much. */
#include "guest.h"
#include <sys/time.h>
#include <sys/times.h>

enum { PIECE = 100000, SMALL = 10, MOST = 10000, SAME = 40 };

static int piece = PIECE;

static void work(long turns)
{
    for (long i = 0; i < turns; i++) compute_turns(piece);
}

/* Looks from one place. */
static int64_t time_by_one(long turns)
{
    int64_t before = clock_ns(CLOCK_MONOTONIC);
    work(turns);
    return clock_ns(CLOCK_MONOTONIC) - before;
}

/* Looks from two places by turns. */
static int64_t time_by_two(long turns)
{
    struct timespec before, after;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &before) == 0);
    work(turns);
    CHECK(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
    return (after.tv_sec - before.tv_sec) * SECOND + after.tv_nsec - before.tv_nsec;
}

static int64_t time_by_day(long turns)
{
    int64_t before = clock_ns(CLOCK_REALTIME);
    work(turns);
    return clock_ns(CLOCK_REALTIME) - before;
}

static int64_t timeval_ns(void)
{
    struct timeval now;
    CHECK(gettimeofday(&now, NULL) == 0);
    return now.tv_sec * SECOND + now.tv_usec * 1000l;
}

static int64_t time_by_timeval(long turns)
{
    int64_t before = timeval_ns();
    work(turns);
    return timeval_ns() - before;
}

static int64_t time_by_process(long turns)
{
    int64_t before = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    work(turns);
    return clock_ns(CLOCK_PROCESS_CPUTIME_ID) - before;
}

static int64_t time_by_usage(long turns)
{
    int64_t before = usage_ns();
    work(turns);
    return usage_ns() - before;
}

static int64_t time_by_ticks(long turns)
{
    struct tms used;
    clock_t before = times(&used);
    work(turns);
    return (times(&used) - before) * 10 * MS;
}

static int64_t (*const others[])(long) = {time_by_day, time_by_timeval, time_by_process, time_by_usage, time_by_ticks};

/* Behind a long row of looks another loop begins, which works for a while between two of them. */
static void another_loop(void)
{
    for (int i = 0; i < 100000; i++) timeval_ns();
    int64_t start = clock_ns(CLOCK_REALTIME);
    int rounds = 0;
    while (clock_ns(CLOCK_REALTIME) < start + 200 * MS) {
        work(20);
        rounds++;
    }
    CHECK(rounds <= 1500);
    note("another loop: %d rounds\n", rounds);
}

static long enough(int64_t (*time)(long))
{
    for (long turns = 1; turns <= MOST * (PIECE / piece); turns *= 10)
        if (time(turns) >= 10 * MS) return turns;
    CHECK(!"it does not take long enough");
    return 0;
}

int main(void)
{
    /* Places behind which much has been done are asked again. */
    for (int round = 0; round < 3; round++) {
        CHECK(enough(time_by_one) <= 1000);
        CHECK(write(1, "", 0) == 0);
        CHECK(enough(time_by_two) <= 1000);
        CHECK(write(1, "", 0) == 0);
    }
    piece = SMALL;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        CHECK(enough(others[i]) <= 1000 * (PIECE / SMALL));
        CHECK(write(1, "", 0) == 0);
    }
    piece = PIECE;
    another_loop();
    CHECK(write(1, "", 0) == 0);
    /* What is the same takes the same time, and what comes after it takes its own. */
    for (long turns = 100; turns <= 300; turns += 200) {
        int64_t least = INT64_MAX, most = 0;
        enough(time_by_one);
        for (int i = 0; i < SAME; i++) {
            int64_t took = time_by_one(turns);
            if (i >= SAME / 2 && took < least) least = took;
            if (i >= SAME / 2 && took > most) most = took;
        }
        CHECK(most <= least + least / 8);
        CHECK(least >= turns * PIECE / 16 && least <= 16 * turns * PIECE);
        note("%ld turns: %lld ns\n", turns, (long long)least);
    }
    note("it is %lld\n", (long long)now_ns());
    return done();
}
