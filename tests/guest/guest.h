/* What every guest program shares: checks that name their line, raw futexes, times.  A program prints what it
 * observes and ends with EXIT-SUCCESS; the harness compares two runs on perturbed hosts byte by byte. */
#ifndef GUEST_H
#define GUEST_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define SECOND 1000000000LL

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            int saved = errno;                                                                  \
            fflush(stdout);                                                                     \
            dprintf(2, "%s:%d: CHECK(%s) failed; errno %d\n", __FILE__, __LINE__, #condition, saved); \
            _exit(99);                                                                          \
        }                                                                                       \
    } while (0)

/* The call returns -1 with this errno. */
#define FAILS(call, error)             \
    do {                               \
        errno = 0;                     \
        CHECK((call) == -1);           \
        CHECK(errno == (error));       \
    } while (0)

/* Flushed at once, so that a fork never duplicates it. */
static inline void note(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    fflush(stdout);
}

static inline int done(void)
{
    note("EXIT-SUCCESS\n");
    return 0;
}

static inline int64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    CHECK(clock_gettime(clock, &t) == 0);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static inline int64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* The same by a system call, which the guest does not answer by itself. */
static inline int64_t called_clock_ns(clockid_t clock)
{
    struct timespec t;
    CHECK(syscall(SYS_clock_gettime, clock, &t) == 0);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* The processor time of the process, as getrusage tells it. */
static inline int64_t usage_ns(void)
{
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * SECOND + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

static unsigned long computed = 1;

/* A piece of work without a call. */
static inline void compute_turns(long turns)
{
    for (long i = 0; i < turns; i++) computed = computed * 6364136223846793005ul + (computed >> 17);
}

/* A call that is no look at a clock. */
static inline void something_else(void)
{
    char here[PATH_MAX];
    CHECK(syscall(SYS_getcwd, here, sizeof here) > 0);
}

static inline struct timespec ns_to_timespec(int64_t ns)
{
    struct timespec t = {ns / SECOND, ns % SECOND};
    return t;
}

static inline void sleep_ms(int64_t ms)
{
    struct timespec t = ns_to_timespec(ms * MS);
    while (nanosleep(&t, &t) == -1)
        CHECK(errno == EINTR);
}

static inline long futex(void *word, int op, uint32_t value, const void *timeout_or_count, void *other, uint32_t third)
{
    return syscall(SYS_futex, word, op, value, timeout_or_count, other, third);
}

static inline void *shared_page(size_t size)
{
    void *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    return page;
}

static inline pthread_t start(void *(*function)(void *), void *argument)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, function, argument) == 0);
    return thread;
}

static inline void *join(pthread_t thread)
{
    void *result;
    CHECK(pthread_join(thread, &result) == 0);
    return result;
}

/* Wait for a child and demand that it left with this status. */
static inline void reap(pid_t pid, int status)
{
    int got;
    CHECK(waitpid(pid, &got, 0) == pid);
    CHECK(WIFEXITED(got) && WEXITSTATUS(got) == status);
}

static inline void on_signal(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(number, &action, NULL) == 0);
}
#endif
