/* ptrace(2) as strace and debuggers use it: stops at calls, breakpoints, steps, changed registers and memory, and children,
 * threads and programs that are traced from their first instruction on. */
#include "guest.h"

#include <elf.h>
#include <linux/ptrace.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/user.h>

/* Of sys/ptrace.h, which cannot be included with the kernel's. */
static long trace(long request, pid_t pid, uintptr_t addr, uintptr_t data)
{
    return syscall(SYS_ptrace, request, pid, addr, data);
}

enum {
    TRACEME = PTRACE_TRACEME, CONT = PTRACE_CONT, STEP = PTRACE_SINGLESTEP, CALLS = PTRACE_SYSCALL, GETREGS = PTRACE_GETREGS,
    SETREGS = PTRACE_SETREGS, AT_CALL = SIGTRAP | 0x80,
};
#define EVENT(number) (SIGTRAP | (number) << 8)

static struct user_regs_struct regs_of(pid_t pid)
{
    struct user_regs_struct regs;
    CHECK(trace(GETREGS, pid, 0, (uintptr_t)&regs) == 0);
    return regs;
}

static void set_regs(pid_t pid, struct user_regs_struct regs)
{
    CHECK(trace(SETREGS, pid, 0, (uintptr_t)&regs) == 0);
}

static unsigned long message_of(pid_t pid)
{
    unsigned long message;
    CHECK(trace(PTRACE_GETEVENTMSG, pid, 0, (uintptr_t)&message) == 0);
    return message;
}

static siginfo_t info_of(pid_t pid)
{
    siginfo_t info;
    CHECK(trace(PTRACE_GETSIGINFO, pid, 0, (uintptr_t)&info) == 0);
    return info;
}

static void go_on(long request, pid_t pid, int signo)
{
    CHECK(trace(request, pid, 0, (uintptr_t)signo) == 0);
}

/* What a thread is stopped by: the signal, with the event above it. */
static int stop_of(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, __WALL) == pid);
    CHECK(WIFSTOPPED(status));
    return status >> 8;
}

static int next_stop(long request, pid_t pid)
{
    go_on(request, pid, 0);
    return stop_of(pid);
}

static void ends(pid_t pid, int exit_status)
{
    int status;
    go_on(CONT, pid, 0);
    CHECK(waitpid(pid, &status, __WALL) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == exit_status);
}

/* A child that is traced, stopped by SIGSTOP. */
static pid_t traced_child(int (*work)(void), unsigned options)
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK(trace(TRACEME, 0, 0, 0) == 0);
        FAILS((int)trace(TRACEME, 0, 0, 0), EPERM);
        raise(SIGSTOP);
        _exit(work());
    }
    CHECK(stop_of(pid) == SIGSTOP);
    CHECK(info_of(pid).si_signo == SIGSTOP && info_of(pid).si_pid == pid);
    CHECK(trace(PTRACE_SETOPTIONS, pid, 0, options) == 0);
    return pid;
}

static volatile sig_atomic_t counted;

/* -- calls ------------------------------------------------------------------------------ */

static int makes_calls(void)
{
    /* One that detbox answers, one that the kernel executes, and one that waits. */
    CHECK(syscall(SYS_getppid) == 4711);
    CHECK(syscall(SYS_umask, 077) == 022);
    sleep_ms(5);
    syscall(SYS_close, -1);
    return 3;
}

/* At the beginning and the end of each call; what is seen of it. */
static void expects_call(pid_t pid, long number, long result)
{
    struct ptrace_syscall_info info;
    for (int end = 0; end < 2; end++) {
        CHECK(next_stop(CALLS, pid) == AT_CALL);
        CHECK(message_of(pid) == (end ? PTRACE_EVENTMSG_SYSCALL_EXIT : PTRACE_EVENTMSG_SYSCALL_ENTRY));
        CHECK(info_of(pid).si_code == AT_CALL);
        struct user_regs_struct regs = regs_of(pid);
        CHECK((long)regs.orig_rax == number);
        long length = trace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, (uintptr_t)&info);
        CHECK(info.instruction_pointer == regs.rip && info.stack_pointer == regs.rsp && info.arch == 0xC000003E);
        if (end) {
            CHECK(length == offsetof(struct ptrace_syscall_info, exit.is_error) + 1);
            CHECK(info.op == PTRACE_SYSCALL_INFO_EXIT && info.exit.rval == result && info.exit.is_error == (result < 0));
            CHECK((long)regs.rax == result);
        } else {
            CHECK(length == offsetof(struct ptrace_syscall_info, entry.args) + sizeof info.entry.args);
            CHECK(info.op == PTRACE_SYSCALL_INFO_ENTRY && (long)info.entry.nr == number && info.entry.args[0] == regs.rdi);
            CHECK((long)regs.rax == -ENOSYS);
        }
    }
}

