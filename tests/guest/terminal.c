/* Pseudo-terminals: line editing, echo, raw mode, window size, end of file, hang-up. */
#include "guest.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <utmp.h>

static volatile sig_atomic_t resized, hung_up;

static void on_resize(int number)
{
    if (number == SIGWINCH)
        resized++;
    else
        hung_up++;
}

/* What a read of the slave gives that waits when the master is closed: EIO, and the end of the file from then on. */
static void closed(cc_t minimum, int session)
{
    int master, slave, ready[2];
    char text[16];
    struct termios modes;
    CHECK(openpty(&master, &slave, NULL, NULL, NULL) == 0 && pipe(ready) == 0);
    if (minimum) {
        CHECK(tcgetattr(slave, &modes) == 0);
        cfmakeraw(&modes);
        modes.c_cc[VMIN] = minimum;
        CHECK(tcsetattr(slave, TCSANOW, &modes) == 0);
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(master);
        hung_up = 0;
        on_signal(SIGHUP, on_resize, 0);
        if (session) CHECK(setsid() == getpid() && ioctl(slave, TIOCSCTTY, 0) == 0);
        CHECK(write(ready[1], "x", 1) == 1);
        CHECK(read(slave, text, sizeof text) == -1 && errno == EIO);
        CHECK(hung_up == session);
        CHECK(read(slave, text, sizeof text) == 0);
        _exit(3);
    }
    close(slave);
    CHECK(read(ready[0], text, 1) == 1);
    sleep_ms(100);
    close(master);
    reap(pid, 3);
    close(ready[0]);
    close(ready[1]);
}

int main(void)
{
    int master, slave;
    char name[64], text[256];
    struct winsize size = {24, 80, 0, 0};
    CHECK(openpty(&master, &slave, name, NULL, &size) == 0);
    note("%s\n", name);
    CHECK(isatty(master) && isatty(slave));
    CHECK(write(master, "abc\x7f" "d\n", 6) == 6);
    CHECK(read(slave, text, sizeof text) == 4 && memcmp(text, "abd\n", 4) == 0); /* the erased c */
    ssize_t n = read(master, text, sizeof text);
    CHECK(n == 9 && memcmp(text, "abc\b \bd\r\n", 9) == 0);
    CHECK(write(slave, "out\n", 4) == 4);
    CHECK(read(master, text, sizeof text) == 5 && memcmp(text, "out\r\n", 5) == 0);
    CHECK(write(master, "\x04", 1) == 1 && read(slave, text, sizeof text) == 0);

    struct termios modes;
    CHECK(tcgetattr(slave, &modes) == 0);
    note("modes %x %x %x %x\n", modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag);
    cfmakeraw(&modes);
    CHECK(tcsetattr(slave, TCSANOW, &modes) == 0);
    CHECK(write(master, "x\x04", 2) == 2 && read(slave, text, sizeof text) == 2);
    modes.c_cc[VMIN] = 0;
    modes.c_cc[VTIME] = 1;
    CHECK(tcsetattr(slave, TCSANOW, &modes) == 0);
    CHECK(read(slave, text, sizeof text) == 0); /* a tenth of a second */

    pid_t pid = fork();
    if (pid == 0) {
        on_signal(SIGWINCH, on_resize, 0);
        on_signal(SIGHUP, on_resize, 0);
        CHECK(login_tty(slave) == 0);
        close(master);
        CHECK(write(1, "ready", 5) == 5);
        while (!resized)
            sleep_ms(1);
        CHECK(ioctl(0, TIOCGWINSZ, &size) == 0 && size.ws_row == 50 && size.ws_col == 132);
        CHECK(write(1, "sized", 5) == 5);
        while (!hung_up)
            sleep_ms(1);
        _exit(read(0, text, 1) <= 0 ? 3 : 4);
    }
    close(slave);
    CHECK(read(master, text, sizeof text) == 5 && memcmp(text, "ready", 5) == 0);
    size = (struct winsize){50, 132, 0, 0};
    CHECK(ioctl(master, TIOCSWINSZ, &size) == 0);
    CHECK(read(master, text, sizeof text) == 5 && memcmp(text, "sized", 5) == 0);
    close(master);
    reap(pid, 3);
    closed(0, 0);
    closed(0, 1);
    closed(1, 0);
    closed(5, 1);
    return done();
}
