/* Calls of a process with a pending timer: they change what they do without one, and what computes between them goes on
 * being counted: in handlers, threads and children too, and in a program that is executed. */
#include "guest.h"
#include <dlfcn.h>
#include <sys/time.h>

static volatile sig_atomic_t ticks;
static volatile long turns;
static long at[8];

static void tick(int signo)
{
    (void)signo;
    if (ticks < 8)
        at[ticks] = turns;
    ticks++;
}

static void compute(long n)
{
    for (long i = 0; i < n; i++)
        turns++;
}

/* The processor leaves the address behind a call in RCX, and nothing else changes. */
static void check_registers(void)
{
    for (int i = 0; i < 3; i++) {
        long result = SYS_getppid, behind, here, kept = 77, flags;
        __asm__ volatile("mov $1234567, %%r12\n stc\n syscall\n1: pushfq\n pop %4\n lea 1b(%%rip), %2\n mov %%r12, %3\n"
                         : "+a"(result), "=&c"(behind), "=&r"(here), "=&r"(kept), "=&r"(flags) : : "r11", "r12", "memory", "cc");
        CHECK(behind == here && kept == 1234567 && flags & 1 && result == getppid());
    }
}

/* What is computed between calls takes time, and so do looks at the clock, which are not calls. */
static void work_until_tick(void)
{
    struct itimerval once = {{0, 0}, {0, 100000}};
    struct timespec begin, now;
    int rounds = 0, former = ticks;
    CHECK(setitimer(ITIMER_REAL, &once, NULL) == 0 && clock_gettime(CLOCK_MONOTONIC, &begin) == 0);
    for (; ticks == former; rounds++) {
        compute(100000);
        CHECK(getppid() > 0 && clock_gettime(CLOCK_MONOTONIC, &now) == 0);
        if (rounds % 4 == 0)
            sched_yield();
    }
    CHECK(rounds < 3000);
    CHECK((now.tv_sec - begin.tv_sec) * SECOND + now.tv_nsec - begin.tv_nsec > 50 * MS);
    printf("%d rounds\n", rounds);
}

static void *reader(void *ends)
{
    char byte;
    CHECK(read(((int *)ends)[0], &byte, 1) == 1);
    compute(1000);
    return NULL;
}

static void wait_for(pid_t child, int expected)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(status == expected);
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
    struct itimerval interval = {{0, 10000}, {0, 10000}};
    int ends[2];
    char byte = 0;
    pthread_t thread;

    if (argc > 1) { /* executed, with an alarm that is still to come */
        signal(SIGALRM, tick);
        while (!ticks)
            turns++;
        printf("executed: %ld turns\n", turns);
        return 5;
    }
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &interval, NULL) == 0);
    for (int i = 0; i < 200; i++) {
        int fd = open("/dev/null", O_RDWR);
        CHECK(fd >= 0 && write(fd, &byte, 1) == 1 && close(fd) == 0);
        compute(1000 * (i % 50));
    }
    check_registers();
    CHECK(dlopen("libm.so.6", RTLD_NOW) || dlopen("libutil.so.1", RTLD_NOW));
    CHECK(pipe(ends) == 0 && pthread_create(&thread, NULL, reader, ends) == 0);
    while (ticks < 4)
        turns++;
    CHECK(write(ends[1], &byte, 1) == 1 && pthread_join(thread, NULL) == 0);
    work_until_tick();
    for (int i = 0; i < 4; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            alarm(1);
            signal(SIGALRM, i ? tick : SIG_DFL);
            int former = ticks;
            while (i < 3 && ticks == former)
                turns++;
            printf("child %d: %ld turns\n", i, turns);
            fflush(stdout);
            if (i < 3)
                _exit(i);
            execl(argv[0], argv[0], "executed", (char *)NULL);
        }
        wait_for(child, i ? (i < 3 ? i : 5) << 8 : SIGALRM);
    }
    for (int i = 0; i < 4; i++)
        printf("tick at %ld\n", at[i]);
    puts("EXIT-SUCCESS");
    return 0;
}
