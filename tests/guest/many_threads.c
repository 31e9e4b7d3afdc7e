/* 500 threads that live at once, thread-local data, and an order of work that only the scheduler decides. */
#include "guest.h"

#define N 500
static pthread_barrier_t gate;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int order[N], position;
static __thread int mine;

static void *work(void *argument)
{
    mine = (int)(intptr_t)argument;
    pthread_barrier_wait(&gate);
    pthread_mutex_lock(&mutex);
    order[position++] = mine;
    pthread_mutex_unlock(&mutex);
    return (void *)(intptr_t)(mine * 2);
}

int main(void)
{
    pthread_t threads[N];
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    pthread_barrier_init(&gate, NULL, N);
    for (intptr_t i = 0; i < N; i++)
        CHECK(pthread_create(&threads[i], &small, work, (void *)i) == 0);
    for (int i = 0; i < N; i++)
        CHECK((intptr_t)join(threads[i]) == i * 2);
    CHECK(position == N);
    unsigned hash = 0;
    for (int i = 0; i < N; i++)
        hash = hash * 31 + (unsigned)order[i];
    note("order %u first %d last %d\n", hash, order[0], order[N - 1]);
    return done();
}
