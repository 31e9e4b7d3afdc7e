/* Trapped instructions leave no trace in the signals of the program: not while they are blocked, ignored or handled. */
#include "guest.h"
#include <cpuid.h>
#include <setjmp.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <x86intrin.h>

static volatile sig_atomic_t calls;
static sigjmp_buf back;

static unsigned long long last_tick;

static void instructions(void)
{
    unsigned a, b, c, d;
    __cpuid_count(1, 0, a, b, c, d);
    note("%08x %08x %08x %08x\n", a, b & 0xffffff, c, d);
    if (c & bit_OSXSAVE) {
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        note("xcr0 %x %x\n", low, high);
    }
    unsigned long long now = __rdtsc();
    CHECK(now > last_tick);
    last_tick = now;
    note("ticks %llu\n", now);
}

static void handler(int signo)
{
    (void)signo;
    calls++;
    instructions();
}

static void leave(int signo)
{
    (void)signo;
    siglongjmp(back, 1);
}

static int blocked(int signo)
{
    sigset_t set;
    CHECK(sigprocmask(SIG_BLOCK, NULL, &set) == 0);
    return sigismember(&set, signo);
}

static void with_handlers(const int *signals, int count)
{
    struct sigaction act = {.sa_handler = handler}, old;
    sigset_t all, before;
    for (int i = 0; i < count; i++)
        CHECK(sigaction(signals[i], &act, NULL) == 0);
    instructions();
    CHECK(calls == 0);
    sigfillset(&all);
    CHECK(sigprocmask(SIG_SETMASK, &all, &before) == 0);
    instructions();
    for (int i = 0; i < count; i++)
        CHECK(blocked(signals[i]));
    CHECK(sigprocmask(SIG_SETMASK, &before, NULL) == 0);
    for (int i = 0; i < count; i++) {
        CHECK(sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == handler);
        /* Inside its own handler a signal is blocked. */
        calls = 0;
        CHECK(raise(signals[i]) == 0 && raise(signals[i]) == 0);
        CHECK(calls == 2 && !blocked(signals[i]));
    }
    for (int i = 0; i < count; i++) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, signals[i]);
        CHECK(sigprocmask(SIG_BLOCK, &one, NULL) == 0);
        instructions();
        CHECK(blocked(signals[i]));
        CHECK(sigprocmask(SIG_UNBLOCK, &one, NULL) == 0);
    }
}

static void ignored(const int *signals, int count)
{
    struct sigaction old;
    for (int i = 0; i < count; i++)
        CHECK(signal(signals[i], SIG_IGN) != SIG_ERR);
    instructions();
    for (int i = 0; i < count; i++) {
        CHECK(sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN);
        CHECK(raise(signals[i]) == 0);
    }
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        instructions();
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        instructions();
        execl("/proc/self/exe", "program", "again", NULL);
        _exit(9);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    for (int i = 0; i < count; i++)
        signal(signals[i], SIG_DFL);
}

static void real_faults(void)
{
    signal(SIGSEGV, leave);
    signal(SIGILL, leave);
    if (!sigsetjmp(back, 1)) {
        *(volatile int *)16 = 1;
        CHECK(!"a store to nowhere went on");
    }
    if (!sigsetjmp(back, 1)) {
        __asm__ volatile("ud2");
        CHECK(!"ud2 went on");
    }
    if (!sigsetjmp(back, 1)) {
        __asm__ volatile("hlt");
        CHECK(!"hlt went on");
    }
    instructions();
}

int main(int argc, char **argv)
{
    static const int signals[] = {SIGSEGV, SIGILL, SIGTRAP, SIGBUS};
    if (argc > 1 && !strcmp(argv[1], "again")) {
        for (int i = 0; i < 4; i++) {
            struct sigaction old;
            CHECK(blocked(signals[i]));
            if (signals[i] != SIGTRAP)
                CHECK(sigaction(signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN);
        }
        instructions();
        return 0;
    }
    with_handlers(signals, 4);
    ignored(signals, 4);
    real_faults();
    return done();
}
