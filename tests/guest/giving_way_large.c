/* A thread that computes in a large program while another one waits for a time: its copies cost more than others may. */
#include "guest.h"
#include <semaphore.h>

enum { MANY = 20000, ROUNDS = 10000, ROUNDS_TO_CALL = 200 };

static sem_t never;
static volatile int go_on = 1;
static volatile uint64_t result;

/* Functions of 16 bytes. */
extern uint64_t many(uint64_t);
__asm__(".text\n\t.p2align 4\nmany:\n\t.rept 20000\n\tadd $0x5bd100, %rdi\n\tror $7, %rdi\n\tmov %rdi, %rax\n\tret\n\t.p2align 4\n\t.endr");

static uint64_t large(uint64_t x)
{
    for (int i = 0; i < MANY; i++) x = ((uint64_t (*)(uint64_t))((uintptr_t)many + 16 * i))(x);
    return x;
}

static void *work(void *argument)
{
    uint64_t x = 1;
    CHECK(usleep(1000) == 0); /* until the other one waits */
    for (int i = 1; i < ROUNDS && go_on; i++) {
        x = large(x);
        if (i % ROUNDS_TO_CALL == 0) something_else();
    }
    result = x;
    CHECK(!go_on); /* before it has come to its end */
    return argument;
}

int main(void)
{
    CHECK(sem_init(&never, 0, 0) == 0);
    pthread_t worker = start(work, &never);
    struct timespec soon = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 300 * MS);
    FAILS(sem_timedwait(&never, &soon), ETIMEDOUT);
    go_on = 0;
    join(worker);
    note("up to %lld\n", (long long)now_ns());
    return done();
}
