/* A loop that counts until a timer's signal comes.  Without counted instructions it cannot be deterministic: it
 * must end either with the same count or with a refusal that names it, never with a hang. */
#include "guest.h"
#include <sys/time.h>

static volatile sig_atomic_t rung;

static void ring(int number)
{
    rung = number;
}

int main(void)
{
    struct itimerval timer = {{0, 0}, {0, 20000}};
    volatile unsigned long count = 0;
    on_signal(SIGALRM, ring, 0);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    while (!rung)
        count++;
    note("counted %lu\n", count);
    return done();
}
