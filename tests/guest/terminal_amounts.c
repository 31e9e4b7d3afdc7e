/* Pseudo-terminals: how much there is, and how much fits, while nobody reads; it is not for a worker's haste to say. */
#include "guest.h"
#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

enum { ROUNDS = 20, MUCH = 200000 };

static char data[MUCH];

static void open_pair(int *master, int *slave, int raw)
{
    struct termios modes;
    CHECK(openpty(master, slave, NULL, NULL, NULL) == 0);
    CHECK(fcntl(*master, F_SETFL, O_NONBLOCK) == 0 && fcntl(*slave, F_SETFL, O_NONBLOCK) == 0);
    if (raw) {
        CHECK(tcgetattr(*slave, &modes) == 0);
        cfmakeraw(&modes);
        CHECK(tcsetattr(*slave, TCSANOW, &modes) == 0);
    }
}

static int amount(int fd)
{
    int found = -1;
    CHECK(ioctl(fd, FIONREAD, &found) == 0);
    return found;
}

static int drained(int fd)
{
    int all = 0, some;
    while ((some = read(fd, data, 5000)) > 0) all += some;
    return all;
}

/* As much as there is room for, before and behind the reading of a part of it. */
static void fill(int round)
{
    int master, slave;
    open_pair(&master, &slave, 0);
    int first = write(slave, data, round % 2 ? MUCH : 1000 + 900 * round), second = write(slave, data, MUCH);
    CHECK(first > 0);
    int put = first + (second > 0 ? second : 0), taken = 0;
    note("out: %d %d", first, second);
    for (int i = 0; i < 4; i++) {
        int some = read(master, data, 3000 + 700 * i), more = write(slave, data, 100);
        taken += some;
        put += more > 0 ? more : 0;
        note(" %d/%d", some, more);
    }
    CHECK(taken + drained(master) == put);
    close(slave);
    close(master);
    open_pair(&master, &slave, 1);
    put = write(master, data, MUCH);
    note(" in: %d\n", put);
    CHECK(drained(slave) == put);
    close(slave);
    close(master);
}

/* Output, and what is typed, with what is there unread. */
static void look(void)
{
    static const char *typed[] = {"abc\n", "x\ty\n", "\001\002\n", "qq\177\177z\n", "\n\n\n", "not this\025but this\n", "a\rb\r"};
    int master, slave;
    open_pair(&master, &slave, 0);
    for (int i = 0; i < 200; i++) {
        CHECK(write(slave, "hello\n", 6) == 6);
        note("%d ", amount(master));
    }
    note("out %d\n", drained(master));
    for (int i = 0; i < 35; i++) {
        const char *text = typed[i % 7];
        CHECK(write(master, text, strlen(text)) == (ssize_t)strlen(text));
        int lines = amount(slave);
        note("%d/%zd ", lines, read(master, data, sizeof data));
    }
    note("in %d\n", drained(slave));
    for (int i = 0; i < 200; i++) {
        CHECK(write(master, "hello\n", 6) == 6);
        int echo = amount(master);
        note("%d/%d ", echo, drained(slave));
    }
    note("echo %d\n", drained(master));
    close(slave);
    for (int i = 0; i < 35; i++) {
        const char *text = typed[i % 7];
        CHECK(write(master, text, strlen(text)) == (ssize_t)strlen(text));
        note("%zd ", read(master, data, sizeof data));
    }
    note("closed\n");
    close(master);
}

int main(void)
{
    memset(data, 'a', sizeof data);
    for (int round = 0; round < ROUNDS; round++) fill(round);
    look();
    return done();
}
