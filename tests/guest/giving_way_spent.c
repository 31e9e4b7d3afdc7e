/* Threads that compute when no more may be counted for the sake of those that are ready: who is woken by a new one goes
 * first. */
#include "guest.h"
#include <math.h>
#include <semaphore.h>

#define ROUNDS 30000000

static sem_t started, never;
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

int main(void)
{
    CHECK(sem_init(&started, 0, 0) == 0 && sem_init(&never, 0, 0) == 0);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        threads[i] = start(spend, threads);
    for (int i = 0; i < 3; i++)
        join(threads[i]);
    pthread_t worker = start(work, threads);
    CHECK(sem_wait(&started) == 0);
    struct timespec soon = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 5 * MS);
    FAILS(sem_timedwait(&never, &soon), ETIMEDOUT);
    go_on = 0;
    join(worker);
    note("worked after %lld\n", (long long)now_ns());
    return done();
}
