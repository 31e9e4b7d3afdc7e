/* SA_SIGINFO's fields, order of queued signals, masks, alternate stacks, sigsuspend, sigtimedwait, signalfd, tgkill. */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/time.h>

static volatile int log_[64], logged;
static siginfo_t last;
static char *alternate;
static volatile int on_alternate;

static void record(int number, siginfo_t *info, void *context)
{
    (void)context;
    char here;
    last = *info;
    log_[logged++] = number * 1000 + (info->si_code == SI_QUEUE ? info->si_value.sival_int : 0);
    on_alternate = alternate && &here >= alternate && &here < alternate + 65536;
}

static void catch_with(int number, int flags)
{
    struct sigaction action = {.sa_sigaction = record, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    CHECK(sigaction(number, &action, NULL) == 0);
}

static sigset_t set_of(int first, int last_number)
{
    sigset_t set;
    sigemptyset(&set);
    for (int i = first; i <= last_number; i++)
        sigaddset(&set, i);
    return set;
}

static void queue_order(void)
{
    sigset_t realtime = set_of(SIGRTMIN, SIGRTMIN + 3), old;
    sigprocmask(SIG_BLOCK, &realtime, &old);
    for (int i = 0; i < 4; i++)
        catch_with(SIGRTMIN + i, 0);
    for (int i = 0; i < 3; i++)
        for (int s = 3; s >= 0; s--)
            CHECK(sigqueue(getpid(), SIGRTMIN + s, (union sigval){.sival_int = i}) == 0);
    sigset_t pending;
    sigpending(&pending);
    CHECK(sigismember(&pending, SIGRTMIN + 2) == 1);
    logged = 0;
    /* Take the lowest number first, and one number's in order of sending. */
    for (int s = 0; s < 4; s++)
        for (int i = 0; i < 3; i++) {
            siginfo_t info;
            CHECK(sigwaitinfo(&realtime, &info) == SIGRTMIN + s);
            CHECK(info.si_value.sival_int == i && info.si_code == SI_QUEUE && info.si_pid == getpid());
        }
    struct timespec t = ns_to_timespec(10 * MS);
    FAILS(sigtimedwait(&realtime, NULL, &t), EAGAIN);
    for (int i = 0; i < 3; i++)
        CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i}) == 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK(logged == 3 && log_[0] % 1000 == 0 && log_[1] % 1000 == 1 && log_[2] % 1000 == 2);
    logged = 0;
    sigset_t usr = set_of(SIGUSR1, SIGUSR1);
    catch_with(SIGUSR1, 0);
    sigprocmask(SIG_BLOCK, &usr, &old);
    kill(getpid(), SIGUSR1);
    kill(getpid(), SIGUSR1);
    sigprocmask(SIG_SETMASK, &old, NULL);
    CHECK(logged == 1 && last.si_code == SI_USER && last.si_pid == getpid()); /* ordinary ones merge */
}

static void stacks(void)
{
    alternate = malloc(65536);
    stack_t stack = {.ss_sp = alternate, .ss_size = 65536}, old;
    CHECK(sigaltstack(&stack, NULL) == 0);
    catch_with(SIGUSR2, SA_ONSTACK | SA_RESETHAND);
    raise(SIGUSR2);
    CHECK(on_alternate && last.si_code == SI_TKILL);
    struct sigaction action;
    sigaction(SIGUSR2, NULL, &action);
    CHECK(action.sa_handler == SIG_DFL);
    stack.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&stack, &old) == 0 && old.ss_sp == alternate);
    FAILS(kill(getpid(), 65), EINVAL);
    CHECK(kill(getpid(), 0) == 0);
    FAILS(kill(999999, 0), ESRCH);
}

