/* Which thread takes a signal of its process does not depend on what the others are doing. */
#include "guest.h"

static volatile pid_t taken_by;
static int ends[2];

static void take(int signo)
{
    (void)signo;
    taken_by = gettid();
}

static void compute(int rounds)
{
    volatile double x = 1;
    for (int k = 0; k < rounds; k++)
        x = x * 1.0000001 + 0.1;
}

/* Waits for a child to write, and then computes while the child's signal is still to be taken. */
static void *reader(void *unused)
{
    char byte;
    (void)unused;
    for (int i = 0; i < 4; i++) {
        struct pollfd end = {ends[0], POLLIN, 0};
        CHECK(poll(&end, 1, -1) == 1); /* not read(): what follows that may still be the kernel's work */
        compute(60000000);
        CHECK(read(ends[0], &byte, 1) == 1);
    }
    return NULL;
}

static int nothing(void *unused)
{
    (void)unused;
    return (int)syscall(SYS_exit, 0);
}

/* The threads of a program that makes them in its own way are not counted for one another. */
static void own_thread(void)
{
    static char stack[65536] __attribute__((aligned(16)));
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    CHECK(clone(nothing, stack + sizeof stack, flags, NULL) > 0);
}

static atomic_int over, told;

static void tell(int signo)
{
    (void)signo;
    told++;
}

static void *told_again_and_again(void *unused)
{
    sigset_t told_of, usual;
    (void)unused;
    sigemptyset(&told_of);
    sigaddset(&told_of, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &told_of, &usual) == 0);
    while (!over) sigsuspend(&usual);
    return NULL;
}

static void *ends_it(void *unused)
{
    (void)unused;
    sleep_ms(1);
    over = 1;
    return NULL;
}

/* Who sends another thread one signal after the other does not keep a third one from its turn. */
static void flood(void)
{
    pthread_t receiver, third;
    on_signal(SIGUSR1, tell, 0);
    CHECK(pthread_create(&receiver, NULL, told_again_and_again, NULL) == 0);
    CHECK(pthread_create(&third, NULL, ends_it, NULL) == 0);
    long sent = 0;
    for (; !over; sent++) CHECK(pthread_kill(receiver, SIGUSR1) == 0);
    note("%ld sent, %d handled\n", sent, (int)told);
    CHECK(pthread_kill(receiver, SIGUSR1) == 0);
    CHECK(pthread_join(receiver, NULL) == 0 && pthread_join(third, NULL) == 0);
}

static volatile pid_t numbered;

static void *has_it_blocked(void *unused)
{
    char byte;
    (void)unused;
    numbered = gettid();
    CHECK(read(ends[0], &byte, 1) == 1);
    return NULL;
}

static void *interrupted(void *unused)
{
    sigset_t told_of;
    char byte;
    (void)unused;
    sigemptyset(&told_of);
    sigaddset(&told_of, SIGUSR2);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &told_of, NULL) == 0);
    FAILS(read(ends[0], &byte, 1), EINTR);
    CHECK(taken_by == gettid());
    CHECK(write(ends[1], "x", 1) == 1);
    return NULL;
}

/* To kill, a thread's number is its process's. */
static void by_a_threads_number(void)
{
    sigset_t told_of;
    pthread_t named, taker;
    on_signal(SIGUSR2, take, 0);
    sigemptyset(&told_of);
    sigaddset(&told_of, SIGUSR2);
    CHECK(pthread_sigmask(SIG_BLOCK, &told_of, NULL) == 0);
    CHECK(pthread_create(&named, NULL, has_it_blocked, NULL) == 0);
    CHECK(pthread_create(&taker, NULL, interrupted, NULL) == 0);
    sleep_ms(20); /* until both are asleep */
    CHECK(kill(numbered, SIGUSR2) == 0);
    CHECK(pthread_join(taker, NULL) == 0 && pthread_join(named, NULL) == 0);
}

int main(void)
{
    struct sigaction act = {.sa_handler = take};
    pthread_t thread;
    own_thread();
    CHECK(sigaction(SIGCHLD, &act, NULL) == 0 && pipe(ends) == 0);
    CHECK(pthread_create(&thread, NULL, reader, NULL) == 0);
    for (int i = 0; i < 4; i++) {
        int status;
        taken_by = 0;
        pid_t pid = fork();
        if (pid == 0) {
            sleep_ms(20); /* until the other one is asleep */
            CHECK(write(ends[1], "x", 1) == 1);
            _exit(3);
        }
        /* Too long to count the other thread's instructions for it, which would stop that. */
        struct timespec long_time = {20, 0};
        FAILS(nanosleep(&long_time, NULL), EINTR);
        CHECK(taken_by == getpid());
        CHECK(wait(&status) == pid && WEXITSTATUS(status) == 3);
    }
    CHECK(pthread_join(thread, NULL) == 0);
    flood();
    by_a_threads_number();
    return done();
}
