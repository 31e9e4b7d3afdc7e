/* The strict mode of seccomp(2): four calls are left, and any other one is the thread's end. */
#include "guest.h"
#include <linux/seccomp.h>
#include <linux/filter.h>
#include <sys/prctl.h>
#include <sys/time.h>

static int to_child[2], from_child[2];

static void leave(int code)
{
    syscall(SYS_exit, code);
}

static void tell(char byte)
{
    if (write(from_child[1], &byte, 1) != 1)
        leave(98);
}

static void strict(void)
{
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0) == 0);
}

/* Reads, writes, takes a signal in between, and ends by exit. */
static void well_behaved(void)
{
    char byte;
    strict();
    tell('a');
    if (read(to_child[0], &byte, 1) != 1)
        leave(98);
    tell(byte);
    leave(7);
}

static void by_seccomp(void)
{
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, NULL) == 0);
    tell('s');
    leave(8);
}

static void on_alarm(int signo)
{
    (void)signo;
    tell('h');
}

static void with_handler(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval soon = {{0, 0}, {0, 20000}};
    char byte;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    strict();
    if (read(to_child[0], &byte, 1) == -1 && errno == EINTR)
        tell('i');
    leave(9);
}

static void let_through(void)
{
    strict();
    syscall(SYS_getpid);
    leave(1);
}

static void looked_at(void)
{
    strict();
    syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY);
    leave(1);
}

static void by_exit_group(void)
{
    strict();
    _exit(1);
}

static void asks(void)
{
    strict();
    prctl(PR_GET_SECCOMP);
    leave(1);
}

/* A handler for what stands for the mode here does not get it. */
static void with_sigsys(void)
{
    struct sigaction action = {.sa_handler = on_alarm};
    CHECK(sigaction(SIGSYS, &action, NULL) == 0);
    strict();
    syscall(SYS_getuid);
    leave(1);
}

static atomic_int entered;

static void *confined(void *unused)
{
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    entered = 1;
    syscall(SYS_getpid);
    entered = 2;
    return unused;
}

/* Of several threads it is one that dies. */
static void among_threads(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, confined, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(entered == 1);
    CHECK(prctl(PR_GET_SECCOMP) == 0);
    tell('t');
    _exit(10);
}

static void refused(void)
{
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, code};
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, NULL), EINVAL);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 0, code), EINVAL);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    FAILS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), EINVAL);
    _exit(11);
}

static void computes(void)
{
    volatile unsigned long sum = 0;
    strict();
    for (unsigned long i = 0; i < 300000000; i++)
        sum += i;
    tell('c');
    leave(12);
}

static int end_of(void (*child)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        child();
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static void shows(pid_t pid, const char *line)
{
    char path[64], text[8192];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t got = read(fd, text, sizeof text - 1);
    CHECK(got > 0);
    text[got] = 0;
    CHECK(strstr(text, line));
    close(fd);
}

static volatile sig_atomic_t ticks;

static void tick(int signo)
{
    (void)signo;
    ticks++;
}

/* Its timer's signals come while it computes, after as much work in each run. */
static void timed(void)
{
    struct itimerval every = {{0, 2000}, {0, 2000}};
    volatile unsigned long work = 0;
    char text[64];
    signal(SIGALRM, tick);
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    strict();
    while (ticks < 5)
        work++;
    int length = snprintf(text, sizeof text, "work in five ticks: %lu\n", work);
    leave(write(1, text, (size_t)length) == length ? 13 : 98);
}

static void said(char byte)
{
    char got = 0;
    CHECK(read(from_child[0], &got, 1) == 1);
    CHECK(got == byte);
}

int main(void)
{
    CHECK(pipe(to_child) == 0 && pipe(from_child) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        well_behaved();
        _exit(99);
    }
    said('a');
    shows(pid, "\nSeccomp:\t1\nSeccomp_filters:\t0\n");
    shows(getpid(), "\nSeccomp:\t0\n");
    CHECK(write(to_child[1], "b", 1) == 1);
    said('b');
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 7 << 8);
    CHECK(end_of(by_seccomp) == 8 << 8);
    said('s');
    CHECK(end_of(with_handler) == 9 << 8);
    said('h');
    said('i');
    CHECK(end_of(let_through) == SIGKILL);
    CHECK(end_of(looked_at) == SIGKILL);
    CHECK(end_of(by_exit_group) == SIGKILL);
    CHECK(end_of(asks) == SIGKILL);
    CHECK(end_of(with_sigsys) == SIGKILL);
    CHECK(end_of(among_threads) == 10 << 8);
    said('t');
    CHECK(end_of(refused) == 11 << 8);

    /* Others sleep while it computes: nothing is mapped into it for that. */
    pid = fork();
    if (pid == 0) {
        computes();
        _exit(99);
    }
    for (int i = 0; i < 5; i++)
        usleep(1000);
    CHECK(waitpid(pid, &status, 0) == pid && status == 12 << 8);
    said('c');
    CHECK(end_of(timed) == 13 << 8);
    return done();
}
