/* A thread computes without a call and handles many signals, until a third thread has slept: the end of a handler is a
 * call that is stepped over, which says nothing of the code. */
#include "guest.h"
#include <semaphore.h>

static volatile int over;
static sem_t handled;
static atomic_long sent;

static void on_user(int number)
{
    (void)number;
    sem_post(&handled);
}

static void *compute(void *argument)
{
    long rounds = 0;
    unsigned long x = 1;
    for (; !over; rounds++) x = x * 6364136223846793005ul + (x >> 17);
    note("%ld rounds: %lx\n", rounds, x);
    return argument;
}

static void *send_many(void *argument)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (; !over; sent++) {
        CHECK(kill(getpid(), SIGUSR1) == 0);
        while (sem_wait(&handled));
    }
    return argument;
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_user};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sem_init(&handled, 0, 0) == 0);
    pthread_t computing = start(compute, &set);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    pthread_t sending = start(send_many, &set);
    do sleep_ms(300); while (sent <= 200); /* a busy machine takes its time */
    over = 1;
    join(sending);
    join(computing);
    note("%ld signals\n", sent);
    return done();
}
