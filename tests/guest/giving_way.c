/* Threads that compute without a call, in loops that are no provable spins, until another thread ends that. */
#include "guest.h"
#include <math.h>

struct turn {
    volatile int flag;
    long delay_ms; /* the other thread sleeps for so long, … */
    long work;     /* … or computes so many rounds, before it sets the flag */
};

static double compute(double x)
{
    return sin(x) + 1.5;
}

static void *end_it(void *argument)
{
    struct turn *turn = argument;
    double x = 1;
    if (turn->delay_ms)
        sleep_ms(turn->delay_ms);
    for (long i = 0; i < turn->work; i++)
        x = compute(x);
    turn->flag = 1;
    return x > 0 ? turn : NULL;
}

static void *wait_for_it(void *argument)
{
    struct turn *turn = argument;
    double x = 1;
    long rounds = 0;
    for (; !turn->flag; rounds++)
        x = compute(x);
    printf("%ld rounds: %.17g\n", rounds, x);
    return turn;
}

static void one_waits(long delay_ms, long work)
{
    struct turn turn = {0, delay_ms, work};
    pthread_t other = start(end_it, &turn);
    wait_for_it(&turn);
    join(other);
}

static void many_wait(void)
{
    struct turn turn = {0, 60, 0};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        threads[i] = start(wait_for_it, &turn);
    end_it(&turn);
    for (int i = 0; i < 3; i++)
        join(threads[i]);
}

static struct {
    volatile int asked, answered;
} talk;

static void *answer(void *argument)
{
    double x = 1;
    while (!talk.asked)
        x = compute(x);
    talk.answered = 1;
    return x > 0 ? argument : NULL;
}

/* Who has made many calls while the other one was computing waits for it, too. */
static void an_answer_comes_late(void)
{
    double x = 1;
    pthread_t other = start(answer, &talk);
    CHECK(sched_yield() == 0);
    for (int i = 0; i < 200; i++)
        CHECK(getppid() >= 0);
    talk.asked = 1;
    while (!talk.answered)
        x = compute(x);
    CHECK(x > 0);
    join(other);
}

static struct {
    volatile int token;
} passed;

static void *pass_on(void *argument)
{
    long me = (long)argument;
    double x = 1;
    for (int i = 0; i < 30; i++) {
        while (passed.token != me)
            x = compute(x);
        passed.token = !me;
    }
    CHECK(x > 0);
    return &passed;
}

/* Each sees what the other one has done, again and again. */
static void each_in_its_turn(void)
{
    pthread_t other = start(pass_on, (void *)1);
    pass_on((void *)0);
    join(other);
}

static volatile sig_atomic_t signals;
static struct turn signalled;

static void end_after_three(int signo)
{
    (void)signo;
    signals++;
    signalled.flag = signals == 3;
}

static void a_signal_comes(void)
{
    struct sigaction act = {.sa_handler = end_after_three};
    CHECK(sigaction(SIGUSR1, &act, NULL) == 0);
    pthread_t waiting = start(wait_for_it, &signalled);
    for (int i = 0; i < 3; i++) {
        sleep_ms(20);
        CHECK(pthread_kill(waiting, SIGUSR1) == 0);
    }
    join(waiting);
    CHECK(signals == 3);
}

/* The breakpoints of the copies leave no trace in the program's own signals. */
static void trap_signals_stay(void)
{
    struct sigaction act = {.sa_handler = end_after_three}, old;
    sigset_t all, before, found;
    CHECK(sigaction(SIGTRAP, &act, NULL) == 0 && sigfillset(&all) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
    one_waits(30, 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, &found) == 0);
    CHECK(sigismember(&found, SIGTRAP) == 1 && sigaction(SIGTRAP, NULL, &old) == 0 && old.sa_handler == end_after_three);
    CHECK(signal(SIGTRAP, SIG_IGN) == end_after_three);
    one_waits(30, 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &found) == 0 && !sigismember(&found, SIGTRAP));
    CHECK(signal(SIGTRAP, SIG_DFL) == SIG_IGN && signals == 3);
}

static void a_child_computes(void)
{
    int status;
    struct turn never = {0, 0, 0};
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        one_waits(20, 0);
        fflush(stdout);
        start(wait_for_it, &never);
        sleep_ms(20);
        _exit(7); /* while the other one computes */
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

/* The child is counted for its parent's timer already when it makes its thread. */
static void below_a_timer(void)
{
    int status;
    fflush(stdout);
    CHECK(alarm(9) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        one_waits(20, 0);
        fflush(stdout);
        _exit(3);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 3);
    CHECK(alarm(0) > 0);
}

int main(void)
{
    struct timespec before, after;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &before) == 0);
    one_waits(300, 0);
    CHECK(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
    long ms = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
    printf("%ld ms\n", ms);
    CHECK(ms >= 300);
    one_waits(0, 0);
    one_waits(0, 1000000);
    one_waits(1, 1000000);
    many_wait();
    an_answer_comes_late();
    each_in_its_turn();
    a_signal_comes();
    trap_signals_stay();
    a_child_computes();
    below_a_timer();
    return done();
}
