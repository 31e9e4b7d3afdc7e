/* A process that computes without a call beside others that poll every millisecond, and one that sleeps for longer and
 * ends them. */
#include "guest.h"

#define POLLING 6

static volatile unsigned long *result;

static void compute(void)
{
    for (unsigned long x = 1;; x = x * 6364136223846793005UL + 1)
        for (unsigned i = 0; i < x >> 60; i++)
            *result += i;
}

static void look(int milliseconds)
{
    for (;;)
        CHECK(poll(NULL, 0, milliseconds) == 0);
}

int main(void)
{
    pid_t children[1 + POLLING];
    result = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(result != MAP_FAILED);
    for (int i = 0; i <= POLLING; i++) {
        CHECK((children[i] = fork()) >= 0);
        if (!children[i])
            i ? look(i & 1 ? 1 : 20) : compute();
    }
    for (int i = 0; i < 5; i++)
        sleep_ms(500);
    for (int i = 0; i <= POLLING; i++) {
        int status;
        CHECK(kill(children[i], SIGKILL) == 0 && waitpid(children[i], &status, 0) == children[i]);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    note("%lu, %lld ns\n", *result, (long long)now_ns());
    return done();
}