/* A signal descriptor in an epoll set, also after the process has made other descriptors. */
static void watched_signals(int fd)
{
    int set = epoll_create1(0), other, pair[2];
    struct epoll_event event = {EPOLLIN, {.u64 = 77}}, found[2];
    struct signalfd_siginfo info;
    CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
    for (int round = 0; round < 2; round++) {
        CHECK(epoll_wait(set, found, 2, 0) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            sleep_ms(10);
            kill(getppid(), SIGUSR1);
            _exit(0);
        }
        CHECK(epoll_wait(set, found, 2, 1000) == 1 && found[0].data.u64 == 77 && found[0].events == EPOLLIN);
        CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_pid == (uint32_t)pid);
        reap(pid, 0);
        CHECK((other = epoll_create1(0)) >= 0 && pipe(pair) == 0);
        CHECK(close(pair[0]) == 0 && close(pair[1]) == 0 && close(other) == 0);
    }
    CHECK(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL) == 0);
    kill(getpid(), SIGUSR1);
    CHECK(epoll_wait(set, found, 2, 0) == 0);
    CHECK(read(fd, &info, sizeof info) == sizeof info);
    close(set);
}

static void suspend(void)
{
    sigset_t usr = set_of(SIGUSR1, SIGUSR1), old, none;
    sigemptyset(&none);
    sigprocmask(SIG_BLOCK, &usr, &old);
    pid_t pid = fork();
    if (pid == 0) {
        sleep_ms(10);
        kill(getppid(), SIGUSR1);
        _exit(0);
    }
    logged = 0;
    FAILS(sigsuspend(&none), EINTR);
    CHECK(logged == 1 && last.si_pid == pid);
    reap(pid, 0);

    int fd = signalfd(-1, &usr, SFD_CLOEXEC);
    struct signalfd_siginfo info;
    kill(getpid(), SIGUSR1);
    CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
    CHECK(info.ssi_pid == (uint32_t)getpid());
    fcntl(fd, F_SETFL, O_NONBLOCK);
    FAILS(read(fd, &info, sizeof info), EAGAIN);
    fcntl(fd, F_SETFL, 0);
    pid = fork();
    if (pid == 0) {
        sleep_ms(10);
        kill(getppid(), SIGUSR1);
        _exit(0);
    }
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 1000) == 1);
    CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_pid == (uint32_t)pid);
    reap(pid, 0);
    watched_signals(fd);
    close(fd);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

static _Atomic int ready;
static _Atomic pid_t handled_by;

static void note_thread(int number)
{
    (void)number;
    handled_by = gettid();
}

static void *wait_for_signal(void *argument)
{
    *(pid_t *)argument = gettid();
    ready++;
    pause();
    return NULL;
}

static void to_threads(void)
{
    pid_t tids[3];
    pthread_t threads[3];
    on_signal(SIGUSR1, note_thread, 0);
    for (int i = 0; i < 3; i++)
        threads[i] = start(wait_for_signal, &tids[i]);
    while (ready < 3)
        sched_yield();
    sleep_ms(10);
    static const int order[] = {1, 0, 2};
    for (int i = 0; i < 3; i++) {
        int k = order[i];
        if (i % 2)
            CHECK(pthread_kill(threads[k], SIGUSR1) == 0);
        else
            CHECK(syscall(SYS_tgkill, getpid(), tids[k], SIGUSR1) == 0);
        join(threads[k]);
        CHECK(handled_by == tids[k]);
    }
    FAILS(syscall(SYS_tgkill, getpid(), 999999, 0), ESRCH);
    kill(getpid(), SIGUSR1);
    CHECK(handled_by == getpid()); /* the main thread is preferred */
}

static void expire(int descriptor, int code, int overrun, int value)
{
    struct signalfd_siginfo info;
    CHECK(read(descriptor, &info, sizeof info) == sizeof info && info.ssi_signo == SIGALRM);
    CHECK(info.ssi_code == code && (int)info.ssi_overrun >= overrun && info.ssi_int == value && info.ssi_uid == 0);
}

/* What a descriptor tells of timers. */
static void timers(void)
{
    sigset_t alarms = set_of(SIGALRM, SIGALRM), old;
    sigprocmask(SIG_BLOCK, &alarms, &old);
    int descriptor = signalfd(-1, &alarms, SFD_CLOEXEC);
    struct itimerval once = {.it_value.tv_usec = 2000};
    CHECK(setitimer(ITIMER_REAL, &once, NULL) == 0);
    expire(descriptor, SI_KERNEL, 0, 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM, .sigev_value.sival_int = -5};
    struct itimerspec often = {{0, MS}, {0, MS}};
    timer_t timer;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &often, NULL) == 0);
    sleep_ms(20);
    expire(descriptor, SI_TIMER, 5, -5);
    CHECK(timer_delete(timer) == 0);
    close(descriptor);
    sigprocmask(SIG_SETMASK, &old, NULL);
}

