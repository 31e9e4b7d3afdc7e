/* Programs that look at clocks: who waits by doing nothing else comes to the end of its wait soon; who computes between
 * its looks sees time pass, about as much as it takes, and is not taken through hours. */
#include "guest.h"

static int64_t by_process(void) { return clock_ns(CLOCK_PROCESS_CPUTIME_ID); }
static int64_t by_call(void) { return called_clock_ns(CLOCK_BOOTTIME); }

static int64_t (*const clocks[])(void) = {usage_ns, by_process, now_ns, by_call};
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

/* Some 2 ms of work in each turn. */
static void work_for(int64_t (*look)(void), int64_t ns)
{
    begin_anew();
    int64_t start = look();
    long turns = 0;
    for (; look() < start + ns; turns++) compute_turns(1000000);
    CHECK(turns > 15 && turns < 30000);
    note("%ld turns, %lx\n", turns, computed);
}

/* Some 3 us of work in each of very many turns. */
static void measure(void)
{
    begin_anew();
    int64_t start = now_ns();
    for (int i = 0; i < 50000; i++) {
        now_ns();
        compute_turns(1500);
    }
    int64_t took = now_ns() - start;
    CHECK(took > SECOND / 20 && took < 20 * SECOND);
    note("computed in %lld, %lx\n", (long long)took, computed);
}

/* Work that is doubled until it takes long enough. */
static void calibrate(void)
{
    begin_anew();
    long turns = 1;
    for (;; turns *= 2) {
        CHECK(turns < 1l << 33);
        int64_t start = now_ns();
        compute_turns(turns);
        if (now_ns() - start >= SECOND / 20) break;
    }
    note("%ld turns\n", turns);
}

int main(void)
{
    for (int i = 0; i < CLOCKS; i++) wait_for(clocks[i], SECOND / 5);
    wait_for(now_ns, 20 * SECOND);
    work_for(now_ns, SECOND / 2);
    work_for(by_call, SECOND / 2);
    measure();
    calibrate();
    return done();
}
