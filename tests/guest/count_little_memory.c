/* A thread computes until another one has slept, in a process that may have little memory for its data: what is needed to
 * count its instructions is not taken from that. */
#include "guest.h"

static volatile int over;

static void *compute(void *argument)
{
    unsigned long x = 1;
    while (!over) x = x * 6364136223846793005ul + (x >> 17);
    note("%lx\n", x);
    return argument;
}

int main(void)
{
    struct rlimit data = {48 << 20, 48 << 20};
    CHECK(setrlimit(RLIMIT_DATA, &data) == 0);
    pthread_t computing = start(compute, NULL);
    sleep_ms(20);
    over = 1;
    join(computing);
    char *block = malloc(30 << 20);
    CHECK(block);
    memset(block, 1, 30 << 20);
    CHECK(malloc(20 << 20) == NULL && errno == ENOMEM);
    return done();
}
