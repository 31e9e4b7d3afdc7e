/* Two threads that hand a lock on thousands of times by memory of each kind: shared, of a file that is mapped privately as
 * well, common with a child until it is written to, and read-only in between. */
#include "guest.h"

#define ROUNDS 3000

struct shared {
    volatile unsigned ticket, serving;
    volatile uint64_t sum, left[60];
};

static struct shared *lock, *copy;
static volatile uint64_t *counts, frozen;
static volatile int faults;

static void on_fault(int signal_number)
{
    (void)signal_number;
    faults++;
    CHECK(!mprotect((void *)counts, 4096, PROT_READ | PROT_WRITE));
}

static void *compete(void *argument)
{
    long me = (long)argument, failed = 0;
    volatile uint64_t by = 7;
    volatile int64_t less = -11;
    for (int i = 0; i < ROUNDS; i++) {
        unsigned mine = __atomic_fetch_add(&lock->ticket, 1, __ATOMIC_SEQ_CST);
        while (lock->serving != mine)
            __asm__ volatile("pause");
        uint64_t sum = lock->sum, kept = frozen;
        if (me) {
            /* What the other one has stored is seen in the file until there is a page of this process's own. */
            failed += copy->sum != (kept ? kept : sum);
            if (i == 2 * ROUNDS / 3) {
                frozen = copy->sum;
                copy->left[50] = 1;
            }
        } else
            lock->sum = sum * 31 + (uint64_t)i;
        counts[me]++;
        counts[2] += sum % by;
        counts[3] += (uint64_t)((int64_t)sum / less);
        if (i == ROUNDS / 3 && me)
            CHECK(!mprotect((void *)counts, 4096, PROT_READ));
        if (!i && !me)
            sleep_ms(1);
        lock->serving++;
    }
    return (void *)failed;
}

static void *map(int flags, int fd)
{
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, fd, 0);
    CHECK(mapped != MAP_FAILED);
    return mapped;
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_fault};
    pthread_t all[2];
    sigset_t asked;
    int fd = memfd_create("lock", 0), status;
    CHECK(fd >= 0 && !ftruncate(fd, 4096) && !sigaction(SIGSEGV, &action, NULL));
    CHECK(!sigemptyset(&asked) && !sigaddset(&asked, SIGUSR1) && !sigprocmask(SIG_BLOCK, &asked, NULL));
    lock = map(MAP_SHARED, fd);
    copy = map(MAP_PRIVATE, fd);
    counts = map(MAP_PRIVATE | MAP_ANONYMOUS, -1);
    counts[4] = 5;
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        int taken;
        CHECK(!sigwait(&asked, &taken));
        _exit(counts[0] + counts[1] + 10 * counts[4] == 50 ? 3 : 4);
    }
    for (long i = 0; i < 2; i++)
        all[i] = start(compete, (void *)i);
    for (int i = 0; i < 2; i++) {
        void *failed;
        CHECK(!pthread_join(all[i], &failed));
        CHECK(!failed);
    }
    CHECK(lock->serving == 2 * ROUNDS && counts[0] == ROUNDS && counts[1] == ROUNDS && faults == 1);
    note("%016llx, %lld ns, %lld of CPU time\n", (unsigned long long)lock->sum, (long long)now_ns(),
         (long long)clock_ns(CLOCK_PROCESS_CPUTIME_ID));
    note("%llu %lld %llx\n", (unsigned long long)counts[2], (long long)counts[3], (unsigned long long)frozen);
    CHECK(!kill(child, SIGUSR1));
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 3);
    return done();
}
