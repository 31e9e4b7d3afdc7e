/* Programs whose output, or whose own bytes, differ from build to build; PART chooses one. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#if PART == 1
int main(void) { return puts("built " __DATE__ ", " __TIME__) < 0; }
#elif PART == 2
int main(void)
{
    int local;
    return printf("%p %p %p\n", (void *)main, (void *)&local, (void *)stdout) < 0;
}
#elif PART == 3
int main(void)
{
    unsigned char *grown = malloc(1 << 20);
    return printf("%p\n", (void *)grown) < 0;
}
#elif PART == 4
int main(void) { return printf("%llu\n", __builtin_ia32_rdtsc()) < 0; }
#else
static int turn, places[4];
static void *runner(void *number)
{
    for (volatile int step = 0; step < 200000; step++)
        ;
    places[__atomic_fetch_add(&turn, 1, __ATOMIC_SEQ_CST)] = (int)(long)number;
    return NULL;
}
int main(void)
{
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, runner, (void *)i);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    return printf("%d %d %d %d\n", places[0], places[1], places[2], places[3]) < 0;
}
#endif
