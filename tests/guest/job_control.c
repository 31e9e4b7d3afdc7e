/* Sessions, process groups and a controlling terminal: SIGTTOU, SIGTTIN, ^C, ^Z, hang-up, orphaned groups. */
#include "guest.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    interrupted = number;
}

/* A job in its own group: sleeps, then answers through its status. */
static pid_t job(int slave, int what)
{
    pid_t pid = fork();
    if (pid != 0) {
        setpgid(pid, pid);
        return pid;
    }
    setpgid(0, 0);
    char byte;
    if (what == 'r')
        _exit(read(slave, &byte, 1) == 1 ? byte : 1);
    if (what == 'w')
        _exit(write(slave, "w", 1) == 1 ? 2 : 1);
    for (;;)
        pause();
}

static int status_of(pid_t pid, int options)
{
    int status;
    CHECK(waitpid(pid, &status, options) == pid);
    return status;
}

static void leader(const char *name)
{
    on_signal(SIGINT, SIG_DFL, 0); /* before there are jobs that would inherit the handler */
    CHECK(setsid() == getpid());
    CHECK(getpgrp() == getpid() && getsid(0) == getpid());
    FAILS(setsid(), EPERM);
    int slave = open(name, O_RDWR);
    CHECK(slave >= 0);
    (void)ioctl(slave, TIOCSCTTY, 0);
    CHECK(tcgetpgrp(slave) == getpgrp());
    on_signal(SIGTTOU, SIG_IGN, 0);

    pid_t reader = job(slave, 'r');
    int status = status_of(reader, WUNTRACED);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN); /* a background group may not read */
    CHECK(tcsetpgrp(slave, reader) == 0);
    CHECK(kill(-reader, SIGCONT) == 0);
    note("reader in front\n");
    status = status_of(reader, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 'Q');

    struct termios modes;
    CHECK(tcgetattr(slave, &modes) == 0);
    modes.c_lflag |= TOSTOP;
    CHECK(tcsetattr(slave, TCSANOW, &modes) == 0);
    CHECK(tcsetpgrp(slave, getpgrp()) == 0);
    on_signal(SIGTTOU, SIG_DFL, 0);
    pid_t writer = job(slave, 'w');
    status = status_of(writer, WUNTRACED);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTOU);
    kill(writer, SIGKILL);
    status_of(writer, 0);

    pid_t sleeper = job(slave, 's');
    on_signal(SIGTTOU, SIG_IGN, 0);
    CHECK(tcsetpgrp(slave, sleeper) == 0);
    note("sleeper in front\n");
    status = status_of(sleeper, WUNTRACED);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTSTP); /* ^Z */
    kill(-sleeper, SIGCONT);
    status = status_of(sleeper, WCONTINUED);
    CHECK(WIFCONTINUED(status));
    note("continued\n");
    status = status_of(sleeper, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT); /* ^C */
    CHECK(!interrupted);
    note("leader leaves\n");
    _exit(0);
}

static void expect(int fd, const char *line)
{
    char text[64];
    size_t length = 0;
    while (length < sizeof text - 1 && read(fd, text + length, 1) == 1 && text[length] != '\n')
        length++;
    text[length] = 0;
    CHECK(strcmp(text, line) == 0);
}

int main(void)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY), out[2];
    CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0 && pipe(out) == 0);
    on_signal(SIGINT, on_interrupt, 0);
    char *name = ptsname(master);
    note("terminal %s\n", name);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], 1);
        leader(name);
    }
    close(out[1]);
    expect(out[0], "reader in front");
    CHECK(write(master, "Q\n", 2) == 2);
    expect(out[0], "sleeper in front");
    CHECK(write(master, "\x1a", 1) == 1);
    expect(out[0], "continued");
    CHECK(write(master, "\x03", 1) == 1);
    expect(out[0], "leader leaves");
    reap(pid, 0);
    CHECK(!interrupted);
    return done();
}
