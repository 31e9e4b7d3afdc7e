/* Threads that wait for each other at barriers in memory thousands of times, two and then four of them: who has arrived
 * counts nothing, some look at the time, at their CPU time or make a call in between, and a timer expires now and then. */
#include "guest.h"

#define ROUNDS 2000

static volatile int arrived, phase, threads;
static int64_t sums[4], times[4];

static void barrier(void)
{
    int mine = phase;
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == threads) {
        arrived = 0;
        phase = mine + 1;
    } else {
        while (phase == mine)
            __asm__ volatile("pause");
    }
}

static void *meet(void *argument)
{
    long long me = (long)argument, sum = me;
    for (int i = 0; i < ROUNDS; i++) {
        for (int k = 0; k < 20 + 7 * me; k++)
            sum = sum * 31 + k;
        barrier();
        if (i % 500 == 100 * me)
            sum += now_ns();
        if (i % 700 == 0 && me == 1)
            sum += getppid();
        if (i % 900 == 0)
            sum += clock_ns(CLOCK_THREAD_CPUTIME_ID);
    }
    sums[me] = sum;
    times[me] = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    return NULL;
}

static void *sleep_now_and_then(void *unused)
{
    for (int i = 0; i < 10; i++)
        sleep_ms(i);
    return unused;
}

static void together(int count)
{
    pthread_t all[4];
    threads = count;
    arrived = 0;
    for (long i = 0; i < count; i++)
        all[i] = start(meet, (void *)i);
    for (int i = 0; i < count; i++)
        join(all[i]);
    CHECK(phase % ROUNDS == 0);
    for (int i = 0; i < count; i++)
        note("%d threads: %lld, after %lld ns\n", count, (long long)sums[i], (long long)times[i]);
    note("%lld ns, %lld of CPU time\n", (long long)now_ns(), (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
}

int main(void)
{
    together(2);
    together(4);
    pthread_t sleeping = start(sleep_now_and_then, NULL);
    together(2);
    join(sleeping);
    return done();
}
