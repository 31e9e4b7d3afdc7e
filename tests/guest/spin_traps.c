/* Waits without calls leave no trace in the program's signals, its forks or the code that it generates: loops that are
 * known have breakpoints in them, and are stepped. */
#include "guest.h"

static const unsigned char wait_code[] = {0x8b, 0x07, 0x85, 0xc0, 0x74, 0xfa, 0xc3}; /* 1: mov (%rdi), %eax; test; je 1b; ret */
static const unsigned char other_code[] = {0xb8, 0x07, 0, 0, 0, 0xc3};               /* mov $7, %eax; ret */
typedef int (*generated)(volatile int *);

static volatile int flag;
static volatile sig_atomic_t traps;

static void *raise_flag(void *unused)
{
    flag = 1;
    return unused;
}

static int wait_compiled(volatile int *where)
{
    while (!*where)
        ;
    return *where;
}

/* Some rounds: the first is found by the clock, the others by the breakpoint. */
static void rounds(generated wait)
{
    for (int i = 0; i < 3; i++) {
        flag = 0;
        pthread_t thread = start(raise_flag, NULL);
        CHECK(wait(&flag) == 1);
        join(thread);
    }
}

static void on_trap(int signo)
{
    (void)signo;
    traps++;
}

static void own_breakpoint(void)
{
    __asm__ volatile("int3");
}

static void *own_breakpoints(void *unused)
{
    for (int i = 0; i < 1000; i++)
        own_breakpoint();
    return raise_flag(unused);
}

static int pending_or_blocked(void)
{
    sigset_t set, pending;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0 && sigpending(&pending) == 0);
    CHECK(!sigismember(&pending, SIGTRAP));
    return sigismember(&set, SIGTRAP);
}

static void dispositions(void)
{
    struct sigaction act = {.sa_handler = on_trap}, old;
    sigset_t all, before;
    CHECK(sigaction(SIGTRAP, &act, NULL) == 0);
    rounds(wait_compiled);
    CHECK(traps == 0 && !pending_or_blocked());
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
    rounds(wait_compiled);
    CHECK(pending_or_blocked());
    CHECK(sigaction(SIGTRAP, NULL, &old) == 0 && old.sa_handler == on_trap);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    CHECK(signal(SIGTRAP, SIG_IGN) == on_trap);
    rounds(wait_compiled);
    CHECK(sigaction(SIGTRAP, NULL, &old) == 0 && old.sa_handler == SIG_IGN && !pending_or_blocked());
    CHECK(sigaction(SIGTRAP, &act, NULL) == 0);
    flag = 0;
    pthread_t thread = start(own_breakpoints, NULL);
    wait_compiled(&flag);
    join(thread);
    CHECK(traps == 1000 && raise(SIGTRAP) == 0 && traps == 1001);
}

static void in_child(generated wait, int expected)
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        if (expected == 1)
            rounds(wait);
        flag = 1;
        _exit(wait(&flag) == expected ? 0 : 1);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void in_generated_code(int flags, int fd)
{
    unsigned char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, flags, fd, 0);
    CHECK(memory != MAP_FAILED);
    generated code = (generated)(uintptr_t)memory;
    memcpy(memory, wait_code, sizeof wait_code);
    rounds(code);
    in_child(code, 1);
    if (flags & MAP_SHARED) {
        unsigned char found[sizeof wait_code];
        CHECK(pread(fd, found, sizeof found, 0) == sizeof found && !memcmp(found, wait_code, sizeof found));
    }
    memcpy(memory, other_code, sizeof other_code);
    CHECK(code(&flag) == 7);
    in_child(code, 7);
    memcpy(memory, wait_code, sizeof wait_code);
    rounds(code);
    CHECK(munmap(memory, 4096) == 0);
}

int main(void)
{
    dispositions();
    for (int i = 0; i < 3; i++)
        in_child(wait_compiled, 1);
    in_generated_code(MAP_PRIVATE | MAP_ANONYMOUS, -1);
    int fd = memfd_create("code", 0);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    in_generated_code(MAP_SHARED, fd);
    return done();
}
