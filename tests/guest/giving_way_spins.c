/* Threads that have often been found to spin while another one sleeps, and then wait in loops that are no provable
 * spins: they give way as before. */
#include "guest.h"
#include <math.h>
#include <semaphore.h>

#define SPINS 40

static sem_t never, turns;
static volatile int asked, answered, flag;
static volatile double result;

static void *sleep_all_the_time(void *argument)
{
    struct timespec late = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 8 * SECOND);
    (void)(sem_timedwait(&never, &late));
    return argument;
}

static void *answer(void *argument)
{
    for (int i = 0; i < SPINS; i++) {
        while (asked <= i)
            ;
        answered++;
    }
    return argument;
}

/* Both threads spin in turn. */
static void spin_often(void)
{
    pthread_t other = start(answer, NULL);
    sleep_ms(100);
    for (int i = 0; i < SPINS; i++) {
        CHECK(getppid() >= 0);
        asked++;
        while (answered <= i)
            ;
    }
    join(other);
}

static void wait_for_it(void)
{
    double x = 1;
    for (long i = 0; !flag; i++)
        x = sin(x) + 1.5 + (double)(i % 7) / 1000;
    result = x;
    flag = 0;
}

static void *sleep_then_end(void *argument)
{
    sleep_ms(20);
    flag = 1;
    return argument;
}

static void *end_at_once(void *argument)
{
    CHECK(sem_wait(&turns) == 0);
    flag = 1;
    return argument;
}

static void *release_then_end(void *argument)
{
    sleep_ms(5);
    asked = -1;
    sleep_ms(20);
    flag = 1;
    return argument;
}

int main(void)
{
    CHECK(sem_init(&turns, 0, 0) == 0 && sem_init(&never, 0, 0) == 0);
    pthread_t sleeper = start(sleep_all_the_time, NULL);
    spin_often();
    note("spun\n");
    int64_t before = now_ns();
    pthread_t other = start(sleep_then_end, NULL);
    wait_for_it();
    join(other);
    note("slept\n");
    other = start(end_at_once, NULL);
    sleep_ms(1);
    CHECK(sem_post(&turns) == 0);
    wait_for_it();
    join(other);
    note("was ready\n");
    other = start(release_then_end, NULL);
    while (asked != -1)
        ;
    wait_for_it();
    join(other);
    note("was released\n");
    CHECK(now_ns() - before < 5 * SECOND); /* the one that sleeps all the time has not ended any of these */
    CHECK(sem_post(&never) == 0);
    join(sleeper);
    return done();
}
