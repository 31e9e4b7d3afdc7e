/* alarm, setitimer, timer_create by signal and by thread, timerfd, sleeps with absolute deadlines. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/timerfd.h>

static volatile sig_atomic_t ticks, value;
static int64_t at[64];

static void on_tick(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    value = info->si_code == SI_TIMER ? info->si_value.sival_int : -1;
    at[ticks++ % 64] = now_ns();
}

static void catch_alarm(int number)
{
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(number, &action, NULL) == 0);
    ticks = 0;
}

static void until_ticks(int n)
{
    while (ticks < n)
        pause();
}

static void by_alarm(void)
{
    catch_alarm(SIGALRM);
    int64_t begin = now_ns();
    CHECK(alarm(1) == 0);
    CHECK(alarm(1) == 1);
    until_ticks(1);
    CHECK(at[0] - begin >= SECOND && value == -1);
    struct itimerval timer = {{0, 5000}, {0, 5000}}, left;
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    begin = now_ns();
    until_ticks(6);
    CHECK(at[5] - begin >= 24 * MS);
    CHECK(getitimer(ITIMER_REAL, &left) == 0 && left.it_interval.tv_usec == 5000 && left.it_value.tv_usec <= 5000);
    timer = (struct itimerval){{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &timer, &left) == 0);
}

static _Atomic int called;

static void in_thread(union sigval argument)
{
    called += argument.sival_int;
}

static void by_timer_create(void)
{
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 42};
    catch_alarm(SIGRTMIN + 1);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec spec = {ns_to_timespec(4 * MS), ns_to_timespec(6 * MS)}, left;
    CHECK(timer_settime(timer, 0, &spec, NULL) == 0);
    until_ticks(3);
    CHECK(value == 42);
    CHECK(timer_gettime(timer, &left) == 0 && left.it_interval.tv_nsec == 4 * MS && left.it_value.tv_nsec <= 4 * MS);
    CHECK(timer_getoverrun(timer) >= 0);
    CHECK(timer_delete(timer) == 0);
    FAILS(timer_gettime(timer, &left), EINVAL);

    event = (struct sigevent){.sigev_notify = SIGEV_THREAD, .sigev_notify_function = in_thread,
                              .sigev_value.sival_int = 7};
    CHECK(timer_create(CLOCK_REALTIME, &event, &timer) == 0);
    spec = (struct itimerspec){{0, 0}, ns_to_timespec(clock_ns(CLOCK_REALTIME) + 10 * MS)};
    CHECK(timer_settime(timer, TIMER_ABSTIME, &spec, NULL) == 0);
    while (!called)
        sleep_ms(1);
    CHECK(called == 7);
    CHECK(timer_delete(timer) == 0);
}

static volatile int overruns;

static void count_overruns(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    overruns = info->si_overrun;
}

/* What expires while the signal is pending is told when it is taken. */
static void overrun(void)
{
    timer_t timer;
    sigset_t set;
    siginfo_t info;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
    struct sigaction act = {.sa_sigaction = count_overruns, .sa_flags = SA_SIGINFO};
    struct itimerspec spec = {ns_to_timespec(10 * MS), ns_to_timespec(10 * MS)};
    CHECK(sigaction(SIGRTMIN + 2, &act, NULL) == 0);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && timer_settime(timer, 0, &spec, NULL) == 0);
    sleep_ms(55);
    CHECK(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0 && sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    note("%d overruns\n", overruns);
    CHECK(overruns >= 4 && timer_getoverrun(timer) == overruns);
    sleep_ms(35);
    CHECK(sigwaitinfo(&set, &info) == SIGRTMIN + 2);
    note("%d overruns\n", info.si_overrun);
    CHECK(info.si_overrun >= 2 && timer_getoverrun(timer) == info.si_overrun);
    CHECK(timer_delete(timer) == 0);
}

