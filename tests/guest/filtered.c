/* A seccomp filter that kills the process at calls that it does not make itself: nobody makes them in its place. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>

#define NUMBER BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define IS(number, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, skip)
#define KILL BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define INSTALL(...) ({ \
    struct sock_filter code[] = {__VA_ARGS__}; \
    install(sizeof code / sizeof *code, code); \
})

static const char *self;
static volatile sig_atomic_t rung, trapped;

static void install(unsigned short length, struct sock_filter *code)
{
    struct sock_fprog program = {length, code};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static void ring(int signo)
{
    (void)signo;
    rung = 1;
}

/* Computes until a timer's signal comes, in a way that is no simple loop. */
static int wait_for_timer(void)
{
    signal(SIGALRM, ring);
    struct itimerval soon = {{0, 0}, {0, 20000}};
    CHECK(!setitimer(ITIMER_REAL, &soon, NULL));
    unsigned long state = 1;
    while (!rung) state = state * 6364136223846793005UL + 1442695040888963407UL;
    return state == 0;
}

static int kills_mmap(void)
{
    INSTALL(NUMBER, IS(SYS_mmap, 1), KILL, IS(SYS_munmap, 1), KILL, ALLOW);
    return wait_for_timer();
}

/* As systemd's MemoryDenyWriteExecute. */
static int refuses_code(void)
{
    INSTALL(NUMBER, IS(SYS_mmap, 4), BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
            BPF_STMT(BPF_ALU | BPF_AND | BPF_K, PROT_WRITE | PROT_EXEC), IS(PROT_WRITE | PROT_EXEC, 1), REFUSE, ALLOW);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED);
    CHECK(errno == EPERM);
    CHECK(syscall(SYS_mmap, 0L, 4096L, 7L, (long)MAP_PRIVATE | MAP_ANONYMOUS, -1L, 0L) == -1 && errno == EPERM);
    return wait_for_timer();
}

/* What a program calls when it starts does not include these. */
static int kills_at_start(void)
{
    INSTALL(NUMBER, IS(SYS_rt_sigprocmask, 1), KILL, IS(SYS_mremap, 1), KILL, IS(SYS_arch_prctl, 4),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])), IS(0x1012, 1), KILL, ALLOW, ALLOW);
    execl(self, self, "started", NULL);
    return 2;
}

static void on_fault(int signo)
{
    (void)signo;
    trapped++;
    _exit(trapped == 1 ? 0 : 3);
}

/* The time stamp counter is read with its signal blocked; then there is a fault. */
static int kills_sigaction(void)
{
    struct sigaction act = {.sa_handler = on_fault};
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSEGV);
    sigaction(SIGSEGV, &act, NULL);
    sigprocmask(SIG_BLOCK, &set, NULL);
    INSTALL(NUMBER, IS(SYS_rt_sigaction, 1), KILL, ALLOW);
    unsigned long first = __builtin_ia32_rdtsc(), second = __builtin_ia32_rdtsc();
    CHECK(second > first);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    *(volatile int *)8 = 0;
    return 4;
}

/* A program that looks at what nobody has loaded finds 0; one that is too long, or none, is refused. */
static int unusual(void)
{
    static struct sock_filter code[4097];
    for (int i = 0; i < 4097; i++) code[i] = (struct sock_filter)ALLOW;
    struct sock_fprog program = {4097, code}, none = {0, code}, away = {1, (void *)8};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program), EINVAL);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &none), EINVAL);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &away), EFAULT);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NULL), EFAULT);
    FAILS(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 1 << 20, &none), EINVAL);
    code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 3);
    program.len = 2;
    FAILS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), EINVAL);
    code[0] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JA, 5, 0, 0);
    FAILS(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), EINVAL);
    CHECK(prctl(PR_GET_SECCOMP) == 0);
    INSTALL(IS(0, 1), ALLOW, KILL);
    INSTALL(BPF_STMT(BPF_MISC | BPF_TXA, 0), IS(0, 1), ALLOW, KILL);
    for (int i = 0; i < 4096; i++) code[i] = (struct sock_filter)ALLOW;
    install(4096, code);
    CHECK(prctl(PR_GET_SECCOMP) == 2);
    return 0;
}

static void run(const char *what, int (*body)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) _exit(body());
    CHECK(waitpid(pid, &status, 0) == pid);
    printf("%s: %x\n", what, status);
    fflush(stdout);
    CHECK(status == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1) return 0;
    self = argv[0];
    run("kills mmap", kills_mmap);
    run("refuses code", refuses_code);
    for (int i = 0; i < 3; i++) run("kills at the start", kills_at_start);
    run("kills sigaction", kills_sigaction);
    run("unusual", unusual);
    return done();
}