static void stops_at_calls(void)
{
    umask(022);
    pid_t pid = traced_child(makes_calls, PTRACE_O_TRACESYSGOOD);
    CHECK(trace(PTRACE_GET_SYSCALL_INFO, pid, 0, 0) == offsetof(struct ptrace_syscall_info, entry));
    /* The end of the call that has raised the signal is behind it already. */
    expects_call(pid, SYS_getppid, getpid());
    struct user_regs_struct regs = regs_of(pid);
    regs.rax = 4711;
    set_regs(pid, regs);
    expects_call(pid, SYS_umask, 022);
    expects_call(pid, SYS_clock_nanosleep, 0);
    expects_call(pid, SYS_close, -EBADF);
    CHECK(next_stop(CALLS, pid) == AT_CALL);
    CHECK(regs_of(pid).orig_rax == SYS_exit_group && regs_of(pid).rdi == 3);
    int status;
    go_on(CALLS, pid, 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3);
    FAILS((int)trace(CONT, pid, 0, 0), ESRCH);
    note("calls seen\n");
}

static int makes_one_call(void)
{
    return (int)syscall(SYS_getpgid, 0, 0);
}

/* A call can be made another one, or none. */
static void changes_calls(void)
{
    const struct { unsigned long number; long result; } others[] = {{SYS_dup, -EBADF}, {(unsigned long)-1, -ENOSYS}};
    for (int i = 0; i < 2; i++) {
        pid_t pid = traced_child(makes_one_call, 0);
        CHECK(next_stop(CALLS, pid) == SIGTRAP);
        struct user_regs_struct regs = regs_of(pid);
        regs.orig_rax = others[i].number;
        regs.rdi = 1 << 20;
        set_regs(pid, regs);
        CHECK(next_stop(CALLS, pid) == SIGTRAP);
        regs = regs_of(pid);
        CHECK((long)regs.rax == others[i].result);
        regs.rax = 7 + i;
        set_regs(pid, regs);
        ends(pid, 7 + i);
    }
    note("calls changed\n");
}

static void notes(int signo)
{
    counted += signo == SIGUSR1;
}

static int is_interrupted(void)
{
    on_signal(SIGUSR1, notes, 0);
    pid_t parent = (pid_t)syscall(SYS_getppid);
    return counted == 1 && parent != -1 ? 6 : 5;
}

/* A signal that comes when a call has begun lets no call fail that does not wait. */
static void interrupts_calls(long request)
{
    pid_t pid = traced_child(is_interrupted, PTRACE_O_TRACESYSGOOD);
    do CHECK(next_stop(CALLS, pid) == AT_CALL); while (regs_of(pid).orig_rax != SYS_getppid);
    CHECK(kill(pid, SIGUSR1) == 0);
    go_on(request, pid, 0);
    if (request == CALLS) {
        CHECK(stop_of(pid) == AT_CALL);
        CHECK(message_of(pid) == PTRACE_EVENTMSG_SYSCALL_EXIT);
        go_on(CONT, pid, 0);
    }
    CHECK(stop_of(pid) == SIGUSR1);
    int status;
    go_on(CONT, pid, SIGUSR1);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 6);
    note("calls interrupted\n");
}

/* -- breakpoints and steps ------------------------------------------------------------------ */

static volatile long counter = 5;

__attribute__((noinline)) static long function(long value)
{
    counter += value;
    __asm__ volatile("nop\n\tnop\n\tnop");
    return counter;
}

static int calls_function(void)
{
    function(1);
    return (int)function(2);
}

