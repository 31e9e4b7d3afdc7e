/* Mutexes of every type, condition variables, barriers, rwlocks, spin locks and semaphores of one process. */
#include "guest.h"
#include <semaphore.h>

#define THREADS 6
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_spinlock_t spin;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static sem_t sem;
static long counters[4];
static int turn, serial, log_length, logged[THREADS * 10], once_count;

static void only_once(void)
{
    once_count++;
}

static void *work(void *argument)
{
    int me = (int)(intptr_t)argument;
    pthread_once(&once, only_once);
    for (int i = 0; i < 10; i++) {
        pthread_mutex_lock(&mutex);
        counters[0]++;
        logged[log_length++] = me;
        while (turn % THREADS != me)
            pthread_cond_wait(&condition, &mutex);
        turn++;
        pthread_cond_broadcast(&condition);
        pthread_mutex_unlock(&mutex);

        pthread_rwlock_rdlock(&rwlock);
        long seen = counters[1];
        sched_yield();
        CHECK(seen == counters[1]);
        pthread_rwlock_unlock(&rwlock);
        pthread_rwlock_wrlock(&rwlock);
        counters[1]++;
        pthread_rwlock_unlock(&rwlock);

        pthread_spin_lock(&spin);
        counters[2]++;
        pthread_spin_unlock(&spin);

        CHECK(sem_wait(&sem) == 0);
        __atomic_add_fetch(&counters[3], 1, __ATOMIC_SEQ_CST);
        CHECK(sem_post(&sem) == 0);
        if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD)
            __atomic_add_fetch(&serial, 1, __ATOMIC_SEQ_CST);
    }
    return NULL;
}

static void kinds(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutex_t m;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&m, &attributes);
    CHECK(pthread_mutex_unlock(&m) == EPERM);
    CHECK(pthread_mutex_lock(&m) == 0 && pthread_mutex_lock(&m) == EDEADLK);
    CHECK(pthread_mutex_unlock(&m) == 0);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&m, &attributes);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_mutex_lock(&m) == 0);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_mutex_unlock(&m) == 0);
}

static void *hold(void *unused)
{
    pthread_mutex_lock(&mutex);
    pthread_rwlock_wrlock(&rwlock);
    sleep_ms(60);
    pthread_rwlock_unlock(&rwlock);
    pthread_mutex_unlock(&mutex);
    return unused;
}

static struct timespec soon(clockid_t clock, int64_t ms)
{
    return ns_to_timespec(clock_ns(clock) + ms * MS);
}

static void timed(void)
{
    pthread_t thread = start(hold, NULL);
    sleep_ms(10);
    struct timespec t = soon(CLOCK_REALTIME, 10);
    CHECK(pthread_mutex_timedlock(&mutex, &t) == ETIMEDOUT);
    t = soon(CLOCK_MONOTONIC, 10);
    CHECK(pthread_mutex_clocklock(&mutex, CLOCK_MONOTONIC, &t) == ETIMEDOUT);
    CHECK(pthread_mutex_trylock(&mutex) == EBUSY);
    t = soon(CLOCK_REALTIME, 10);
    CHECK(pthread_rwlock_timedrdlock(&rwlock, &t) == ETIMEDOUT);
    CHECK(pthread_rwlock_tryrdlock(&rwlock) == EBUSY);
    join(thread);
    pthread_mutex_lock(&mutex);
    int64_t begin = clock_ns(CLOCK_REALTIME);
    t = soon(CLOCK_REALTIME, 25);
    CHECK(pthread_cond_timedwait(&condition, &mutex, &t) == ETIMEDOUT);
    CHECK(clock_ns(CLOCK_REALTIME) - begin >= 25 * MS);
    pthread_mutex_unlock(&mutex);
    sem_t empty;
    sem_init(&empty, 0, 0);
    t = soon(CLOCK_REALTIME, 10);
    FAILS(sem_timedwait(&empty, &t), ETIMEDOUT);
    FAILS(sem_trywait(&empty), EAGAIN);
}

int main(void)
{
    pthread_t t[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS);
    pthread_spin_init(&spin, PTHREAD_PROCESS_PRIVATE);
    sem_init(&sem, 0, 2);
    for (int i = 0; i < THREADS; i++)
        t[i] = start(work, (void *)(intptr_t)i);
    for (int i = 0; i < THREADS; i++)
        join(t[i]);
    for (int i = 0; i < 4; i++)
        CHECK(counters[i] == THREADS * 10);
    CHECK(serial == 10 && once_count == 1);
    for (int i = 0; i < log_length; i++)
        note("%d%s", logged[i], i % 30 == 29 ? "\n" : "");
    note("\n");
    kinds();
    timed();
    return done();
}