enum { USER = 7, OTHER = 8 };

/* A child that is USER's: it signals its parent in three ways. */
static pid_t another_users(int to_stop)
{
    pid_t pid = fork();
    if (pid) return pid;
    pid_t parent = getppid();
    CHECK(setresuid(USER, 0, OTHER) == 0);
    CHECK(kill(parent, SIGUSR1) == 0);
    CHECK(syscall(SYS_tgkill, parent, parent, SIGUSR2) == 0);
    CHECK(sigqueue(parent, SIGRTMIN, (union sigval){.sival_int = 3}) == 0);
    if (to_stop) raise(SIGSTOP);
    _exit(9);
}

static void from(siginfo_t *info, int number, int code, pid_t pid)
{
    CHECK(info->si_signo == number && info->si_code == code && info->si_pid == pid && info->si_uid == USER);
}

/* Whose process has sent a signal, or has ended: the real user's. */
static void users(void)
{
    if (geteuid()) return;
    sigset_t all = set_of(1, SIGRTMIN), old;
    siginfo_t info;
    sigprocmask(SIG_BLOCK, &all, &old);
    pid_t pid = another_users(0);
    const int numbers[] = {SIGUSR1, SIGUSR2, SIGRTMIN, SIGCHLD}, codes[] = {SI_USER, SI_USER, SI_QUEUE, CLD_EXITED};
    for (int i = 0; i < 4; i++) {
        sigset_t one = set_of(numbers[i], numbers[i]);
        CHECK(sigwaitinfo(&one, &info) == numbers[i]);
        from(&info, numbers[i], codes[i], pid);
    }
    CHECK(info.si_status == 9);
    CHECK(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0);
    from(&info, SIGCHLD, CLD_EXITED, pid);
    CHECK(waitid(P_ALL, 0, &info, WEXITED) == 0);
    from(&info, SIGCHLD, CLD_EXITED, pid);

    pid = another_users(1);
    CHECK(waitid(P_PID, pid, &info, WSTOPPED) == 0 && info.si_status == SIGSTOP);
    from(&info, SIGCHLD, CLD_STOPPED, pid);
    int descriptor = signalfd(-1, &all, SFD_CLOEXEC);
    struct signalfd_siginfo told[4];
    CHECK(kill(pid, SIGKILL) == 0 && waitid(P_PID, pid, &info, WEXITED) == 0);
    from(&info, SIGCHLD, CLD_KILLED, pid);
    /* The sender is gone by now. */
    CHECK(read(descriptor, told, sizeof told) == sizeof told);
    for (int i = 0; i < 4; i++) CHECK(told[i].ssi_pid == (uint32_t)pid && told[i].ssi_uid == USER);
    close(descriptor);

    pid = another_users(0);
    sigset_t some = set_of(SIGUSR2, SIGUSR2);
    CHECK(waitid(P_PID, pid, &info, WEXITED) == 0 && sigwaitinfo(&some, &info) == SIGUSR2);
    from(&info, SIGUSR2, SI_USER, pid); /* sigwaitinfo() says so of SI_TKILL, too */
    catch_with(SIGUSR1, 0);
    catch_with(SIGRTMIN, 0);
    for (int i = 0; i < 2; i++) {
        some = set_of(i ? SIGRTMIN : SIGUSR1, i ? SIGRTMIN : SIGUSR1);
        sigprocmask(SIG_UNBLOCK, &some, NULL);
        from(&last, i ? SIGRTMIN : SIGUSR1, i ? SI_QUEUE : SI_USER, pid);
    }
    sigprocmask(SIG_SETMASK, &old, NULL);
}

int main(void)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    queue_order();
    stacks();
    suspend();
    to_threads();
    timers();
    users();
    return done();
}
