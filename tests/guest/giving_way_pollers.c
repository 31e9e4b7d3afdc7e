/* Threads that compute without a call beside others that wait for a millisecond again and again: the one that sleeps
 * for longer ends them. */
#include "guest.h"
#include <poll.h>

#define COMPUTING 2
#define POLLING 6

static pthread_t threads[COMPUTING + POLLING];
static volatile int stop;
static volatile unsigned long result[COMPUTING];

static void *compute(void *argument)
{
    unsigned long me = (unsigned long)argument, x = me, sum = 0;
    while (!stop) {
        x = x * 6364136223846793005UL + 1;
        for (unsigned i = 0; i < x >> 60; i++)
            sum += i;
        result[me] = sum;
    }
    return argument ? argument : threads;
}

static void *look(void *argument)
{
    while (!stop)
        CHECK(poll(NULL, 0, 1) == 0);
    return argument;
}

int main(void)
{
    for (long i = 0; i < COMPUTING + POLLING; i++)
        threads[i] = start(i < COMPUTING ? compute : look, i < COMPUTING ? (void *)i : &threads[i]);
    for (int i = 0; i < 10; i++)
        sleep_ms(100);
    stop = 1;
    for (int i = 0; i < COMPUTING + POLLING; i++)
        join(threads[i]);
    note("%lu %lu, %lld ns\n", result[0], result[1], (long long)now_ns());
    return done();
}
