/* A program that is counted, because a timer's signal is to come, handles faults: the address that each tells of is that
 * of the instruction, and so is that of a call which a filter has made a signal of. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <ucontext.h>

enum { ROUNDS = 40 };

static const int CALL = 1999;
static volatile int expired, faults;
static void *volatile told, *volatile where;
static volatile unsigned long work = 1;

static void on_alarm(int number)
{
    (void)number;
    expired++;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    faults++;
    told = number == SIGSYS ? info->si_call_addr : info->si_addr;
    where = (void *)regs[REG_RIP];
    if (number != SIGSYS) regs[REG_RIP] += 2;
}

static void compute(void)
{
    for (int i = 0; i < 20000; i++) work = work * 6364136223846793005ul + (work >> 17);
}

static void faults_of(int divide)
{
    void *at;
    for (int round = 0; round < ROUNDS; round++) {
        int before = faults;
        compute();
        if (divide)
            __asm__ volatile("lea 1f(%%rip), %0; xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; 1: div %%ecx"
                             : "=&r"(at) : : "rax", "rcx", "rdx", "cc");
        else
            __asm__ volatile("lea 1f(%%rip), %0; 1: ud2" : "=&r"(at));
        CHECK(faults == before + 1 && told == at && where == at);
    }
}

static void filtered_calls(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALL, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        void *at;
        long number = CALL;
        int before = faults;
        compute();
        __asm__ volatile("lea 1f(%%rip), %0; syscall; 1:" : "=&r"(at), "+a"(number) : : "rcx", "r11", "memory");
        CHECK(faults == before + 1 && told == at && where == at);
    }
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    struct itimerval timer = {{0, 700}, {0, 700}};
    signal(SIGALRM, on_alarm);
    CHECK(sigaction(SIGFPE, &action, NULL) == 0 && sigaction(SIGILL, &action, NULL) == 0);
    CHECK(sigaction(SIGSYS, &action, NULL) == 0 && setitimer(ITIMER_REAL, &timer, NULL) == 0);
    faults_of(1);
    faults_of(0);
    filtered_calls();
    note("%d faults, %d expirations, %lx\n", faults, expired, work);
    CHECK(faults == 3 * ROUNDS && expired > 0);
    return done();
}