static void meets_breakpoints(void)
{
    pid_t pid = traced_child(calls_function, 0);
    uintptr_t place = (uintptr_t)function;
    long code;
    CHECK(trace(PTRACE_PEEKTEXT, pid, place, (uintptr_t)&code) == 0);
    CHECK(!memcmp(&code, (void *)place, sizeof code));
    CHECK(trace(PTRACE_POKETEXT, pid, place, (uintptr_t)((code & ~0xffL) | 0xcc)) == 0);
    for (int call = 1; call <= 2; call++) {
        CHECK(next_stop(CONT, pid) == SIGTRAP);
        CHECK(info_of(pid).si_code == SI_KERNEL);
        struct user_regs_struct regs = regs_of(pid);
        CHECK(regs.rip == place + 1 && (int)regs.rdi == call);
        regs.rip = place;
        regs.rdi += 10;
        set_regs(pid, regs);
        CHECK(trace(PTRACE_POKETEXT, pid, place, (uintptr_t)code) == 0);
        CHECK(next_stop(STEP, pid) == SIGTRAP);
        CHECK(info_of(pid).si_code == TRAP_TRACE);
        CHECK(regs_of(pid).rip != place && regs_of(pid).rip - place < 16);
        CHECK(trace(PTRACE_POKETEXT, pid, place, (uintptr_t)((code & ~0xffL) | 0xcc)) == 0);
    }
    /* To the return of the function. */
    struct user_regs_struct regs = regs_of(pid);
    unsigned long stack = regs.rsp, steps = 0;
    for (; regs.rsp <= stack + 8 && steps < 100; steps++) {
        CHECK(next_stop(STEP, pid) == SIGTRAP);
        regs = regs_of(pid);
        if (regs.rip - (uintptr_t)calls_function < 100) break;
    }
    CHECK(regs.rax == 5 + 11 + 12 && steps > 3 && steps < 100);
    long value = 0;
    CHECK(trace(PTRACE_PEEKDATA, pid, (uintptr_t)&counter, (uintptr_t)&value) == 0 && value == 28);
    CHECK(counter == 5);
    FAILS((int)trace(PTRACE_PEEKDATA, pid, 8, (uintptr_t)&value), EIO);
    FAILS((int)trace(PTRACE_POKEDATA, pid, 8, 0), EIO);
    CHECK(trace(PTRACE_PEEKUSR, pid, offsetof(struct user, regs.rax), (uintptr_t)&value) == 0 && value == 28);
    CHECK(trace(PTRACE_POKEUSR, pid, offsetof(struct user, regs.rax), 29) == 0);
    FAILS((int)trace(PTRACE_PEEKUSR, pid, 3, (uintptr_t)&value), EIO);
    CHECK(regs_of(pid).rax == 29);
    ends(pid, 29);
    note("breakpoints met\n");
}

static int steps_over_calls(void)
{
    __asm__ volatile(
        "movl $110, %%eax\n\tsyscall\n\tnop\n\trdtsc\n\tnop\n\tnop" ::: "rax", "rcx", "rdx", "r11", "memory"); /* getppid */
    return 6;
}

/* A call, and an instruction that detbox executes, are one step each. */
static void steps(void)
{
    pid_t pid = traced_child(steps_over_calls, 0);
    const unsigned char seen[] = {0x0f, 0x05, 0x90, 0x0f, 0x31, 0x90};
    unsigned found = 0;
    for (int n = 0; n < 1000 && found < 4; n++) {
        CHECK(next_stop(STEP, pid) == SIGTRAP);
        long code, behind[] = {0, 2, 3, 5, 6};
        CHECK(trace(PTRACE_PEEKTEXT, pid, regs_of(pid).rip, (uintptr_t)&code) == 0);
        if (!memcmp(&code, seen, sizeof seen)) {
            unsigned long start = regs_of(pid).rip;
            for (found = 1; found < 5; found++) {
                CHECK(next_stop(STEP, pid) == SIGTRAP);
                CHECK((long)(regs_of(pid).rip - start) == behind[found]);
                CHECK(found != 1 || (long)regs_of(pid).rax == getpid());
            }
        }
    }
    CHECK(found == 5);
    ends(pid, 6);
    note("steps made\n");
}

