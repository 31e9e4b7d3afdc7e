/* Waits without system calls: flags with and without pause, ticket locks, contended spin locks, barriers in memory,
 * bounded polls. */
#include "guest.h"

#define THREADS 3
static volatile int flag, counting_flag;
static volatile long data;

static void *raise_flag(void *argument)
{
    data = 42;
    *(volatile int *)argument = 1;
    return NULL;
}

static void flags(void)
{
    pthread_t thread = start(raise_flag, (void *)&flag);
    while (!flag)
        ;
    CHECK(data == 42);
    join(thread);
    flag = 0;
    thread = start(raise_flag, (void *)&flag);
    while (!flag)
        __builtin_ia32_pause();
    join(thread);
}

static _Atomic unsigned next_ticket, now_serving;
static long counter;

static void *with_tickets(void *unused)
{
    for (int i = 0; i < 300; i++) {
        unsigned mine = next_ticket++;
        while (now_serving != mine)
            sched_yield();
        counter++;
        now_serving++;
    }
    return unused;
}

static _Atomic int locked;

static void *with_spin_lock(void *unused)
{
    for (int i = 0; i < 2000; i++) {
        while (atomic_exchange(&locked, 1))
            while (locked)
                __builtin_ia32_pause();
        counter++;
        locked = 0;
    }
    return unused;
}

static volatile int arrived[THREADS], release_round;

/* The master waits for all workers by reading their flags, then lets them go by a volatile round number. */
static void *worker(void *argument)
{
    int me = (int)(intptr_t)argument;
    for (int round = 1; round <= 1000; round++) {
        arrived[me] = round;
        while (release_round < round)
            ;
    }
    return NULL;
}

static void barrier(void)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        threads[i] = start(worker, (void *)(intptr_t)i);
    for (int round = 1; round <= 1000; round++) {
        int sum;
        do {
            sum = 0;
            for (int i = 0; i < THREADS; i++)
                sum += arrived[i] == round;
        } while (sum < THREADS);
        release_round = round;
    }
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
}

static void together(void *(*body)(void *), long expected)
{
    pthread_t threads[THREADS];
    counter = 0;
    for (int i = 0; i < THREADS; i++)
        threads[i] = start(body, NULL);
    for (int i = 0; i < THREADS; i++)
        join(threads[i]);
    CHECK(counter == expected);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static _Atomic int pending, finished;

/* Polls a bounded number of times, then looks whether it is to leave, under a lock, and so on for ever. */
static void *poller(void *unused)
{
    for (;;) {
        for (int turn = 0; turn < 1000000 && !pending; turn++)
            ;
        if (pending) {
            counter++;
            pending = 0;
        }
        pthread_mutex_lock(&mutex);
        int leave = finished;
        pthread_mutex_unlock(&mutex);
        if (leave)
            return unused;
    }
}

static void polls(void)
{
    counter = 0;
    pthread_t thread = start(poller, NULL);
    for (int round = 0; round < 1000; round++) {
        pending = 1;
        while (pending)
            ;
    }
    usleep(1000);
    pthread_mutex_lock(&mutex);
    finished = 1;
    pthread_mutex_unlock(&mutex);
    join(thread);
    CHECK(counter == 1000);
}

static void between_processes(void)
{
    volatile int *shared = shared_page(4096);
    pid_t pid = fork();
    if (pid == 0) {
        while (!shared[0])
            ;
        shared[1] = 1;
        _exit(0);
    }
    shared[0] = 1;
    while (!shared[1])
        ;
    reap(pid, 0);
}

int main(void)
{
    flags();
    together(with_tickets, THREADS * 300);
    together(with_spin_lock, THREADS * 2000);
    barrier();
    between_processes();
    polls();
    return done();
}
