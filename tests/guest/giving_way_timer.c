/* Threads that compute without a call in a process whose timer has been disarmed, or has expired: they do not hand the
 * processor to and fro for ever. */
#include "guest.h"
#include <sys/time.h>

enum { TURNS = 300000000, MOST_SWITCHES = 500 };

static volatile long whose, switches;
static volatile sig_atomic_t expired;

static void *compute(void *argument)
{
    long me = (long)argument, sum = 0;
    for (long i = 0; i < TURNS; i++) {
        sum += i ^ me;
        if (whose != me) {
            whose = me;
            switches++;
        }
    }
    return (void *)(sum | 1);
}

static void note_expired(int number)
{
    expired = number;
}

static void both_compute(const char *behind)
{
    whose = switches = 0;
    pthread_t first = start(compute, (void *)1), second = start(compute, (void *)2);
    join(first);
    join(second);
    CHECK(switches < MOST_SWITCHES);
    note("%s: %ld switches, %lld ns\n", behind, switches, (long long)now_ns());
}

int main(void)
{
    on_signal(SIGALRM, note_expired, 0);
    alarm(30);
    alarm(0);
    both_compute("disarmed");
    struct itimerval soon = {.it_value = {0, 100000}};
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    both_compute("expired");
    CHECK(expired == SIGALRM);
    return done();
}