static double floating(void)
{
    double x = 1.25, y;
    __asm__ volatile("movsd %1, %%xmm7\n\tint3\n\tmovsd %%xmm7, %0" : "=m"(y) : "m"(x) : "xmm7", "memory");
    return y;
}

static int computes(void)
{
    return floating() == 2.5 ? 4 : 5;
}

__attribute__((target("avx"))) static int computes_with_avx(void)
{
    double y[4] = {0};
    __asm__ volatile("vxorps %%ymm3, %%ymm3, %%ymm3\n\tint3\n\tvmovupd %%ymm3, %0" : "=m"(y) : : "xmm3", "memory");
    return y[0] == 1 && y[1] == 2 && y[2] == 3 && y[3] == 4 ? 4 : 5;
}

/* The upper halves, if there are any. */
static void changes_wide_vectors(void)
{
    static unsigned char state[16384];
    struct iovec part = {state, sizeof state};
    double low[] = {1, 2}, high[] = {3, 4};
    if (!__builtin_cpu_supports("avx")) return;
    pid_t pid = traced_child(computes_with_avx, 0);
    CHECK(next_stop(CONT, pid) == SIGTRAP);
    CHECK(trace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, (uintptr_t)&part) == 0 && part.iov_len >= 832);
    uint64_t features;
    memcpy(&features, state + 464, sizeof features);
    CHECK((features & 7) == 7);
    memcpy(state + 160 + 3 * 16, low, sizeof low);
    memcpy(state + 576 + 3 * 16, high, sizeof high);
    state[512] |= 7;
    CHECK(trace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, (uintptr_t)&part) == 0);
    ends(pid, 4);
}

static void changes_vectors(void)
{
    pid_t pid = traced_child(computes, 0);
    struct user_fpregs_struct fp;
    struct iovec part = {&fp, sizeof fp};
    double value;
    CHECK(next_stop(CONT, pid) == SIGTRAP);
    CHECK(trace(PTRACE_GETREGSET, pid, NT_FPREGSET, (uintptr_t)&part) == 0 && part.iov_len == sizeof fp);
    memcpy(&value, &fp.xmm_space[28], sizeof value);
    CHECK(value == 1.25);
    value = 2.5;
    memcpy(&fp.xmm_space[28], &value, sizeof value);
    CHECK(trace(PTRACE_SETREGSET, pid, NT_FPREGSET, (uintptr_t)&part) == 0);
    unsigned long base;
    CHECK(trace(30 /* PTRACE_ARCH_PRCTL */, pid, (uintptr_t)&base, 0x1003 /* ARCH_GET_FS */) == 0);
    CHECK(base == regs_of(pid).fs_base && base);
    ends(pid, 4);
    note("vectors changed\n");
}

/* -- children, threads, programs ------------------------------------------------------------- */

static void *thread_body(void *unused)
{
    syscall(SYS_close, -1);
    return unused;
}

static int has_children(void)
{
    pid_t pid = fork();
    if (pid == 0) _exit(1);
    reap(pid, 1);
    pid = vfork();
    if (pid == 0) _exit(2);
    reap(pid, 2);
    join(start(thread_body, NULL));
    execl("/bin/true", "true", NULL);
    return 9;
}

