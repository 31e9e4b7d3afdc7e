/* What the kernel does to futexes when a thread ends: the robust list and clear_child_tid. */
#include "guest.h"
#include <linux/sched.h>

struct lock {
    struct robust_list list;
    uint32_t word;
};

static struct lock *shared;
static struct robust_list_head *head;

static void child_dies_with_lock(void)
{
    head->list.next = &shared[0].list;
    shared[0].list.next = &shared[1].list;
    shared[1].list.next = &head->list;
    head->futex_offset = offsetof(struct lock, word);
    head->list_op_pending = NULL;
    CHECK(syscall(SYS_set_robust_list, head, sizeof *head) == 0);
    shared[0].word = (uint32_t)gettid() | FUTEX_WAITERS;
    shared[1].word = (uint32_t)gettid();
    sleep_ms(30);
    _exit(4);
}

static void robust_list(void)
{
    shared = shared_page(4096);
    head = (void *)(shared + 8);
    pid_t pid = fork();
    if (pid == 0)
        child_dies_with_lock();
    while (*(volatile uint32_t *)&shared[0].word == 0)
        sleep_ms(1);
    uint32_t seen = shared[0].word;
    CHECK(futex(&shared[0].word, FUTEX_WAIT, seen, NULL, NULL, 0) == 0); /* woken by the death */
    CHECK(shared[0].word & FUTEX_OWNER_DIED);
    CHECK((shared[0].word & FUTEX_TID_MASK) == 0);
    CHECK(shared[0].word & FUTEX_WAITERS);
    reap(pid, 4);
    CHECK(shared[1].word == FUTEX_OWNER_DIED);

    struct robust_list_head *got;
    size_t size;
    CHECK(syscall(SYS_get_robust_list, 0, &got, &size) == 0);
    CHECK(size == sizeof *got);
}

static uint32_t cleared = 1;
static char stack[65536] __attribute__((aligned(16)));

static int thread_body(void *unused)
{
    (void)unused;
    sleep_ms(10);
    return 0;
}

static void child_tid(void)
{
    pid_t parent_tid = 0;
    cleared = 1;
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM |
                CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
    int tid = clone(thread_body, stack + sizeof stack, flags, NULL, &parent_tid, NULL, &cleared);
    CHECK(tid > 0 && parent_tid == tid);
    while (__atomic_load_n(&cleared, __ATOMIC_SEQ_CST) != 0) {
        long result = futex(&cleared, FUTEX_WAIT, 1, NULL, NULL, 0);
        CHECK(result == 0 || errno == EAGAIN);
    }
    note("thread %d\n", tid - getpid());
    CHECK(syscall(SYS_set_tid_address, &cleared) == gettid());
}

int main(void)
{
    robust_list();
    child_tid();
    return done();
}
