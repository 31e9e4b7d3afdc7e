/* poll, select, ppoll, pselect and epoll: level, edge, one shot, exclusive, nested; eventfd as counter and semaphore. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>

static void add(int ep, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event) == 0);
}

static int ready(int ep, int timeout)
{
    struct epoll_event events[8];
    return epoll_wait(ep, events, 8, timeout);
}

static void poll_and_select(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    struct pollfd p[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLOUT, 0}};
    CHECK(poll(p, 2, -1) == 1 && p[1].revents == POLLOUT && p[0].revents == 0);
    int64_t begin = now_ns();
    CHECK(poll(p, 1, 20) == 0 && now_ns() - begin >= 20 * MS);
    struct timespec t = ns_to_timespec(20 * MS);
    sigset_t none;
    sigemptyset(&none);
    begin = now_ns();
    CHECK(ppoll(p, 1, &t, &none) == 0 && now_ns() - begin >= 20 * MS);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    struct timeval tv = {0, 20000};
    CHECK(select(ends[0] + 1, &set, NULL, NULL, &tv) == 0 && tv.tv_sec == 0 && tv.tv_usec == 0);
    FD_SET(ends[0], &set);
    CHECK(pselect(ends[0] + 1, &set, NULL, NULL, &t, &none) == 0 && !FD_ISSET(ends[0], &set));
    tv = (struct timeval){0, 10000};
    CHECK(select(0, NULL, NULL, NULL, &tv) == 0);
    CHECK(write(ends[1], "x", 1) == 1);
    FD_SET(ends[0], &set);
    CHECK(select(ends[0] + 1, &set, NULL, NULL, NULL) == 1 && FD_ISSET(ends[0], &set));
    close(ends[1]);
    CHECK(poll(p, 1, -1) == 1 && p[0].revents == (POLLIN | POLLHUP));
    p[1] = (struct pollfd){ends[1], POLLIN, 0};
    CHECK(poll(p + 1, 1, -1) == 1 && p[1].revents == POLLNVAL);
    CHECK(poll(NULL, 0, 5) == 0);
    close(ends[0]);
}

static volatile sig_atomic_t got;

static void on_usr(int number)
{
    got = number;
}

static void masked(void)
{
    sigset_t usr, none;
    sigemptyset(&none);
    sigemptyset(&usr);
    sigaddset(&usr, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr, NULL);
    on_signal(SIGUSR1, on_usr, SA_RESTART);
    raise(SIGUSR1);
    FAILS(ppoll(NULL, 0, NULL, &none), EINTR);
    CHECK(got == SIGUSR1);
    got = 0;
    raise(SIGUSR1);
    int ep = epoll_create1(0);
    struct epoll_event event;
    FAILS(epoll_pwait(ep, &event, 1, -1, &none), EINTR);
    CHECK(got == SIGUSR1);
    close(ep);
    sigprocmask(SIG_UNBLOCK, &usr, NULL);
}

static void triggers(void)
{
    int ep = epoll_create1(EPOLL_CLOEXEC), level = eventfd(1, 0), edge = eventfd(0, 0), once = eventfd(1, 0);
    uint64_t n = 1;
    add(ep, level, EPOLLIN, 1);
    CHECK(ready(ep, 0) == 1 && ready(ep, -1) == 1);
    CHECK(read(level, &n, 8) == 8 && ready(ep, 0) == 0);
    n = 1;
    add(ep, edge, EPOLLIN | EPOLLET, 2);
    CHECK(write(edge, &n, 8) == 8);
    CHECK(ready(ep, -1) == 1 && ready(ep, 5) == 0); /* reported once per write */
    CHECK(write(edge, &n, 8) == 8);
    CHECK(ready(ep, -1) == 1);
    add(ep, once, EPOLLIN | EPOLLONESHOT, 3);
    CHECK(ready(ep, -1) == 1 && ready(ep, 0) == 0);
    struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 3};
    CHECK(epoll_ctl(ep, EPOLL_CTL_MOD, once, &event) == 0 && ready(ep, -1) == 1);
    FAILS(epoll_ctl(ep, EPOLL_CTL_ADD, once, &event), EEXIST);
    CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, once, NULL) == 0);
    FAILS(epoll_ctl(ep, EPOLL_CTL_DEL, once, NULL), ENOENT);
    int outer = epoll_create1(0);
    add(outer, ep, EPOLLIN, 9);
    CHECK(ready(outer, 0) == 0);
    n = 3;
    CHECK(write(level, &n, 8) == 8 && ready(outer, -1) == 1);
    int file = open("regular", O_CREAT | O_RDWR, 0600);
    FAILS(epoll_ctl(ep, EPOLL_CTL_ADD, file, &event), EPERM);
    int64_t begin = now_ns();
    CHECK(read(level, &n, 8) == 8 && n == 3);
    CHECK(ready(ep, 30) == 0 && now_ns() - begin >= 30 * MS);
}

