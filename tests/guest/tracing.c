/* ptrace(2) as leak checkers use it: another process's threads are stopped wherever they are, their registers and memory
 * read, and they go on as if nothing had been. */
#include "guest.h"

#include <elf.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/user.h>

#define THREADS 5
#define MARK 0x5ca1ab1e0ddba11L

static atomic_int released, traced_done;
static int to_child[2], futex_word;
static volatile long marked = MARK;
static pid_t numbers[THREADS];
static atomic_int started;

static void *waits(void *which)
{
    int i = (int)(intptr_t)which;
    char byte;
    numbers[i] = gettid();
    started++;
    switch (i) {
    case 0: CHECK(read(to_child[0], &byte, 1) == 1 && byte == 'x'); break;
    case 1: syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0); break;
    case 2: {
        struct timespec before, after, length = {2, 0};
        clock_gettime(CLOCK_MONOTONIC, &before);
        CHECK(nanosleep(&length, NULL) == 0);
        clock_gettime(CLOCK_MONOTONIC, &after);
        CHECK((after.tv_sec - before.tv_sec) * SECOND + after.tv_nsec - before.tv_nsec >= 2 * SECOND);
        break;
    }
    case 3: while (!released) sched_yield(); break;
    case 4: while (!released) ; break;
    }
    return NULL;
}

static void child(int ready, int go)
{
    pthread_t threads[THREADS];
    char byte;
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, waits, (void *)(intptr_t)i) == 0);
    while (started < THREADS) sched_yield();
    CHECK(write(ready, numbers, sizeof numbers) == sizeof numbers);
    CHECK(read(go, &byte, 1) == 1);
    released = 1;
    futex_word = 1;
    syscall(SYS_futex, &futex_word, FUTEX_WAKE, 1, NULL, NULL, 0);
    CHECK(write(to_child[1], "x", 1) == 1);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    _exit(7);
}

/* The value of a field of /proc/TID/status. */
static const char *field(pid_t tid, const char *name)
{
    static char text[4096];
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/status", tid);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t got = read(fd, text, sizeof text - 1);
    CHECK(got > 0);
    close(fd);
    text[got] = 0;
    char *at = strstr(text, name);
    CHECK(at);
    at += strlen(name) + 1;
    *strchr(at, '\n') = 0;
    return at;
}

/* Waits for a thread to be in its call. */
static void sleeps(pid_t tid)
{
    while (strncmp(field(tid, "State:"), "S", 1)) sched_yield();
}

static void attach(pid_t tid)
{
    int status;
    CHECK(ptrace(PTRACE_ATTACH, tid, NULL, NULL) == 0);
    CHECK(waitpid(tid, &status, __WALL) == tid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
}

static long call_of(pid_t tid)
{
    struct user_regs_struct regs, again;
    struct user_fpregs_struct fp;
    struct iovec part = {&again, sizeof again};
    CHECK(ptrace(PTRACE_GETREGS, tid, NULL, &regs) == 0);
    CHECK(ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &part) == 0);
    CHECK(part.iov_len == sizeof again && !memcmp(&regs, &again, sizeof regs));
    part.iov_len = 16;
    again.r13 = 77;
    CHECK(ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &part) == 0);
    CHECK(part.iov_len == 16 && again.r13 == 77 && again.r14 == regs.r14);
    CHECK(ptrace(PTRACE_GETFPREGS, tid, NULL, &fp) == 0);
    CHECK(fp.mxcsr == 0x1f80);
    CHECK(regs.rsp && regs.rip);
    return (long)regs.orig_rax;
}

static void stops_them_all(void)
{
    int ready[2], go[2], status;
    pid_t tids[THREADS];
    CHECK(pipe(ready) == 0 && pipe(go) == 0 && pipe(to_child) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) child(ready[1], go[0]);
    CHECK(read(ready[0], tids, sizeof tids) == sizeof tids);
    for (int i = 0; i < 3; i++) sleeps(tids[i]);
    sleeps(pid);

    FAILS(ptrace(PTRACE_GETREGS, pid, NULL, &status), ESRCH);
    FAILS(ptrace(PTRACE_DETACH, tids[0], NULL, NULL), ESRCH);
    FAILS(ptrace(PTRACE_ATTACH, getpid(), NULL, NULL), EPERM);
    FAILS(ptrace(PTRACE_ATTACH, INT_MAX, NULL, NULL), ESRCH);
    for (int round = 0; round < 2; round++) {
        attach(pid);
        FAILS(ptrace(PTRACE_ATTACH, pid, NULL, NULL), EPERM);
        for (int i = 0; i < THREADS; i++) attach(tids[i]);
        CHECK(call_of(pid) == SYS_read);
        CHECK(call_of(tids[0]) == SYS_read);
        CHECK(call_of(tids[1]) == SYS_futex);
        CHECK(call_of(tids[2]) == SYS_clock_nanosleep || call_of(tids[2]) == SYS_restart_syscall);
        long yields = call_of(tids[3]);
        CHECK(yields == SYS_sched_yield || yields == -1);
        CHECK(call_of(tids[4]) == -1);
        for (int i = 0; i < THREADS; i++) {
            CHECK(!strncmp(field(tids[i], "State:"), "t (tracing stop)", 16));
            CHECK(atoi(field(tids[i], "TracerPid:")) == getpid());
        }
        errno = 0;
        CHECK(ptrace(PTRACE_PEEKDATA, pid, &marked, NULL) == MARK && errno == 0);
        FAILS(ptrace(PTRACE_PEEKDATA, pid, (void *)8, NULL), EIO);
        CHECK(waitpid(pid, &status, __WALL | WNOHANG) == 0);
        for (int i = 0; i < THREADS; i++) CHECK(ptrace(PTRACE_DETACH, tids[i], NULL, NULL) == 0);
        CHECK(ptrace(PTRACE_DETACH, pid, NULL, NULL) == 0);
        CHECK(atoi(field(pid, "TracerPid:")) == 0);
    }
    CHECK(write(go[1], "g", 1) == 1);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    note("all stopped, and went on\n");
}

