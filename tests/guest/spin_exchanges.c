/* Two threads that wait for each other, one of them in a loop that is a spin, while a third one sleeps; and an endless loop
 * that begins when many calls have used up what may be spent on counting. */
#include "guest.h"
#include <semaphore.h>
#include <sys/wait.h>

#define CALLS 12000

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static sem_t asked, calls[2];
static long answers;
static volatile int stop;

static void *answer(void *unused)
{
    for (;;) {
        CHECK(sem_wait(&asked) == 0);
        if (stop)
            return unused;
        CHECK(pthread_mutex_lock(&lock) == 0);
        answers++;
        CHECK(pthread_mutex_unlock(&lock) == 0);
    }
}

static long answered(void)
{
    CHECK(pthread_mutex_lock(&lock) == 0);
    long found = answers;
    CHECK(pthread_mutex_unlock(&lock) == 0);
    return found;
}

static void *ask(void *unused)
{
    while (!stop) {
        long before = answered();
        CHECK(sem_post(&asked) == 0);
        while (answered() == before && !stop)
            ;
    }
    CHECK(sem_post(&asked) == 0);
    return unused;
}

/* Natively that are some 40,000 times: here each of them takes as long as it takes to find out. */
static void until_somebody_has_slept(void)
{
    CHECK(sem_init(&asked, 0, 0) == 0);
    pthread_t asking = start(ask, NULL), answering = start(answer, NULL);
    sleep_ms(600);
    stop = 1;
    join(asking);
    join(answering);
    note("%ld answers\n", answers);
}

static void *call(void *argument)
{
    for (int i = 0; i < CALLS; i++)
        CHECK(sem_wait(&calls[0]) == 0 && sem_post(&calls[1]) == 0);
    return argument;
}

static void *compute(void *argument)
{
    unsigned long x = 1, high = 0;
    while (!stop) {
        x = x * 6364136223846793005 + 1442695040888963407;
        if (x >> 63) /* a branch: else this would only count */
            __asm__ volatile("inc %0" : "+r"(high));
    }
    CHECK(high > 0);
    return argument;
}

static void *sleep_long(void *argument)
{
    sleep_ms(2000);
    return argument;
}

static void behind_many_calls(void)
{
    CHECK(sem_init(&calls[0], 0, 0) == 0 && sem_init(&calls[1], 0, 0) == 0);
    pthread_t sleeping = start(sleep_long, NULL), calling = start(call, NULL);
    for (int i = 0; i < CALLS; i++)
        CHECK(sem_post(&calls[0]) == 0 && sem_wait(&calls[1]) == 0);
    join(calling);
    stop = 0;
    pthread_t computing = start(compute, NULL);
    sleep_ms(100);
    stop = 1;
    join(computing);
    join(sleeping);
}

/* In a process of its own: what may be spent is bounded for each. */
static void apart(void (*part)(void))
{
    int status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        part();
        fflush(stdout);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(void)
{
    apart(until_somebody_has_slept);
    apart(behind_many_calls);
    return done();
}