static void follows_children(int seize)
{
    int status;
    unsigned options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE
                       | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEVFORKDONE | PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL;
    pid_t pid;
    if (seize) {
        pid = fork();
        if (pid == 0) {
            raise(SIGSTOP);
            _exit(has_children());
        }
        CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
        CHECK(trace(PTRACE_SEIZE, pid, 0, options) == 0);
        CHECK(stop_of(pid) == (SIGSTOP | PTRACE_EVENT_STOP << 8));
        CHECK(kill(pid, SIGCONT) == 0);
        CHECK(next_stop(CONT, pid) == EVENT(PTRACE_EVENT_STOP));
        CHECK(next_stop(CONT, pid) == SIGCONT);
    } else {
        pid = traced_child(has_children, options);
    }
    for (int vfork = 0; vfork < 2; vfork++) {
        CHECK(next_stop(CONT, pid) == EVENT(vfork ? PTRACE_EVENT_VFORK : PTRACE_EVENT_FORK));
        pid_t child = (pid_t)message_of(pid);
        CHECK(stop_of(child) == (seize ? EVENT(PTRACE_EVENT_STOP) : SIGSTOP));
        if (!seize) CHECK(info_of(child).si_signo == SIGSTOP);
        do CHECK(next_stop(CALLS, child) == AT_CALL); while (regs_of(child).orig_rax != SYS_exit_group);
        CHECK(next_stop(CONT, child) == EVENT(PTRACE_EVENT_EXIT));
        CHECK((int)message_of(child) == (vfork + 1) << 8);
        if (vfork) go_on(CONT, pid, 0);
        ends(child, vfork + 1);
        if (vfork) {
            CHECK(stop_of(pid) == EVENT(PTRACE_EVENT_VFORK_DONE));
            CHECK((pid_t)message_of(pid) == child);
        }
        go_on(CONT, pid, 0);
        CHECK(stop_of(pid) == SIGCHLD);
        CHECK(info_of(pid).si_code == CLD_EXITED && info_of(pid).si_pid == child && info_of(pid).si_status == vfork + 1);
    }
    CHECK(next_stop(CONT, pid) == EVENT(PTRACE_EVENT_CLONE));
    pid_t thread = (pid_t)message_of(pid);
    CHECK(stop_of(thread) == (seize ? EVENT(PTRACE_EVENT_STOP) : SIGSTOP));
    CHECK(thread != pid);
    do CHECK(next_stop(CALLS, thread) == AT_CALL); while (regs_of(thread).orig_rax != SYS_close);
    CHECK(next_stop(CONT, thread) == EVENT(PTRACE_EVENT_EXIT));
    go_on(CONT, pid, 0);
    ends(thread, 0);
    CHECK(stop_of(pid) == EVENT(PTRACE_EVENT_EXEC));
    CHECK((pid_t)message_of(pid) == pid);
    CHECK(next_stop(CALLS, pid) == AT_CALL);
    CHECK(regs_of(pid).orig_rax == SYS_execve && regs_of(pid).rax == 0);
    CHECK(next_stop(CALLS, pid) == AT_CALL);
    CHECK(regs_of(pid).orig_rax != SYS_execve);
    CHECK(next_stop(CONT, pid) == EVENT(PTRACE_EVENT_EXIT));
    ends(pid, 0);
    FAILS(waitpid(-1, &status, __WALL), ECHILD);
    note("children followed, %s\n", seize ? "seized" : "traced");
}

static int executes(void)
{
    execl("/bin/true", "true", NULL);
    return 9;
}

/* Who has not asked for events is told of a program by a signal. */
static void is_told_of_programs(void)
{
    pid_t pid = traced_child(executes, 0);
    CHECK(next_stop(CONT, pid) == SIGTRAP);
    CHECK(info_of(pid).si_code == SI_USER && info_of(pid).si_pid == pid);
    char path[64], program[PATH_MAX] = "";
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    CHECK(readlink(path, program, sizeof program - 1) > 0 && strstr(program, "true"));
    snprintf(path, sizeof path, "/proc/%d/mem", pid);
    int memory = open(path, O_RDWR | O_CLOEXEC);
    CHECK(memory >= 0);
    unsigned char byte;
    long code;
    uintptr_t rip = regs_of(pid).rip;
    CHECK(pread(memory, &byte, 1, (off_t)rip) == 1);
    CHECK(trace(PTRACE_PEEKTEXT, pid, rip, (uintptr_t)&code) == 0 && (code & 0xff) == byte);
    CHECK(pwrite(memory, "\xcc", 1, (off_t)rip) == 1);
    CHECK(next_stop(CONT, pid) == SIGTRAP && regs_of(pid).rip == rip + 1);
    CHECK(pwrite(memory, &byte, 1, (off_t)rip) == 1);
    struct user_regs_struct regs = regs_of(pid);
    regs.rip = rip;
    set_regs(pid, regs);
    close(memory);
    ends(pid, 0);
    note("told of a program\n");
}

/* -- signals, stops, ends ----------------------------------------------------------------------- */

static volatile sig_atomic_t taken;

static void takes(int signo, siginfo_t *info, void *context)
{
    (void)context;
    taken = signo + info->si_value.sival_int;
}