static volatile sig_atomic_t taken;

static void takes(int signo) { taken = signo; }

/* A signal stops who is traced; the tracer says which one it is given. */
static void gives_signals(void)
{
    int status, go[2], report[2];
    CHECK(pipe(go) == 0 && pipe(report) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        struct sigaction action = {.sa_handler = takes, .sa_flags = SA_RESTART};
        sigaction(SIGUSR1, &action, NULL);
        CHECK(write(report[1], "r", 1) == 1);
        CHECK(read(go[0], &byte, 1) == 1);
        CHECK(taken == (byte == 'y' ? SIGUSR1 : 0));
        CHECK(write(report[1], "r", 1) == 1);
        for (;;) pause();
    }
    char byte;
    CHECK(read(report[0], &byte, 1) == 1);
    attach(pid);
    CHECK(ptrace(PTRACE_CONT, pid, NULL, NULL) == 0);
    FAILS(ptrace(PTRACE_CONT, pid, NULL, NULL), ESRCH);
    for (int given = 0; given < 2; given++) {
        CHECK(kill(pid, SIGUSR1) == 0);
        CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGUSR1);
        CHECK(ptrace(PTRACE_CONT, pid, NULL, (void *)(intptr_t)(given ? SIGUSR1 : 0)) == 0);
    }
    CHECK(write(go[1], "y", 1) == 1);
    CHECK(read(report[0], &byte, 1) == 1);
    CHECK(kill(pid, SIGTERM) == 0);
    CHECK(waitpid(-1, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTERM);
    CHECK(ptrace(PTRACE_DETACH, pid, NULL, (void *)SIGTERM) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    note("signals held and given\n");
}

/* A tracer that ends lets go; a thread that is killed in its hands is gone. */
static void ends_in_between(void)
{
    int status, go[2];
    CHECK(pipe(go) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        close(go[1]);
        _exit(read(go[0], &byte, 1) == 0 ? 5 : 6);
    }
    close(go[0]);
    pid_t tracer = fork();
    if (tracer == 0) {
        close(go[1]);
        attach(pid);
        _exit(0);
    }
    CHECK(waitpid(tracer, &status, 0) == tracer && status == 0);
    close(go[1]);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 5);

    pid = fork();
    if (pid == 0) for (;;) pause();
    attach(pid);
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitpid(pid, &status, __WALL) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    FAILS(ptrace(PTRACE_DETACH, pid, NULL, NULL), ESRCH);
    note("let go at the end\n");
}

static int stack[4096];

static int stops_its_parent(void *flags_kept)
{
    pid_t parent = getppid();
    int status;
    while (!traced_done) sched_yield();
    if (ptrace(PTRACE_ATTACH, parent, NULL, NULL)) return 1;
    if (waitpid(parent, &status, __WALL) != parent || !WIFSTOPPED(status)) return 2;
    *(int *)flags_kept = call_of(parent) == SYS_sched_yield || call_of(parent) == -1;
    traced_done = 2;
    return ptrace(PTRACE_DETACH, parent, NULL, NULL) ? 3 : 0;
}

/* As the sanitizers do it: a child in the same memory that cannot be traced itself stops its parent. */
static void stops_from_the_same_memory(void)
{
    int kept = 0, status;
    pid_t pid = clone(stops_its_parent, stack + 4096, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_UNTRACED, &kept);
    CHECK(pid > 0);
    prctl(PR_SET_PTRACER, pid, 0, 0, 0);
    traced_done = 1;
    while (traced_done != 2) sched_yield();
    CHECK(waitpid(pid, &status, __WALL) == pid && status == 0 && kept == 1);

    /* The register with the flags is the caller's own after the call, and its child's. */
    long flags = CLONE_UNTRACED | SIGCHLD, after, result;
    __asm__ volatile("syscall"
                     : "=a"(result), "=D"(after)
                     : "a"((long)SYS_clone), "D"(flags), "S"(0L), "d"(0L)
                     : "rcx", "r11", "memory");
    if (result == 0) _exit(after == flags ? 3 : 4);
    CHECK(result > 0 && after == flags);
    CHECK(waitpid((pid_t)result, &status, 0) == result && WIFEXITED(status) && WEXITSTATUS(status) == 3);
    note("stopped by a child in the same memory\n");
}

int main(void)
{
    stops_them_all();
    gives_signals();
    ends_in_between();
    stops_from_the_same_memory();
    return done();
}
