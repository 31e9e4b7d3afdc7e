/* Threads that compute when no more may be counted for the sake of those that are ready: who is woken by a new one goes
 * first.  And when nothing may be spent at all, nor is left of the calls that are counted all the same. */
#include "guest.h"
#include <math.h>
#include <semaphore.h>

#define ROUNDS 30000000
#define CALLS 14000
#define THREADS 100

static sem_t started, never, to, fro;
static pthread_t threads[3];
static volatile int go_on = 1;
static volatile double result;

static double compute(long rounds)
{
    double x = 1;
    for (long i = 0; i < rounds && go_on; i++)
        x = sin(x) + 1.5;
    return x;
}

static void *spend(void *argument)
{
    result = compute(ROUNDS);
    return argument;
}

static void *work(void *argument)
{
    CHECK(sem_post(&started) == 0);
    result = compute(ROUNDS);
    CHECK(!go_on); /* before it has come to its end */
    return argument;
}

static void *answer(void *argument)
{
    for (int i = 0; i < CALLS; i++) {
        CHECK(sem_wait(&to) == 0);
        CHECK(sem_post(&fro) == 0);
    }
    return argument;
}

static void ask(void)
{
    CHECK(sem_post(&to) == 0);
    CHECK(sem_wait(&fro) == 0);
}

static void *ask_sometimes(void *argument)
{
    for (int i = 0; i < CALLS / 2 / THREADS; i++)
        ask();
    return argument;
}

static void *sleep_long(void *argument)
{
    sleep_ms(9000);
    return argument;
}

/* A second thread waits for a time meanwhile, so that all of these calls are counted. */
static void make_calls(void)
{
    pthread_t sleeper = start(sleep_long, threads), other = start(answer, threads);
    for (int i = 0; i < CALLS / 2; i++)
        ask();
    for (int i = 0; i < THREADS; i++)
        join(start(ask_sometimes, threads));
    join(other);
    CHECK(pthread_cancel(sleeper) == 0 && pthread_join(sleeper, NULL) == 0);
}

static void give_way(void)
{
    go_on = 1;
    pthread_t worker = start(work, threads);
    CHECK(sem_wait(&started) == 0);
    struct timespec soon = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 5 * MS);
    FAILS(sem_timedwait(&never, &soon), ETIMEDOUT);
    go_on = 0;
    join(worker);
}

int main(void)
{
    CHECK(sem_init(&started, 0, 0) == 0 && sem_init(&never, 0, 0) == 0);
    CHECK(sem_init(&to, 0, 0) == 0 && sem_init(&fro, 0, 0) == 0);
    for (int i = 0; i < 3; i++)
        threads[i] = start(spend, threads);
    for (int i = 0; i < 3; i++)
        join(threads[i]);
    give_way();
    note("worked after %lld\n", (long long)now_ns());
    make_calls();
    for (int i = 0; i < 3; i++)
        give_way();
    note("worked after %lld\n", (long long)now_ns());
    return done();
}