static int waits(void)
{
    struct sigaction action = {.sa_sigaction = takes, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGUSR2, &action, NULL) == 0);
    raise(SIGUSR1);
    return taken;
}

static void changes_signals(void)
{
    pid_t pid = traced_child(waits, 0);
    uint64_t mask = 0;
    CHECK(trace(PTRACE_GETSIGMASK, pid, 8, (uintptr_t)&mask) == 0 && mask == 0);
    CHECK(next_stop(CONT, pid) == SIGUSR1);
    siginfo_t info = info_of(pid);
    CHECK(info.si_code == SI_TKILL && info.si_pid == pid);
    info.si_signo = SIGUSR2;
    info.si_value.sival_int = 20;
    CHECK(trace(PTRACE_SETSIGINFO, pid, 0, (uintptr_t)&info) == 0);
    int status;
    go_on(CONT, pid, SIGUSR2);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == SIGUSR2 + 20);
    note("signals changed\n");
}

static int sleeps(void)
{
    sleep_ms(50);
    return 5;
}

/* PTRACE_INTERRUPT, group stops and PTRACE_LISTEN. */
static void interrupts(void)
{
    int status, ready[2];
    char byte;
    siginfo_t told;
    CHECK(pipe(ready) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(write(ready[1], "r", 1) == 1);
        _exit(sleeps());
    }
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK(trace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD) == 0);
    CHECK(waitpid(pid, &status, __WALL | WNOHANG) == 0);
    sleep_ms(10);
    CHECK(trace(PTRACE_INTERRUPT, pid, 0, 0) == 0);
    CHECK(waitid(P_PID, (id_t)pid, &told, WSTOPPED | WEXITED | WNOWAIT) == 0);
    CHECK(told.si_code == CLD_TRAPPED && told.si_pid == pid && told.si_status == EVENT(PTRACE_EVENT_STOP));
    CHECK(stop_of(pid) == EVENT(PTRACE_EVENT_STOP));
    CHECK(info_of(pid).si_code == EVENT(PTRACE_EVENT_STOP));
    CHECK(regs_of(pid).orig_rax == SYS_clock_nanosleep);
    FAILS((int)trace(PTRACE_SETOPTIONS, pid, 0, 1 << 30), EINVAL);

    CHECK(kill(pid, SIGSTOP) == 0);
    CHECK(next_stop(CONT, pid) == SIGSTOP);
    go_on(CONT, pid, SIGSTOP);
    CHECK(stop_of(pid) == (SIGSTOP | PTRACE_EVENT_STOP << 8));
    CHECK(trace(PTRACE_LISTEN, pid, 0, 0) == 0);
    FAILS((int)trace(GETREGS, pid, 0, (uintptr_t)&told), ESRCH);
    CHECK(waitpid(pid, &status, __WALL | WNOHANG) == 0);
    CHECK(kill(pid, SIGCONT) == 0);
    CHECK(stop_of(pid) == EVENT(PTRACE_EVENT_STOP));
    CHECK(next_stop(CONT, pid) == SIGCONT);
    ends(pid, 5);

    /* Without PTRACE_SEIZE a stop of the process has no event and no siginfo. */
    pid = traced_child(sleeps, 0);
    FAILS((int)trace(PTRACE_INTERRUPT, pid, 0, 0), EIO);
    go_on(CONT, pid, SIGSTOP);
    CHECK(stop_of(pid) == SIGSTOP);
    FAILS((int)trace(PTRACE_GETSIGINFO, pid, 0, (uintptr_t)&told), EINVAL);
    ends(pid, 5);
    note("interrupted\n");
}

static volatile int set;

static void *sets(void *unused)
{
    sleep_ms(5);
    set = 1;
    return unused;
}

/* What makes detbox look into the code of others. */
static int waits_without_calls(void)
{
    pthread_t thread = start(sets, NULL);
    while (!set) ;
    join(thread);
    for (int i = 0; i < 10000; i++) now_ns();
    for (int i = 0; i < 300; i++) called_clock_ns(CLOCK_REALTIME);
    return 7;
}

