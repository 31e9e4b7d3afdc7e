/* Generated code that measures work by the clock, and ten times as much until it takes long enough: nothing of that can
 * be counted, so its looks cost more.  As a virtual machine's, it has looked at the clock before. */
#include "guest.h"
#include <linux/futex.h>

#define ENOUGH (100 * MS)

/* long timed(long rounds, long (*now)(void)) */
__asm__(".text\n"
        "timed:\n"
        "    push %rbx\n"
        "    push %r12\n"
        "    push %r13\n"
        "    mov %rdi, %rbx\n"
        "    mov %rsi, %r12\n"
        "    call *%r12\n"
        "    mov %rax, %r13\n"
        "1:  imul $1103515245, %rax, %rax\n"
        "    add $12345, %rax\n"
        "    dec %rbx\n"
        "    jnz 1b\n"
        "    call *%r12\n"
        "    sub %r13, %rax\n"
        "    pop %r13\n"
        "    pop %r12\n"
        "    pop %rbx\n"
        "    ret\n"
        "timed_end:\n");
extern const char timed[], timed_end[];

static __attribute__((noinline)) long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

/* The same by way of a function of the runtime's. */
static long now_by_runtime(void)
{
    volatile char frame[1024];
    frame[0] = frame[1023] = 1;
    long time = now();
    return time + frame[0] - frame[1023];
}

int main(void)
{
    char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(code != MAP_FAILED);
    memcpy(code, timed, (size_t)(timed_end - timed));
    long (*generated)(long, long (*)(void)) = (long (*)(long, long (*)(void)))code;
    for (int i = 0; i < 100; i++) CHECK(generated(10, now_by_runtime) >= 0);
    CHECK(getppid() >= 0);
    long rounds = 1;
    int word = 0;
    for (int i = 0; generated(rounds, now) < ENOUGH; i++) {
        CHECK(rounds < 10000000000000L);
        rounds *= 10;
        if (i == 2) CHECK(syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 0);
    }
    CHECK(rounds > 1);
    return done();
}
