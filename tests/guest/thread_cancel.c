/* pthread_cancel while blocked, clean-up handlers, thread-specific data, exit of the first thread, exec from a thread. */
#include "guest.h"

static int ends[2], cleaned;
static pthread_key_t key;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

static void clean(void *argument)
{
    cleaned += (int)(intptr_t)argument;
}

static void *in_read(void *unused)
{
    char byte;
    pthread_cleanup_push(clean, (void *)1);
    pthread_setspecific(key, (void *)10);
    if (read(ends[0], &byte, 1) < 0)
        perror("read");
    pthread_cleanup_pop(0);
    return unused;
}

static void unlock(void *argument)
{
    pthread_mutex_unlock(argument);
}

static void *in_condition(void *unused)
{
    pthread_mutex_lock(&mutex);
    pthread_cleanup_push(unlock, &mutex);
    for (;;)
        pthread_cond_wait(&condition, &mutex);
    pthread_cleanup_pop(1);
    return unused;
}

static void *disabled(void *unused)
{
    int old;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    sleep_ms(30);
    pthread_setcancelstate(old, NULL);
    pthread_testcancel();
    return unused;
}

static void *asynchronous(void *unused)
{
    int old;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
    for (;;)
        sched_yield();
    return unused;
}

static void *outlive(void *unused)
{
    char byte;
    sleep_ms(20);
    CHECK(write(ends[1], "x", 1) == 1 && read(ends[0], &byte, 1) == 1);
    CHECK(access(".", F_OK) == 0 && open("/dev/null", O_RDWR) >= 0);
    note("the first thread has left\n");
    exit(5);
    return unused;
}

static void *execute(void *unused)
{
    execl("/bin/sh", "sh", "-c", "exit 6", NULL);
    return unused;
}

int main(void)
{
    CHECK(pipe(ends) == 0);
    pthread_key_create(&key, clean);
    void *(*bodies[])(void *) = {in_read, in_condition, disabled, asynchronous};
    for (int i = 0; i < 4; i++) {
        pthread_t thread = start(bodies[i], NULL);
        sleep_ms(10);
        CHECK(pthread_cancel(thread) == 0);
        CHECK(join(thread) == PTHREAD_CANCELED);
    }
    CHECK(cleaned == 11);
    CHECK(pthread_mutex_trylock(&mutex) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        start(outlive, NULL);
        pthread_exit(NULL);
    }
    reap(pid, 5);
    pid = fork();
    if (pid == 0) {
        start(disabled, NULL);
        start(execute, NULL);
        for (;;)
            pause();
    }
    reap(pid, 6);
    return done();
}
