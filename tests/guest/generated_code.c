/* Who executes generated code and wakes others lets them go first: it may wait for what they do, in a loop that nobody can
 * count or prove to be endless. */
#include "guest.h"
#include <linux/futex.h>

/* Rounds before there is such code, and with it. */
enum { BEFORE = 23, ROUNDS = 50 };

/* As a virtual machine's interpreter: counts its turns, and does something else in each 2^10th. */
__asm__(".text\n"
        "waits:\n"
        "    xor %eax, %eax\n"
        "1:  inc %rax\n"
        "    test $0x3ff, %eax\n"
        "    jnz 2f\n"
        "    lea 7(%rax, %rax, 4), %rdx\n"
        "    mov %rdx, 8(%rdi)\n"
        "2:  cmpl $0, (%rdi)\n"
        "    je 1b\n"
        "    ret\n"
        "waits_end:\n");
extern const char waits[], waits_end[];

static struct { atomic_int done, padding; uint64_t counter; } state;
static atomic_int work, helped, turns, stop;
static volatile uint64_t sum;

static void wait_while(atomic_int *word, int value)
{
    while (*word == value) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void *helper(void *unused)
{
    (void)unused;
    for (int round = 0; round < BEFORE + ROUNDS; round++) {
        wait_while(&work, round);
        for (uint64_t i = 0; i < 2000000; i++) sum = sum * 6364136223846793005u + i;
        helped++;
        state.done = 1;
    }
    return NULL;
}

static void *other(void *unused)
{
    (void)unused;
    while (!stop) {
        turns++;
        sched_yield();
    }
    return NULL;
}

static void wake_helper(int round)
{
    state.done = 0;
    work = round + 1;
    syscall(SYS_futex, &work, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

int main(void)
{
    pthread_t helping = start(helper, NULL), running = start(other, NULL);
    sleep_ms(1);
    for (int round = 0; round < BEFORE; round++) {
        wake_helper(round);
        while (!state.done) sched_yield();
    }
    char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(code != MAP_FAILED);
    memcpy(code, waits, (size_t)(waits_end - waits));
    void (*generated)(void *) = (void (*)(void *))code;
    for (int round = BEFORE; round < BEFORE + ROUNDS; round++) {
        wake_helper(round);
        generated(&state);
        CHECK(helped == round + 1);
    }
    join(helping);
    CHECK(turns > 0);
    stop = 1;
    join(running);
    note("%d rounds, %d turns of another thread\n", ROUNDS, (int)turns);
    return done();
}
