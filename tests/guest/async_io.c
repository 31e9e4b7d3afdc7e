/* Signals that a descriptor is ready: SIGIO and one of the program's choice, for itself, a thread and a group. */
#include "guest.h"
#include <sys/ioctl.h>
#include <sys/socket.h>

static volatile sig_atomic_t seen;

static void on_ready(int number, siginfo_t *info, void *context)
{
    (void)context;
    seen++;
    note("signal %s code %d band %lx at %lld\n", number == SIGIO ? "io" : "own", info->si_code,
         number == SIGIO ? 0L : info->si_band, (long long)(now_ns() / MS));
}

static void writer(int fd, int times, int hurry)
{
    for (int i = 0; i < times; i++) {
        if (hurry)
            sched_yield();
        else
            sleep_ms(2);
        CHECK(write(fd, "x", 1) == 1);
    }
    _exit(0);
}

/* A child writes now and then; who waits here is told by signals alone. */
static void waits_by_signals(int in, int out, int times, int hurry)
{
    int got = 0;
    sigset_t block, old;
    sigemptyset(&block);
    sigaddset(&block, SIGIO);
    sigaddset(&block, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &block, &old) == 0);
    pid_t pid = fork();
    if (pid == 0)
        writer(out, times, hurry);
    while (got < times) {
        CHECK(sigsuspend(&old) == -1 && errno == EINTR);
        for (char c; read(in, &c, 1) == 1;)
            got++;
    }
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    reap(pid, 0);
}

static void in_a_read(int in, int out)
{
    int ends[2];
    char c;
    CHECK(pipe(ends) == 0);
    seen = 0;
    pid_t pid = fork();
    if (pid == 0)
        writer(out, 1, 0);
    CHECK(read(ends[0], &c, 1) == -1 && errno == EINTR && seen == 1 && read(in, &c, 1) == 1);
    reap(pid, 0);
}

static void to_a_group(int in, int out)
{
    pid_t members[3];
    int ready[2];
    char c;
    sigset_t block, old;
    sigemptyset(&block);
    sigaddset(&block, SIGIO);
    CHECK(pipe(ready) == 0 && sigprocmask(SIG_BLOCK, &block, &old) == 0);
    seen = 0;
    for (int i = 0; i < 3; i++) {
        members[i] = fork();
        if (members[i] == 0) {
            CHECK(setpgid(0, members[0] * (i > 0)) == 0);
            CHECK(write(ready[1], "r", 1) == 1);
            sigsuspend(&old);
            _exit(seen);
        }
        CHECK(read(ready[0], &c, 1) == 1);
    }
    CHECK(fcntl(in, F_SETOWN, -members[0]) == 0);
    CHECK(write(out, "x", 1) == 1);
    for (int i = 0; i < 3; i++)
        reap(members[i], 1);
    CHECK(read(in, &c, 1) == 1 && sigprocmask(SIG_SETMASK, &old, NULL) == 0);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_ready, .sa_flags = SA_SIGINFO};
    int on = 1, off = 0, pair[2], ends[2];
    CHECK(sigaction(SIGIO, &action, NULL) == 0 && sigaction(SIGRTMIN + 3, &action, NULL) == 0);

    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(fcntl(pair[0], F_SETFL, O_NONBLOCK) == 0 && ioctl(pair[0], FIOASYNC, &on) == 0);
    CHECK(fcntl(pair[0], F_SETOWN, getpid()) == 0);
    CHECK(fcntl(pair[0], F_GETFL) & O_ASYNC && fcntl(pair[0], F_GETOWN) == getpid());
    waits_by_signals(pair[0], pair[1], 4, 0);
    waits_by_signals(pair[0], pair[1], 9, 1);
    in_a_read(pair[0], pair[1]);

    CHECK(pipe(ends) == 0 && fcntl(ends[0], F_SETFL, O_ASYNC | O_NONBLOCK) == 0);
    struct f_owner_ex owner = {F_OWNER_TID, gettid()};
    CHECK(fcntl(ends[0], F_SETOWN_EX, &owner) == 0 && fcntl(ends[0], F_SETSIG, SIGRTMIN + 3) == 0);
    waits_by_signals(ends[0], ends[1], 4, 0);
    waits_by_signals(ends[0], ends[1], 9, 1);
    in_a_read(ends[0], ends[1]);

    to_a_group(pair[0], pair[1]);
    seen = 0;
    CHECK(ioctl(pair[0], FIOASYNC, &off) == 0 && write(pair[1], "x", 1) == 1 && seen == 0);
    return done();
}
