/* All clocks agree and never run backwards: calls, vDSO, rdtsc, file timestamps; a busy wait on each of them ends. */
#include "guest.h"
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>
#include <x86intrin.h>

static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW,
                                   CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_TAI,
                                   CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
#define CLOCKS (int)(sizeof clocks / sizeof *clocks)

static int64_t raw_ns(clockid_t clock)
{
    struct timespec t;
    CHECK(syscall(SYS_clock_gettime, clock, &t) == 0);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void monotone(void)
{
    int64_t before[CLOCKS] = {0};
    for (int round = 0; round < 50; round++)
        for (int i = 0; i < CLOCKS; i++) {
            int64_t now = round % 2 ? raw_ns(clocks[i]) : clock_ns(clocks[i]);
            CHECK(now >= before[i]);
            before[i] = now;
        }
    for (int i = 0; i < CLOCKS; i++) {
        struct timespec resolution;
        CHECK(clock_getres(clocks[i], &resolution) == 0);
        note("clock %d: %lld, resolution %ld\n", clocks[i], (long long)before[i], resolution.tv_nsec);
    }
}

static void coherent(void)
{
    for (int i = 0; i < 20; i++) {
        int64_t a = clock_ns(CLOCK_REALTIME);
        struct timeval tv;
        CHECK(gettimeofday(&tv, NULL) == 0);
        int64_t b = tv.tv_sec * SECOND + tv.tv_usec * 1000;
        int64_t c = raw_ns(CLOCK_REALTIME);
        CHECK(b >= a / 1000 * 1000 && c >= b);
        time_t t = time(NULL);
        CHECK(t >= c / SECOND - 1 && t <= clock_ns(CLOCK_REALTIME) / SECOND);
        int64_t difference = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
        int64_t later = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
        CHECK(llabs(difference - later) < 50 * MS);
        CHECK(llabs(clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_REALTIME_COARSE)) < 50 * MS);
    }
    int64_t cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID), mono = now_ns();
    sleep_ms(300);
    CHECK(now_ns() - mono >= 300 * MS);
    CHECK(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu < 150 * MS); /* a sleep uses no processor */
    struct rusage usage;
    struct tms tms;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    clock_t ticks = times(&tms);
    CHECK(ticks != -1 && tms.tms_utime >= 0);
    note("rusage %ld.%06ld maxrss %ld\n", (long)usage.ru_utime.tv_sec, (long)usage.ru_utime.tv_usec, usage.ru_maxrss);
}

static void timestamps(void)
{
    int64_t before = clock_ns(CLOCK_REALTIME_COARSE);
    int fd = open("stamp", O_CREAT | O_WRONLY, 0644);
    CHECK(write(fd, "x", 1) == 1);
    struct stat status;
    CHECK(fstat(fd, &status) == 0);
    int64_t stamped = status.st_mtim.tv_sec * SECOND + status.st_mtim.tv_nsec;
    CHECK(stamped >= before && stamped <= clock_ns(CLOCK_REALTIME));
    CHECK(futimens(fd, NULL) == 0 && fstat(fd, &status) == 0);
    CHECK(status.st_mtim.tv_sec * SECOND + status.st_mtim.tv_nsec >= stamped);
    close(fd);
}

static void counter(void)
{
    unsigned int processor;
    uint64_t last = __rdtsc();
    for (int i = 0; i < 50; i++) {
        uint64_t now = i % 2 ? __rdtscp(&processor) : __rdtsc();
        CHECK(now >= last);
        last = now;
    }
    uint64_t ticks = __rdtsc();
    int64_t mono = now_ns();
    sleep_ms(200);
    double frequency = (double)(__rdtsc() - ticks) / (double)(now_ns() - mono);
    uint64_t again = __rdtsc();
    mono = now_ns();
    sleep_ms(200);
    double other = (double)(__rdtsc() - again) / (double)(now_ns() - mono);
    CHECK(frequency > 0.1 && other / frequency > 0.8 && other / frequency < 1.25);
}

static void busy(void)
{
    for (int i = 0; i < CLOCKS; i++) {
        int64_t end = clock_ns(clocks[i]) + 3 * MS;
        while (clock_ns(clocks[i]) < end)
            ;
    }
    time_t second = time(NULL);
    while (time(NULL) == second)
        ;
    clock_t ticks = clock();
    while (clock() - ticks < 2000)
        ;
    uint64_t counted = __rdtsc();
    while (__rdtsc() - counted < 1000000)
        ;
}

/* Which clocks can be set at all, and what a timer that does not run tells of its interval. */
static void not_set(void)
{
    struct timespec now = {1, 0};
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    FAILS(clock_settime(CLOCK_MONOTONIC, &now), EINVAL);
    FAILS(clock_settime(CLOCK_TAI, &now), EINVAL);
    FAILS(clock_settime(77, &now), EINVAL);
    const int kinds[] = {ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF};
    for (int i = 0; i < 3; i++) {
        struct itimerval stopped = {{10, 0}, {0, 0}}, periodic = {{20, 0}, {30, 0}}, old;
        CHECK(setitimer(kinds[i], &stopped, NULL) == 0 && setitimer(kinds[i], &periodic, &old) == 0);
        CHECK(old.it_interval.tv_sec == (kinds[i] == ITIMER_REAL ? 0 : 10) && old.it_value.tv_sec == 0);
        CHECK(setitimer(kinds[i], &(struct itimerval){{0, 0}, {0, 0}}, &old) == 0);
        CHECK(old.it_interval.tv_sec == 20 && old.it_value.tv_sec >= 29);
    }
}

/* A process has a clock until somebody has waited for it. */
static void of_child(void)
{
    clockid_t clock;
    struct timespec used;
    pid_t child = fork();
    if (child == 0) _exit(0);
    CHECK(waitid(P_PID, (id_t)child, &(siginfo_t){0}, WEXITED | WNOWAIT) == 0);
    CHECK(clock_getcpuclockid(child, &clock) == 0 && clock_gettime(clock, &used) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
    FAILS(clock_gettime(clock, &used), EINVAL);
    CHECK(clock_getcpuclockid(child, &clock) == ESRCH);
}

int main(void)
{
    monotone();
    not_set();
    of_child();
    coherent();
    timestamps();
    counter();
    busy();
    FAILS(clock_gettime(77, &(struct timespec){0}), EINVAL);
    note("end %lld\n", (long long)now_ns());
    return done();
}
