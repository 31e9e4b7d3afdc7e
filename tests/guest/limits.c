/* Limits of resources as an ordinary user meets them: signals that wait, locked memory, queues, processes, priorities. */
#include "guest.h"
#include <mqueue.h>

#define USER 54321

static void limit(int resource, rlim_t soft)
{
    struct rlimit limits = {soft, soft};
    CHECK(setrlimit(resource, &limits) == 0);
}

/* A number of /proc/self/status. */
static long told(const char *name)
{
    char line[256];
    long found = -1;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0)
            found = strtol(line + strlen(name), NULL, 10);
    fclose(file);
    return found;
}

static int queue(int count)
{
    for (int i = 0; i < count; i++)
        if (sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i})) {
            CHECK(errno == EAGAIN);
            return i;
        }
    return count;
}

/* How many of them wait; the last one's code. */
static int taken(int *code)
{
    sigset_t set;
    siginfo_t info;
    struct timespec none = {0, 0};
    int count = 0;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    while (sigtimedwait(&set, &info, &none) > 0) {
        CHECK(info.si_code != SI_QUEUE || info.si_value.sival_int == count);
        *code = info.si_code;
        count++;
    }
    return count;
}

static void signals(void)
{
    int code = 0;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK(told("SigQ:\t") == 0 && queue(300) == 300 && told("SigQ:\t") == 300);
    /* A timer has a place of its own, and its signal does not merge with others. */
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
    struct itimerspec soon = {{0, 0}, {0, MS}};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &soon, NULL) == 0);
    CHECK(told("SigQ:\t") == 301);
    sleep_ms(5);
    CHECK(told("SigQ:\t") == 301 && taken(&code) == 301 && code == SI_TIMER && told("SigQ:\t") == 1);
    limit(RLIMIT_SIGPENDING, 50);
    CHECK(queue(100) == 49);
    FAILS(timer_create(CLOCK_MONOTONIC, &event, &timer), EAGAIN);
    CHECK(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGRTMIN) == 0);
    FAILS(syscall(SYS_tgkill, getpid(), getpid(), SIGRTMIN), EAGAIN);
    limit(RLIMIT_SIGPENDING, 0);
    pid_t child = fork();
    if (child == 0)
        _exit(sigqueue(getppid(), SIGRTMIN + 1, (union sigval){0}) == -1 && errno == EAGAIN ? 0 : 1);
    reap(child, 0);
    note("signals\n");
}

static void memory(void)
{
    size_t size = 1 << 20, page = 4096;
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    limit(RLIMIT_MEMLOCK, 16 * page);
    CHECK(mlock(at + 100, page) == 0 && told("VmLck:") == 8 && mlock(at, 16 * page) == 0);
    CHECK(mlock(at + page, page) == 0 && told("VmLck:") == 64);
    FAILS(mlock(at + 16 * page, 1), ENOMEM);
    CHECK(munlock(at, page) == 0 && mlock(at + 20 * page, 1) == 0);
    FAILS(mlock(at + 21 * page, 1), ENOMEM);
    CHECK(munmap(at, 4 * page) == 0 && told("VmLck:") == 52 && mlock(at + 21 * page, 3 * page) == 0);
    FAILS(mlock(at + 24 * page, 1), ENOMEM);
    CHECK(munlockall() == 0 && told("VmLck:") == 0);
    FAILS(mlock(at, 8 * page), ENOMEM); /* the first of them are not there */
    FAILS(mlock((void *)-page, 2 * page), EINVAL);
    CHECK(mprotect(at + 40 * page, page, PROT_NONE) == 0);
    FAILS(mlock(at + 40 * page, page), ENOMEM);
    CHECK(mlock2(at + 40 * page, page, MLOCK_ONFAULT) == 0);
    FAILS(mlock2(at, page, 2), EINVAL);
    FAILS(mlockall(0), EINVAL);
    FAILS(mlockall(MCL_ONFAULT), EINVAL);
    FAILS(mlockall(MCL_CURRENT), ENOMEM);
    CHECK(mlockall(MCL_FUTURE) == 0 && munlockall() == 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(told("VmLck:") == 0);
        limit(RLIMIT_MEMLOCK, 0);
        FAILS(mlock(at + 5 * page, page), EPERM);
        FAILS(mlockall(MCL_FUTURE), EPERM);
        CHECK(munlock(at + 5 * page, page) == 0);
        _exit(0);
    }
    reap(child, 0);
    note("memory\n");
}

static int queues(void)
{
    struct mq_attr shape = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    char name[32];
    mqd_t made[20];
    int count = 0;
    for (; count < 20; count++) {
        snprintf(name, sizeof name, "/limits-%d-%d", getpid(), count);
        made[count] = mq_open(name, O_CREAT | O_EXCL | O_RDWR, 0600, &shape);
        if (made[count] == -1) {
            CHECK(errno == EMFILE);
            break;
        }
    }
    for (int i = 0; i < count; i++) {
        snprintf(name, sizeof name, "/limits-%d-%d", getpid(), i);
        CHECK(mq_close(made[i]) == 0 && mq_unlink(name) == 0);
    }
    return count;
}

int main(void)
{
    if (geteuid() == 0)
        CHECK(setresgid(USER, USER, USER) == 0 && setresuid(USER, USER, USER) == 0);
    signals();
    memory();

    limit(RLIMIT_MSGQUEUE, 700000);
    CHECK(queues() == 8);
    limit(RLIMIT_MSGQUEUE, 100000);
    CHECK(queues() == 1);
    note("queues\n");

    struct pollfd none[101];
    for (int i = 0; i < 101; i++)
        none[i].fd = -1;
    limit(RLIMIT_NOFILE, 100);
    CHECK(poll(none, 100, 0) == 0);
    FAILS(poll(none, 101, 0), EINVAL);

    CHECK(setpriority(PRIO_PROCESS, 0, 5) == 0);
    FAILS(setpriority(PRIO_PROCESS, 0, 3), EACCES);
    struct sched_param param = {.sched_priority = 5};
    FAILS(sched_setscheduler(0, SCHED_FIFO, &param), EPERM);

    if (geteuid() == USER) { /* somebody who has no other processes */
        limit(RLIMIT_NPROC, 2);
        pid_t child = fork();
        if (child == 0)
            _exit(fork() == -1 && errno == EAGAIN ? 0 : 1);
        reap(child, 0);
        child = fork();
        CHECK(child >= 0);
        if (child == 0)
            _exit(0);
        siginfo_t info;
        CHECK(waitid(P_PID, child, &info, WEXITED | WNOWAIT) == 0);
        FAILS(fork(), EAGAIN); /* who has ended counts until it is waited for */
        reap(child, 0);
        child = fork();
        if (child == 0)
            _exit(0);
        reap(child, 0);
    }
    note("processes\n");
    return done();
}
