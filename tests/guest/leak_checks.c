/* A sanitizer looks for leaks: its child stops all threads, wherever they are, and looks through their registers and stacks. */
#include "guest.h"

#include <sanitizer/lsan_interface.h>

#define THREADS 4

static atomic_int started, released;
static int futex_word;

static void *holds(void *which)
{
    int i = (int)(intptr_t)which;
    volatile char *block = malloc(100 + i); /* nobody else knows it */
    block[0] = (char)i;
    started++;
    switch (i) {
    case 0: syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0); break;
    case 1: usleep(300000); break;
    case 2: while (!released) sched_yield(); break;
    case 3: while (!released) ; break;
    }
    CHECK(block[0] == i);
    free((void *)block);
    return NULL;
}

int main(void)
{
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, holds, (void *)(intptr_t)i) == 0);
    while (started < THREADS) sched_yield();
    usleep(1000);
    void *volatile kept = malloc(33);
    CHECK(__lsan_do_recoverable_leak_check() == 0);
    memset((void *)&kept, 0, sizeof kept);
    CHECK(__lsan_do_recoverable_leak_check() == 1);
    note("one leak\n");
    futex_word = released = 1;
    syscall(SYS_futex, &futex_word, FUTEX_WAKE, 1, NULL, NULL, 0);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    done();
    _exit(0); /* without the check at the end, which would find it again */
}
