/* Stopping a process with several threads, an orphaned group that is stopped, hang-up and a new window size. */
#include "guest.h"
#include <sys/ioctl.h>

static int ends[2], told[2];

static void *reader(void *unused)
{
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1 && byte == 'r'); /* restarted after the stop */
    return unused;
}

static void *sleeper(void *unused)
{
    sleep_ms(20);
    return unused;
}

static pid_t threads(void)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    pthread_t a = start(reader, NULL), b = start(sleeper, NULL);
    CHECK(write(told[1], "s", 1) == 1);
    join(a);
    join(b);
    _exit(7);
}

static void expect(char wanted)
{
    char byte;
    CHECK(read(told[0], &byte, 1) == 1 && byte == wanted);
}

static volatile sig_atomic_t changes;

static void on_child(int number)
{
    (void)number;
    changes++;
}

static void stop_threads(void)
{
    int status;
    on_signal(SIGCHLD, on_child, SA_RESTART);
    pid_t pid = threads();
    expect('s');
    CHECK(waitpid(pid, &status, WUNTRACED | WNOHANG) == 0);
    for (int i = 1; i <= 2; i++) {
        CHECK(kill(pid, SIGSTOP) == 0);
        CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
        CHECK(changes == 2 * i - 1);
        CHECK(waitpid(pid, &status, WUNTRACED | WNOHANG) == 0);
        siginfo_t info = {0};
        CHECK(kill(pid, SIGCONT) == 0);
        CHECK(waitid(P_PID, (id_t)pid, &info, WCONTINUED) == 0 && info.si_code == CLD_CONTINUED);
        sleep_ms(5); /* the signal comes from the child when it wakes */
        CHECK(changes == 2 * i);
    }
    CHECK(write(ends[1], "r", 1) == 1);
    reap(pid, 7);
    pid = threads();
    expect('s');
    CHECK(kill(pid, SIGSTOP) == 0 && waitpid(pid, &status, WUNTRACED) == pid);
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGKILL);
    on_signal(SIGCHLD, SIG_DFL, 0);
    note("threads stopped\n");
}

static void tell_hangup(int number)
{
    CHECK(write(told[1], number == SIGHUP ? "h" : "w", 1) == 1);
}

static void orphan(void)
{
    pid_t parent = fork();
    if (parent == 0) {
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            on_signal(SIGHUP, tell_hangup, 0);
            setpgid(0, 0);
            raise(SIGSTOP);
            char byte;
            CHECK(read(ends[0], &byte, 1) == 1 && byte == 'o');
            CHECK(write(told[1], "!", 1) == 1);
            _exit(0);
        }
        CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
        _exit(0); /* its child's group has nobody left who could continue it */
    }
    reap(parent, 0);
    expect('h');
    CHECK(write(ends[1], "o", 1) == 1);
    expect('!');
    note("orphan hung up\n");
}

static void terminal(void)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    const char *name = ptsname(master);
    pid_t pid = fork();
    if (pid == 0) {
        close(master);
        CHECK(setsid() == getpid());
        int slave = open(name, O_RDWR);
        CHECK(slave >= 0 && ioctl(slave, TIOCSCTTY, 0) == 0);
        on_signal(SIGHUP, tell_hangup, 0);
        on_signal(SIGWINCH, tell_hangup, 0);
        CHECK(write(told[1], "t", 1) == 1);
        pause();
        pause();
        char byte;
        CHECK(read(slave, &byte, 1) == 0);
        _exit(9);
    }
    expect('t');
    sleep_ms(10);
    struct winsize size = {.ws_row = 33, .ws_col = 77};
    CHECK(ioctl(master, TIOCSWINSZ, &size) == 0);
    expect('w');
    sleep_ms(10);
    close(master);
    expect('h');
    reap(pid, 9);
    note("terminal hung up\n");
}

int main(void)
{
    CHECK(pipe(ends) == 0 && pipe(told) == 0);
    setsid(); /* who inherits an orphan may belong to the session of the tests: in a container, say, natively */
    stop_threads();
    orphan();
    terminal();
    return done();
}
