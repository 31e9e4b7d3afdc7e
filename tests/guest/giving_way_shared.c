/* Processes that compute without a call, in loops that are no provable spins, until another process ends that: by
   memory that they share, by a signal. */
#include "guest.h"
#include <math.h>
#include <sys/mman.h>

struct shared {
    volatile int flag;
    long rounds;
    double x;
};

static struct shared *shared;

static void wait_for_it(void)
{
    double x = 1;
    long rounds = 0;
    for (; !shared->flag; rounds++)
        x = sin(x) + 1.5;
    shared->rounds = rounds;
    shared->x = x;
}

static void report(const char *what)
{
    printf("%s: %ld rounds: %.17g\n", what, shared->rounds, shared->x);
    fflush(stdout);
    shared->flag = 0;
}

static void end_it(long ms)
{
    sleep_ms(ms);
    shared->flag = 1;
}

static void parent_computes(long ms)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        end_it(ms);
        _exit(0);
    }
    wait_for_it();
    CHECK(waitpid(pid, NULL, 0) == pid);
    report("parent");
}

static void child_computes(long ms)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        wait_for_it();
        _exit(0);
    }
    end_it(ms);
    CHECK(waitpid(pid, NULL, 0) == pid);
    report("child");
}

static void children_compute(void)
{
    fflush(stdout);
    for (int i = 0; i < 3; i++)
        if (fork() == 0) {
            wait_for_it();
            _exit(0);
        }
    end_it(60);
    while (wait(NULL) > 0)
        ;
    report("children");
}

static void waits_in_poll(void)
{
    int ends[2];
    struct pollfd none;
    CHECK(pipe(ends) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(write(ends[1], "x", 1) == 1);
        wait_for_it();
        _exit(0);
    }
    /* What has been written is there before the time is over. */
    none = (struct pollfd){.fd = ends[0], .events = POLLIN};
    CHECK(poll(&none, 1, 300) == 1);
    CHECK(read(ends[0], &none, 1) == 1);
    none = (struct pollfd){.fd = ends[0], .events = POLLIN};
    CHECK(poll(&none, 1, 300) == 0);
    shared->flag = 1;
    CHECK(waitpid(pid, NULL, 0) == pid);
    report("poll");
}

static void is_killed(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        wait_for_it();
    sleep_ms(100);
    CHECK(kill(pid, SIGTERM) == 0 && waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGTERM);
}

/* It is counted for its parent's timer, and its own child is ready. */
static void below_a_timer(void)
{
    fflush(stdout);
    CHECK(alarm(9) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        parent_computes(0);
        _exit(0);
    }
    CHECK(waitpid(pid, NULL, 0) == pid);
    CHECK(alarm(0) > 0);
}

int main(void)
{
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    parent_computes(200);
    child_computes(200);
    parent_computes(5);
    child_computes(20);
    children_compute();
    waits_in_poll();
    is_killed();
    below_a_timer();
    return done();
}