static void by_timerfd(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec spec = {ns_to_timespec(10 * MS), ns_to_timespec(10 * MS)}, left;
    uint64_t n;
    FAILS(read(fd, &n, 8), EAGAIN);
    int64_t begin = now_ns();
    CHECK(timerfd_settime(fd, 0, &spec, NULL) == 0);
    FAILS(read(fd, &n, 8), EAGAIN);
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 1000) == 1 && now_ns() - begin >= 10 * MS);
    CHECK(read(fd, &n, 8) == 8 && n >= 1);
    sleep_ms(35);
    CHECK(read(fd, &n, 8) == 8 && n >= 3);
    CHECK(timerfd_gettime(fd, &left) == 0 && left.it_interval.tv_nsec == 10 * MS);
    spec = (struct itimerspec){{0, 0}, ns_to_timespec(now_ns() + 15 * MS)};
    CHECK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &spec, NULL) == 0);
    CHECK(fcntl(fd, F_SETFL, 0) == 0);
    CHECK(read(fd, &n, 8) == 8 && n == 1);
    CHECK(now_ns() >= spec.it_value.tv_sec * SECOND + spec.it_value.tv_nsec);
    close(fd);
}

static void by_timerfd_in_a_message(void)
{
    int pair[2], fd = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec spec = {{0, 0}, ns_to_timespec(10 * MS)};
    CHECK(timerfd_settime(fd, 0, &spec, NULL) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    char byte = 'x', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    CHECK(sendmsg(pair[0], &message, 0) == 1 && close(fd) == 0);
    for (int i = 0; i < 300; i++)
        CHECK(close(timerfd_create(CLOCK_MONOTONIC, 0)) == 0);
    CHECK(recvmsg(pair[1], &message, 0) == 1);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    uint64_t n;
    CHECK(read(fd, &n, 8) == 8 && n == 1);
    CHECK(close(fd) == 0 && close(pair[0]) == 0 && close(pair[1]) == 0);
}

static void sleeps(void)
{
    for (int i = 0; i < 3; i++) {
        clockid_t clock = (clockid_t[]){CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME}[i];
        int64_t target = clock_ns(clock) + 20 * MS;
        struct timespec t = ns_to_timespec(target);
        CHECK(clock_nanosleep(clock, TIMER_ABSTIME, &t, NULL) == 0);
        CHECK(clock_ns(clock) >= target);
        CHECK(clock_nanosleep(clock, TIMER_ABSTIME, &t, NULL) == 0); /* in the past: at once */
    }
    struct timespec bad = {0, SECOND};
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &bad, NULL) == EINVAL);
    FAILS(syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &bad, NULL), EOPNOTSUPP);
    int64_t begin = now_ns();
    CHECK(usleep(5000) == 0 && sleep(1) == 0);
    CHECK(now_ns() - begin >= 1005 * MS);
}

static void *set(void *flag)
{
    *(volatile int *)flag = 1;
    return flag;
}

/* Who sleeps for less than the call takes lets the others run. */
static void short_sleeps(void)
{
    volatile int flag = 0;
    int rounds = 0;
    pthread_t other = start(set, (void *)&flag);
    for (; !flag; rounds++) {
        struct timespec t = ns_to_timespec(now_ns() + 1);
        CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == 0);
    }
    CHECK(rounds < 64);
    join(other);
}

static void processor_time(void)
{
    catch_alarm(SIGPROF);
    struct itimerval timer = {{0, 0}, {0, 20000}};
    CHECK(setitimer(ITIMER_PROF, &timer, NULL) == 0);
    for (volatile long i = 0; ticks == 0; i++)
        if (i % 1000 == 0)
            (void)clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* Who computes, looks at a clock all the time and is interrupted by a profiler's timer is not waiting: its looks stay cheap. */
static void looks_of_who_is_profiled(void)
{
    catch_alarm(SIGPROF);
    struct itimerval timer = {{0, 10000}, {0, 10000}}, none = {{0, 0}, {0, 0}};
    ticks = 0;
    CHECK(setitimer(ITIMER_PROF, &timer, NULL) == 0);
    for (int i = 0; i < 40000; i++)
        for (volatile int k = now_ns() & 7; k < 100; k++)
            ;
    CHECK(setitimer(ITIMER_PROF, &none, NULL) == 0);
    CHECK(ticks < 100);
}

int main(void)
{
    by_alarm();
    by_timer_create();
    overrun();
    by_timerfd();
    by_timerfd_in_a_message();
    sleeps();
    short_sleeps();
    processor_time();
    looks_of_who_is_profiled();
    note("monotonic %lld\n", (long long)now_ns());
    return done();
}
