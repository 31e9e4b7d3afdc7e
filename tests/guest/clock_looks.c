/* A look at the clock is the same whether the guest makes it by itself or by a system call, and both are one clock. */
#include "guest.h"
#include <x86intrin.h>

/* Fewer than make detbox measure what the program does between them. */
enum { LOOKS = 4 };
/* So many in a row that most of those at CPU time need no call. */
enum { CPU_LOOKS = 60 };

static int64_t by_call(void) { return called_clock_ns(CLOCK_MONOTONIC); }
static int64_t by_itself(void) { return clock_ns(CLOCK_MONOTONIC); }

/* A call that does something: what follows are no looks in a row any more. */
static void begin_anew(void)
{
    char here[PATH_MAX];
    CHECK(syscall(SYS_getcwd, here, sizeof here) > 0);
}

static void same_costs(void)
{
    int64_t own[LOOKS], asked[LOOKS];
    begin_anew();
    for (int i = 0; i < LOOKS; i++) own[i] = by_itself();
    begin_anew();
    for (int i = 0; i < LOOKS; i++) asked[i] = by_call();
    for (int i = 1; i < LOOKS; i++) {
        CHECK(own[i] > own[i - 1]);
        CHECK(own[i] - own[i - 1] == asked[i] - asked[i - 1]);
    }
    begin_anew();
    int64_t cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID), start = by_itself();
    for (int i = 0; i < 30; i++) by_itself();
    note("30 looks take %lld, and of the processor %lld\n", (long long)(by_itself() - start),
         (long long)(clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu));
}

/* CPU time advances as the time does, whoever answers a look at it. */
static void same_cpu_time(clockid_t clock)
{
    begin_anew();
    int64_t start = by_itself(), first = clock_ns(clock), last = first;
    for (int i = 0; i < CPU_LOOKS; i++) {
        CHECK((i % 3 ? by_itself() : by_call()) > start);
        int64_t now = i % 2 ? clock_ns(clock) : called_clock_ns(clock);
        CHECK(now > last);
        last = now;
    }
    /* But for what a look costs, which is what is computed in between once that has been measured. */
    int64_t took = by_itself() - start, used = clock_ns(clock) - first;
    CHECK(took >= 2000 * CPU_LOOKS && llabs(took - used) < 300000);
    note("%d looks take %lld, and of clock %d %lld\n", CPU_LOOKS, (long long)took, (int)clock, (long long)used);
}

static atomic_int stop;

static void *computes(void *unused)
{
    (void)unused;
    while (!stop) CHECK(clock_ns(CLOCK_MONOTONIC) > 0);
    return NULL;
}

/* What other threads use is not the thread's own, but the process's. */
static void other_threads(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, computes, NULL) == 0);
    int64_t own = 0, all = 0;
    for (int i = 0; i < 2000; i++) {
        int64_t now_own = clock_ns(CLOCK_THREAD_CPUTIME_ID), now_all = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
        CHECK(now_own > own && now_all > all && now_all >= now_own);
        own = now_own, all = now_all;
        if (i % 100 == 0) sched_yield();
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    note("of %lld the thread used %lld\n", (long long)all, (long long)own);
}

static atomic_int awake;

static void *sleeper(void *unused)
{
    (void)unused;
    for (int i = 0; i < 20; i++) {
        struct timespec t = {0, 100000 + i * 7000};
        CHECK(nanosleep(&t, NULL) == 0);
        awake++;
    }
    return NULL;
}

/* Deadlines of others are met between two looks. */
static void others(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, sleeper, NULL) == 0);
    int64_t start = by_itself(), last = start;
    int looks = 0, seen = 0;
    while (awake < 20) {
        int64_t now = by_itself();
        CHECK(now > last);
        last = now;
        looks++;
        if (awake > seen) seen = awake, begin_anew();
    }
    CHECK(last - start > 2 * MS);
    note("awake after %d looks and %lld\n", looks, (long long)(last - start));
    CHECK(pthread_join(thread, NULL) == 0);
}

static int64_t *shared;

static void looks(int signo)
{
    (void)signo;
    CHECK(by_itself() > *shared);
    *shared = by_itself();
}

static void processes(void)
{
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    *shared = by_itself();
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 100; i++) {
            int64_t now = by_itself();
            CHECK(now > *shared);
            *shared = now;
        }
        _exit(0);
    }
    child = vfork();
    if (child == 0) {
        by_itself();
        _exit(0);
    }
    while (wait(NULL) > 0 || errno != ECHILD) CHECK(by_itself() > 0);
    CHECK(by_itself() > *shared);
    on_signal(SIGUSR1, looks, 0);
    *shared = by_itself();
    raise(SIGUSR1);
    CHECK(by_itself() > *shared);
    note("at the end %lld\n", (long long)*shared);
}

enum { ROUNDS = 40 };

static int64_t by_counter(void) { return (int64_t)__rdtsc(); }

/* Processes that wait for each other by memory, and look at a clock meanwhile, as those of MPI do: each has its turn
   after some looks of the other one. */
static void by_turns(int64_t (*look)(void))
{
    atomic_int *turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(turn != MAP_FAILED);
    int64_t start = called_clock_ns(CLOCK_MONOTONIC);
    pid_t child = fork();
    int own = child == 0;
    for (int i = 0; i < ROUNDS; i++) {
        while (*turn % 2 != own) CHECK(look() > 0);
        begin_anew();
        ++*turn;
    }
    if (own) _exit(3);
    reap(child, 3);
    int64_t took = called_clock_ns(CLOCK_MONOTONIC) - start;
    note("%d turns took %lld\n", *turn, (long long)took);
    CHECK(*turn == 2 * ROUNDS && took < 1000 * MS);
}

static void hidden(void)
{
    char line[1024];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps)) CHECK(!strstr(line, "detbox"));
    fclose(maps);
}

int main(void)
{
    same_costs();
    same_cpu_time(CLOCK_THREAD_CPUTIME_ID);
    same_cpu_time(CLOCK_PROCESS_CPUTIME_ID);
    other_threads();
    others();
    processes();
    by_turns(by_itself);
    by_turns(by_counter);
    hidden();
    puts("EXIT-SUCCESS");
    return 0;
}
