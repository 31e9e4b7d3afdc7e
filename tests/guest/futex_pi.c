/* Priority-inheritance futexes: uncontended, contended, timed, tried, wrongly unlocked. */
#include "guest.h"

static uint32_t lock;
static _Atomic int entered, order[8], position;

static uint32_t tid(void)
{
    return (uint32_t)gettid();
}

static void *contender(void *argument)
{
    FAILS(futex(&lock, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0), EAGAIN);
    FAILS(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0), EPERM);
    struct timespec t = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 10 * MS);
    FAILS(futex(&lock, FUTEX_LOCK_PI, 0, &t, NULL, 0), ETIMEDOUT);
    entered++;
    CHECK(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0) == 0);
    CHECK((lock & FUTEX_TID_MASK) == tid());
    order[position++] = (int)(intptr_t)argument;
    CHECK(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0) == 0);
    return NULL;
}

static pthread_mutex_t mutex;
static long sum;

static void *count(void *unused)
{
    for (int i = 0; i < 200; i++) {
        CHECK(pthread_mutex_lock(&mutex) == 0);
        long old = sum;
        if (i % 20 == 0)
            sched_yield();
        sum = old + 1;
        CHECK(pthread_mutex_unlock(&mutex) == 0);
    }
    return unused;
}

int main(void)
{
    CHECK(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0) == 0);
    CHECK(lock == tid());
    FAILS(futex(&lock, FUTEX_LOCK_PI, 0, NULL, NULL, 0), EDEADLK);
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        t[i] = start(contender, (void *)(intptr_t)i);
    while (entered < 4)
        sleep_ms(5);
    sleep_ms(20);
    CHECK(lock == (tid() | FUTEX_WAITERS));
    CHECK(futex(&lock, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0) == 0);
    for (int i = 0; i < 4; i++)
        join(t[i]);
    CHECK(position == 4);
    note("order %d%d%d%d\n", order[0], order[1], order[2], order[3]);

    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    CHECK(pthread_mutex_init(&mutex, &attributes) == 0);
    for (int i = 0; i < 4; i++)
        t[i] = start(count, NULL);
    for (int i = 0; i < 4; i++)
        join(t[i]);
    CHECK(sum == 800);
    return done();
}
