/* Loops without calls that end when a timer's signal comes, however far away it is and whatever comes before them; and
 * that counting them changes nothing that they compute. */
#include "guest.h"
#include <math.h>
#include <setjmp.h>
#include <sys/resource.h>
#include <sys/time.h>

static volatile sig_atomic_t run, rings, faults;
static jmp_buf back;

static void stop(int signo) { (void)signo; run = 0; rings++; }
static void fault(int signo) { (void)signo; faults++; siglongjmp(back, 1); }

static unsigned long mix(unsigned long x) { return x * 6364136223846793005ul + (x >> 17); }
static unsigned long fold(unsigned long x) { return x ^ x << 13; }
static unsigned long (*volatile steps[2])(unsigned long) = {mix, fold};

static int by_value(const void *a, const void *b)
{
    unsigned long x = *(const unsigned long *)a, y = *(const unsigned long *)b;
    return x < y ? -1 : x > y;
}

/* Instructions whose copies are not simply copies. */
static unsigned long odd_instructions(unsigned long n)
{
    static unsigned long memory;
    unsigned long count = (n & 15) + 1, sum = 0, flags;
    memory = n & 7;
    __asm__ volatile("1: add $3, %1\n loop 1b\n jrcxz 2f\n ud2\n2: cmpq $7, %3\n setb %b1\n"
                     "addq $1, %3\n lea -128(%%rsp), %%rsp\n pushf\n pop %2\n lea 128(%%rsp), %%rsp\n"
                     : "+c"(count), "+q"(sum), "=r"(flags), "+m"(memory) : : "cc", "memory");
    return sum + (flags & 0x8d5) + memory;
}

static int *volatile nowhere = (int *)8;

static void __attribute__((noinline)) trip(void)
{
    if (!sigsetjmp(back, 1)) *nowhere = 0;
}

static unsigned long compute(void)
{
    static unsigned long values[3000];
    char text[64];
    unsigned long x = 1;
    double real = 0;
    for (int i = 0; i < 3000; i++)
        values[i] = x = steps[i & 1](x) + odd_instructions(x);
    qsort(values, 3000, sizeof *values, by_value);
    for (int i = 0; i < 3000; i++)
        real += sin((double)(values[i] & 1023)) * sqrt(i);
    for (int i = 0; i < 3; i++)
        trip();
    snprintf(text, sizeof text, "%.17g %d", real, strcmp("abc", "abd"));
    for (char *p = text; *p; p++)
        x = mix(x ^ (unsigned char)*p);
    return x ^ values[1234];
}

static unsigned long wait_for_signal(void)
{
    unsigned long turns = 0, x = 1;
    for (; run; turns++)
        for (int i = 0; i < 50; i++)
            x = steps[turns & 1](x);
    CHECK(turns > 10);
    note("%lu turns, %lx\n", turns, x);
    return x;
}

int main(void)
{
    struct timespec before, after, used;
    on_signal(SIGALRM, stop, 0);
    on_signal(SIGXCPU, stop, 0);
    on_signal(SIGSEGV, fault, 0);
    unsigned long expected = compute();
    run = 1;
    clock_gettime(CLOCK_MONOTONIC, &before);
    alarm(2);
    for (int i = 0; i < 20; i++)
        CHECK(compute() == expected);
    CHECK(faults == 63);
    wait_for_signal();
    clock_gettime(CLOCK_MONOTONIC, &after);
    CHECK(after.tv_sec - before.tv_sec >= 1 && after.tv_sec - before.tv_sec <= 3);

    run = 1;
    rings = 0;
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 20000}, {0, 20000}}, NULL);
    while (rings < 10) {
        run = 1;
        wait_for_signal();
    }
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);

    pid_t child = fork();
    if (!child) {
        alarm(1);
        signal(SIGALRM, SIG_DFL);
        run = 1;
        wait_for_signal();
        _exit(1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM);

    struct rlimit limit;
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0 && getrlimit(RLIMIT_CPU, &limit) == 0);
    limit.rlim_cur = (rlim_t)used.tv_sec + 1;
    CHECK(setrlimit(RLIMIT_CPU, &limit) == 0);
    run = 1;
    wait_for_signal();
    return done();
}