static void counters(void)
{
    uint64_t n;
    int semaphore = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    CHECK(read(semaphore, &n, 8) == 8 && n == 1);
    CHECK(read(semaphore, &n, 8) == 8 && n == 1);
    FAILS(read(semaphore, &n, 8), EAGAIN);
    int counter = eventfd(0, 0);
    pid_t pid = fork();
    if (pid == 0) {
        for (n = 1; n <= 4; n++) {
            sleep_ms(2);
            CHECK(write(counter, &n, 8) == 8);
        }
        _exit(0);
    }
    uint64_t sum = 0;
    while (sum < 10) {
        CHECK(read(counter, &n, 8) == 8);
        sum += n;
    }
    reap(pid, 0);
    n = UINT64_MAX;
    FAILS(write(counter, &n, 8), EINVAL);
    n = UINT64_MAX - 1;
    CHECK(write(counter, &n, 8) == 8);
    fcntl(counter, F_SETFL, O_NONBLOCK);
    n = 1;
    FAILS(write(counter, &n, 8), EAGAIN);
}

static int exclusive_ends[2];
static _Atomic int taken[4], served;

static void *serve(void *argument)
{
    int me = (int)(intptr_t)argument, ep = epoll_create1(0);
    add(ep, exclusive_ends[0], EPOLLIN | EPOLLEXCLUSIVE, 0);
    while (served < 12) {
        struct epoll_event event;
        char byte;
        if (epoll_wait(ep, &event, 1, 50) == 1 && read(exclusive_ends[0], &byte, 1) == 1) {
            taken[me]++;
            served++;
        }
    }
    return NULL;
}

static void exclusive(void)
{
    CHECK(pipe2(exclusive_ends, O_NONBLOCK) == 0);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        threads[i] = start(serve, (void *)(intptr_t)i);
    for (int i = 0; i < 12; i++) {
        sleep_ms(1);
        CHECK(write(exclusive_ends[1], "x", 1) == 1);
    }
    for (int i = 0; i < 4; i++)
        join(threads[i]);
    note("taken %d %d %d %d\n", taken[0], taken[1], taken[2], taken[3]);
}

/* A signal descriptor in a set in a set: the signals are those of the thread that asks. */
static void nested_signals(void)
{
    sigset_t usr;
    sigemptyset(&usr);
    sigaddset(&usr, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &usr, NULL) == 0);
    int signals = signalfd(-1, &usr, SFD_NONBLOCK), inner = epoll_create1(0), outer = epoll_create1(0);
    struct epoll_event event;
    struct pollfd one = {inner, POLLIN, 0};
    struct signalfd_siginfo info;
    add(inner, signals, EPOLLIN, 1);
    add(outer, inner, EPOLLIN, 2);
    CHECK(epoll_wait(outer, &event, 1, 5) == 0 && poll(&one, 1, 5) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        sleep_ms(20);
        _exit(kill(getppid(), SIGUSR1) != 0);
    }
    CHECK(epoll_wait(outer, &event, 1, 2000) == 1 && event.data.u64 == 2);
    CHECK(poll(&one, 1, 0) == 1 && epoll_wait(inner, &event, 1, 0) == 1 && event.data.u64 == 1);
    CHECK(read(signals, &info, sizeof info) == sizeof info && epoll_wait(outer, &event, 1, 0) == 0);
    reap(pid, 0);

    /* Another process gives the descriptor another set. */
    sigset_t other;
    struct pollfd direct = {signals, POLLIN, 0};
    sigemptyset(&other);
    sigaddset(&other, SIGUSR2);
    CHECK(sigprocmask(SIG_BLOCK, &other, NULL) == 0 && raise(SIGUSR2) == 0 && poll(&direct, 1, 0) == 0);
    pid = fork();
    if (pid == 0) _exit(signalfd(signals, &other, 0) != signals);
    reap(pid, 0);
    CHECK(poll(&direct, 1, 0) == 1 && read(signals, &info, sizeof info) == sizeof info);
    CHECK(info.ssi_signo == SIGUSR2 && poll(&direct, 1, 0) == 0);
    close(signals), close(inner), close(outer);
}

int main(void)
{
    nested_signals();
    poll_and_select();
    masked();
    triggers();
    counters();
    exclusive();
    return done();
}