/* With all stops at calls, and without any. */
static void lets_wait(long request)
{
    int status, stops = 0;
    pid_t pid = traced_child(waits_without_calls, PTRACE_O_TRACESYSGOOD);
    for (;;) {
        go_on(request, pid, 0);
        CHECK(waitpid(pid, &status, __WALL) == pid);
        if (!WIFSTOPPED(status)) break;
        CHECK(WSTOPSIG(status) == AT_CALL);
        stops++;
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK(request == CONT ? !stops : stops > 600);
    note("waited\n");
}

static volatile sig_atomic_t children;

static void counts(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    CHECK(info->si_code == CLD_TRAPPED && info->si_status == SIGTRAP);
    children++;
}

static int traps(void)
{
    __asm__ volatile("int3\n\tint3");
    return 2;
}

/* The tracer is sent SIGCHLD for each stop. */
static void hears_of_stops(void)
{
    pid_t pid = traced_child(traps, 0);
    struct sigaction action = {.sa_sigaction = counts, .sa_flags = SA_SIGINFO | SA_RESTART}, old;
    CHECK(sigaction(SIGCHLD, &action, &old) == 0);
    CHECK(next_stop(CONT, pid) == SIGTRAP);
    CHECK(next_stop(CONT, pid) == SIGTRAP);
    CHECK(children == 2);
    CHECK(sigaction(SIGCHLD, &old, NULL) == 0);
    ends(pid, 2);
    note("heard of stops\n");
}

static int never_ends(void)
{
    while (pause()) ;
    return 0;
}

static int woken[2];

static void *never_returns(void *waits)
{
    char byte;
    while (!waits) sched_yield();
    CHECK(read(woken[0], &byte, 1) == 1);
    never_ends();
    return NULL;
}

static int takes_others_along(void)
{
    pid_t pid = fork();
    if (pid == 0) never_ends();
    sleep_ms(1);
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitpid(pid, NULL, 0) == pid);
    CHECK(pipe(woken) == 0);
    for (int i = 0; i < 3; i++) start(never_returns, i < 2 ? NULL : "");
    sleep_ms(1);
    CHECK(write(woken[1], "w", 1) == 1);
    return 5;
}

/* Processes that are killed by others, and threads that one of them ends, whose stops at their ends nobody has to see. */
static void lets_them_go(long request)
{
    int status, killed = 0, left = 0;
    pid_t pid = traced_child(takes_others_along, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXIT), one;
    go_on(request, pid, 0);
    while ((one = waitpid(-1, &status, __WALL)) > 0) {
        killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        left += WIFEXITED(status) && WEXITSTATUS(status) == 5;
        if (!WIFSTOPPED(status)) continue;
        trace(request, one, 0, 0); /* it may have ended meanwhile */
    }
    CHECK(errno == ECHILD && killed == 1 && left == 4);
    note("let go\n");
}

/* PTRACE_KILL, a tracer that ends and takes those with it that it traces, and one that lets them go. */
static void ends_them(void)
{
    int status, report[2];
    pid_t pid = traced_child(never_ends, 0), tracee;
    CHECK(trace(PTRACE_KILL, pid, 0, 0) == 0);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    for (int kept = 0; kept < 2; kept++) {
        CHECK(pipe(report) == 0);
        pid = fork();
        if (pid == 0) {
            tracee = traced_child(kept ? makes_one_call : never_ends, kept ? 0 : PTRACE_O_EXITKILL);
            CHECK(write(report[1], &tracee, sizeof tracee) == sizeof tracee);
            _exit(0);
        }
        CHECK(read(report[0], &tracee, sizeof tracee) == sizeof tracee);
        reap(pid, 0);
        CHECK(waitpid(tracee, &status, 0) == tracee);
        CHECK(kept ? WIFEXITED(status) : WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        close(report[0]);
        close(report[1]);
    }
    note("ended\n");
}

int main(void)
{
    stops_at_calls();
    changes_calls();
    interrupts_calls(CALLS);
    interrupts_calls(CONT);
    meets_breakpoints();
    steps();
    changes_vectors();
    changes_wide_vectors();
    follows_children(0);
    follows_children(1);
    is_told_of_programs();
    changes_signals();
    interrupts();
    lets_wait(CONT);
    lets_wait(CALLS);
    hears_of_stops();
    lets_them_go(CALLS);
    lets_them_go(CONT);
    ends_them();
    return done();
}
