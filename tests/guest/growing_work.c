/* Work that is done ten times as often until it takes long enough, by the monotonic clock and with nothing else between
 * the looks: after twenty looks it would be 10^9 times as much. */
#include "guest.h"

enum { PIECE = 100000, MOST = 10000, SAME = 40 };

static void work(long turns)
{
    for (long i = 0; i < turns; i++) compute_turns(PIECE);
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

static long enough(int64_t (*time)(long))
{
    for (long turns = 1; turns <= MOST; turns *= 10)
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
