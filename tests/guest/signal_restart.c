/* A handler with and without SA_RESTART while blocked in read, write, wait, futex, nanosleep, poll, and others. */
#include "guest.h"
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/time.h>

static volatile sig_atomic_t handled;
static int ends[2];

static void on_alarm(int number)
{
    (void)number;
    handled++;
}

/* SIGALRM in 10 ms; a helper unblocks the call for good after 50 ms where it restarts. */
static void arm(int flags)
{
    on_signal(SIGALRM, on_alarm, flags);
    struct itimerval timer = {{0, 0}, {0, 10000}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    handled = 0;
}

static pid_t helper(void (*act)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        sleep_ms(50);
        act();
        _exit(0);
    }
    return pid;
}

static void write_byte(void)
{
    CHECK(write(ends[1], "b", 1) == 1);
}

static void drain(void)
{
    static char buffer[65536];
    CHECK(read(ends[0], buffer, sizeof buffer) == (ssize_t)sizeof buffer);
}

static void in_read(void)
{
    char byte;
    arm(0);
    FAILS(read(ends[0], &byte, 1), EINTR);
    CHECK(handled == 1);
    arm(SA_RESTART);
    pid_t pid = helper(write_byte);
    CHECK(read(ends[0], &byte, 1) == 1 && handled == 1);
    reap(pid, 0);
}

static void in_write(void)
{
    static char full[65536];
    CHECK(write(ends[1], full, sizeof full) == sizeof full);
    arm(0);
    FAILS(write(ends[1], "x", 1), EINTR);
    arm(SA_RESTART);
    pid_t pid = helper(drain);
    CHECK(write(ends[1], "x", 1) == 1 && handled == 1);
    reap(pid, 0);
    CHECK(read(ends[0], full, sizeof full) == 1);
    arm(SA_RESTART); /* a partial write is never restarted: its count is the result */
    static char large[100000];
    ssize_t partial = write(ends[1], large, sizeof large);
    CHECK(partial == 65536 && handled == 1);
    drain();
}

static void nothing(void)
{
}

static void in_wait(void)
{
    pid_t pid = helper(nothing);
    int status;
    arm(0);
    FAILS(waitpid(pid, &status, 0), EINTR);
    arm(SA_RESTART);
    CHECK(waitpid(pid, &status, 0) == pid && handled == 1);
}

static void in_sleep(void)
{
    struct timespec t = ns_to_timespec(40 * MS), rest;
    arm(SA_RESTART); /* sleeps, poll and epoll never restart */
    FAILS(nanosleep(&t, &rest), EINTR);
    CHECK(rest.tv_sec == 0 && rest.tv_nsec > 0 && rest.tv_nsec <= 31 * MS);
    arm(SA_RESTART);
    t = ns_to_timespec(now_ns() + 40 * MS);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR);
    arm(SA_RESTART);
    struct pollfd p = {ends[0], POLLIN, 0};
    FAILS(poll(&p, 1, 1000), EINTR);
    arm(SA_RESTART);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    FAILS(select(ends[0] + 1, &set, NULL, NULL, NULL), EINTR);
    int ep = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(ep, EPOLL_CTL_ADD, ends[0], &event);
    arm(SA_RESTART);
    FAILS(epoll_wait(ep, &event, 1, -1), EINTR);
    close(ep);
    arm(SA_RESTART);
    FAILS(pause(), EINTR);
    on_signal(SIGALRM, SIG_IGN, 0); /* ignored: it does not even interrupt */
    struct itimerval timer = {{0, 0}, {0, 5000}};
    setitimer(ITIMER_REAL, &timer, NULL);
    CHECK(poll(&p, 1, 30) == 0);
}

/* A stop does not lengthen a wait: it goes on to the time at which it was to end. */
static void stopped_in_poll(void)
{
    pid_t child = fork();
    if (!child) {
        int64_t start = now_ns();
        CHECK(poll(NULL, 0, 400) == 0);
        _exit(now_ns() - start < 550 * MS ? 0 : 1);
    }
    int status;
    sleep_ms(200);
    CHECK(kill(child, SIGSTOP) == 0 && waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    sleep_ms(50);
    CHECK(kill(child, SIGCONT) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static uint32_t *shared_word;

static void wake_word(void)
{
    CHECK(futex(shared_word, FUTEX_WAKE, 1, NULL, NULL, 0) == 1);
}

static void in_futex(void)
{
    uint32_t word = 0;
    arm(0);
    FAILS(futex(&word, FUTEX_WAIT, 0, NULL, NULL, 0), EINTR);
    arm(SA_RESTART);
    struct timespec t = ns_to_timespec(now_ns() + 40 * MS);
    FAILS(futex(&word, FUTEX_WAIT_BITSET, 0, &t, NULL, ~0u), EINTR); /* with a timeout it never restarts */
    shared_word = shared_page(4096);
    arm(SA_RESTART);
    pid_t pid = helper(wake_word);
    CHECK(futex(shared_word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0 && handled == 1);
    reap(pid, 0);
    sem_t sem;
    sem_init(&sem, 0, 0);
    arm(0);
    FAILS(sem_wait(&sem), EINTR);
}

static void in_lock(void)
{
    int a = open("lock", O_CREAT | O_RDWR, 0600), b = open("lock", O_RDWR);
    CHECK(flock(a, LOCK_EX) == 0);
    arm(0);
    FAILS(flock(b, LOCK_EX), EINTR);
    close(a);
    close(b);
    unlink("lock");
}

/* A child's end interrupts a fork, which begins anew when nobody handles the signal; a timer is armed meanwhile. */
static void in_fork(void)
{
    struct itimerval timer = {{0, 0}, {1000, 0}}, off = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    for (int i = 0; i < 300; i++)
        if (fork() == 0)
            _exit(0);
    for (int i = 0; i < 300; i++)
        CHECK(wait(NULL) > 0);
    CHECK(setitimer(ITIMER_REAL, &off, NULL) == 0);
}

int main(void)
{
    CHECK(pipe(ends) == 0);
    sigset_t all;
    sigemptyset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    in_read();
    in_write();
    in_wait();
    in_sleep();
    stopped_in_poll();
    in_futex();
    in_lock();
    in_fork();
    return done();
}
