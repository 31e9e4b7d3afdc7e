/* Processes for whose sake nobody is counted, and that count until another one tells them to stop: how far they get does
 * not depend on when that is found out, which takes a while.  Narrow counters: tests/unit/test_spin.py. */
#include "guest.h"

static volatile int *stop;

static void wide(void)
{
    long n = 0, by_three = 0;
    while (!*stop) n++, by_three -= 3;
    note("%ld %ld\n", n, by_three);
}

static void atomic(void)
{
    atomic_long n = 0;
    volatile long half;
    while (!*stop) half = atomic_fetch_add(&n, 2) >> 1;
    note("%ld %ld\n", atomic_load(&n), half);
}

static void ends_soon(void (*loop)(void))
{
    int ends[2];
    char byte = 0;
    CHECK(pipe(ends) == 0);
    *stop = 0;
    pid_t other = fork();
    if (other == 0) {
        CHECK(read(ends[0], &byte, 1) == 1);
        *stop = 1;
        _exit(0);
    }
    pid_t counting = fork();
    if (counting == 0) {
        CHECK(write(ends[1], &byte, 1) == 1);
        loop();
        _exit(0);
    }
    int status;
    CHECK(waitpid(counting, &status, 0) == counting && status == 0);
    CHECK(waitpid(other, &status, 0) == other && status == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

int main(void)
{
    stop = mmap(NULL, sizeof *stop, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(stop != MAP_FAILED);
    ends_soon(wide);
    ends_soon(atomic);
    return done();
}
