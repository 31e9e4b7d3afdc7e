/* WAIT, WAKE, BITSET, REQUEUE, CMP_REQUEUE, WAKE_OP, waitv and their timeouts, private and shared. */
#include "guest.h"
#include <sys/utsname.h>

static uint32_t word, other;
static _Atomic int waiting, woken;

struct waiter {
    int op;
    uint32_t mask;
    long result;
};

static void *wait_on(void *argument)
{
    struct waiter *w = argument;
    waiting++;
    w->result = futex(&word, w->op, 0, NULL, NULL, w->mask);
    woken++;
    return NULL;
}

/* Yield until `n` threads announced their wait, and give them time to enter it. */
static void until_waiting(int n)
{
    while (waiting < n)
        sched_yield();
    sleep_ms(30);
}

static void timeouts(void)
{
    struct timespec t = ns_to_timespec(20 * MS);
    FAILS(futex(&word, FUTEX_WAIT, 1, NULL, NULL, 0), EAGAIN);
    int64_t begin = now_ns();
    FAILS(futex(&word, FUTEX_WAIT, 0, &t, NULL, 0), ETIMEDOUT);
    CHECK(now_ns() - begin >= 20 * MS);
    t = ns_to_timespec(now_ns() + 15 * MS);
    FAILS(futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, &t, NULL, ~0u), ETIMEDOUT);
    CHECK(now_ns() >= t.tv_sec * SECOND + t.tv_nsec);
    t = ns_to_timespec(clock_ns(CLOCK_REALTIME) + 15 * MS);
    FAILS(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &t, NULL, 1), ETIMEDOUT);
    CHECK(clock_ns(CLOCK_REALTIME) >= t.tv_sec * SECOND + t.tv_nsec);
    t = (struct timespec){0, 0};
    FAILS(futex(&word, FUTEX_WAIT, 0, &t, NULL, 0), ETIMEDOUT);
    FAILS(futex(&word, FUTEX_WAIT_BITSET, 0, &t, NULL, 0), EINVAL);
    t.tv_nsec = SECOND;
    FAILS(futex(&word, FUTEX_WAIT, 0, &t, NULL, 0), EINVAL);
    FAILS(futex((char *)&word + 1, FUTEX_WAIT, 0, NULL, NULL, 0), EINVAL);
    FAILS(futex((void *)16, FUTEX_WAIT, 0, NULL, NULL, 0), EFAULT);
    FAILS(futex(&word, 100, 0, NULL, NULL, 0), ENOSYS);
}

static void wake_and_bitset(void)
{
    struct waiter w[4] = {{FUTEX_WAIT_BITSET_PRIVATE, 1, 9}, {FUTEX_WAIT_BITSET_PRIVATE, 2, 9},
                          {FUTEX_WAIT_BITSET_PRIVATE, 4, 9}, {FUTEX_WAIT_PRIVATE, 0, 9}};
    pthread_t t[4];
    waiting = woken = 0;
    for (int i = 0; i < 4; i++)
        t[i] = start(wait_on, &w[i]);
    until_waiting(4);
    CHECK(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 8) == 1); /* a plain WAIT matches every bit */
    join(t[3]);
    CHECK(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, 10, NULL, NULL, 6) == 2);
    join(t[1]);
    join(t[2]);
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 1);
    join(t[0]);
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(w[i].result == 0);
}

static void requeue(void)
{
    struct waiter w[5];
    pthread_t t[5];
    waiting = woken = 0;
    for (int i = 0; i < 5; i++) {
        w[i] = (struct waiter){FUTEX_WAIT_PRIVATE, 0, 9};
        t[i] = start(wait_on, &w[i]);
    }
    until_waiting(5);
    FAILS(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2, &other, 77), EAGAIN);
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2, &other, 0) == 3); /* woken plus moved */
    CHECK(futex(&word, FUTEX_REQUEUE_PRIVATE, 0, (void *)1, &other, 0) == 1);
    CHECK(futex(&other, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 3);
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0) == 1);
    for (int i = 0; i < 5; i++)
        join(t[i]);
}

static void wake_op(void)
{
    struct waiter w[2] = {{FUTEX_WAIT, 0, 9}, {FUTEX_WAIT, 0, 9}};
    pthread_t t[2];
    waiting = woken = 0;
    for (int i = 0; i < 2; i++)
        t[i] = start(wait_on, &w[i]);
    until_waiting(2);
    other = 5;
    /* other += 3; wake one on word, and one on other if the old value was > 4. */
    CHECK(futex(&word, FUTEX_WAKE_OP, 1, (void *)1, &other, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_GT, 4)) == 1);
    CHECK(other == 8);
    CHECK(futex(&word, FUTEX_WAKE_OP, 1, (void *)1, &other, FUTEX_OP(FUTEX_OP_ANDN, 8, FUTEX_OP_CMP_EQ, 1)) == 1);
    CHECK(other == 0);
    CHECK(futex(&word, FUTEX_WAKE_OP, 1, (void *)1, &other,
                FUTEX_OP((FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT), 4, FUTEX_OP_CMP_NE, 1)) == 0);
    CHECK(other == 16);
    join(t[0]);
    join(t[1]);
    other = 0;
}

static uint32_t first, second;

static void *wake_second(void *unused)
{
    sleep_ms(20);
    second = 1;
    CHECK(futex(&second, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0) == 1);
    return unused;
}

static void waitv(void)
{
    struct futex_waitv v[2] = {{0, (uintptr_t)&first, FUTEX_32 | FUTEX_PRIVATE_FLAG, 0},
                               {0, (uintptr_t)&second, FUTEX_32 | FUTEX_PRIVATE_FLAG, 0}};
    struct timespec t = ns_to_timespec(now_ns() + 10 * MS);
    FAILS(syscall(SYS_futex_waitv, v, 2, 0, &t, CLOCK_MONOTONIC), ETIMEDOUT);
    pthread_t thread = start(wake_second, NULL);
    CHECK(syscall(SYS_futex_waitv, v, 2, 0, NULL, 0) == 1);
    join(thread);
    FAILS(syscall(SYS_futex_waitv, v, 2, 0, NULL, 0), EAGAIN);
}

static void *set(void *flag)
{
    *(volatile int *)flag = 1;
    return flag;
}

/* Who waits for less than the call takes, again and again, lets the others run. */
static void short_waits(void)
{
    volatile int flag = 0;
    int rounds = 0;
    struct utsname system;
    CHECK(uname(&system) == 0);
    pthread_t thread = start(set, (void *)&flag);
    for (; !flag; rounds++) {
        struct timespec t = ns_to_timespec(now_ns() + 1);
        FAILS(futex(&word, FUTEX_WAIT_BITSET, 0, &t, NULL, ~0u), ETIMEDOUT);
    }
    CHECK(rounds < 64 || !strstr(system.release, "detbox")); /* on several processors it is as many as there is time for */
    join(thread);
}

int main(void)
{
    timeouts();
    short_waits();
    wake_and_bitset();
    requeue();
    wake_op();
    waitv();
    note("virtual time %lld ms\n", (long long)(now_ns() / MS));
    return done();
}
