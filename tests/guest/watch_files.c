/* inotify and dnotify: which events come, in which order, across processes; a program that finds no inotify must cope. */
#include "guest.h"
#include <sys/inotify.h>

static void drain(int fd)
{
    char buffer[8192] __attribute__((aligned(8)));
    ssize_t n;
    while ((n = read(fd, buffer, sizeof buffer)) > 0)
        for (char *at = buffer; at < buffer + n;) {
            struct inotify_event *event = (void *)at;
            note("%x %s %d\n", event->mask, event->len ? event->name : "-", event->cookie != 0);
            at += sizeof *event + event->len;
        }
    CHECK(n == -1 && errno == EAGAIN);
}

/* The kinds of what has happened, in their order. */
static void expect(int fd, int count, const unsigned *masks)
{
    char buffer[8192] __attribute__((aligned(8)));
    ssize_t n = read(fd, buffer, sizeof buffer);
    for (char *at = buffer; at < buffer + n;) {
        struct inotify_event *event = (void *)at;
        CHECK(count-- > 0 && event->mask == *masks++);
        at += sizeof *event + event->len;
    }
    CHECK(count == 0);
}
#define EXPECT(fd, ...)                                                         \
    do {                                                                        \
        static const unsigned wanted[] = {__VA_ARGS__};                         \
        expect(fd, sizeof wanted / sizeof *wanted, wanted);                     \
    } while (0)

/* Who looks at a file, names it otherwise or removes it opens nothing. */
static void nothing_more(int fd)
{
    struct stat status;
    close(open("watched/empty", O_CREAT | O_WRONLY, 0600));
    CHECK(stat("watched/empty", &status) == 0 && status.st_size == 0 && status.st_blocks == 0);
    EXPECT(fd, IN_CREATE, IN_OPEN, IN_CLOSE_WRITE);
    CHECK(rename("watched/empty", "watched/moved") == 0 && lstat("watched/moved", &status) == 0);
    CHECK(access("watched/moved", R_OK) == 0 && chmod("watched/moved", 0400) == 0);
    EXPECT(fd, IN_MOVED_FROM, IN_MOVED_TO, IN_ATTRIB);
    CHECK(link("watched/moved", "watched/other") == 0 && unlink("watched/moved") == 0 && unlink("watched/other") == 0);
    EXPECT(fd, IN_CREATE, IN_DELETE, IN_DELETE);
}

static int changes, on;

static void on_change(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    changes++;
    on = info->si_fd;
}

/* dnotify: a signal for each change in a directory. */
static void by_signal(void)
{
    struct sigaction action = {.sa_sigaction = on_change, .sa_flags = SA_SIGINFO};
    CHECK(mkdir("notified", 0700) == 0 && sigaction(SIGRTMIN, &action, NULL) == 0);
    int fd = open("notified", O_RDONLY | O_DIRECTORY);
    CHECK(fcntl(fd, F_SETSIG, SIGRTMIN) == 0);
    CHECK(fcntl(fd, F_NOTIFY, DN_CREATE | DN_DELETE | DN_MULTISHOT) == 0);
    close(open("notified/new", O_CREAT | O_WRONLY, 0600));
    CHECK(changes == 1 && on == fd);
    pid_t pid = fork();
    if (pid == 0)
        _exit(unlink("notified/new") != 0);
    while (waitpid(pid, NULL, 0) != pid)
        ;
    CHECK(changes == 2);
    close(fd);
    CHECK(rmdir("notified") == 0 && changes == 2);
    int file = open("file", O_CREAT | O_RDWR, 0600);
    FAILS(fcntl(file, F_NOTIFY, DN_CREATE), ENOTDIR);
    CHECK(close(file) == 0 && unlink("file") == 0);
}

int main(void)
{
    by_signal();
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd == -1 && (errno == ENOSYS || errno == EMFILE)) {
        note("no inotify\n");
        return done();
    }
    CHECK(fd >= 0 && mkdir("watched", 0700) == 0);
    int watch = inotify_add_watch(fd, "watched", IN_ALL_EVENTS);
    CHECK(watch == 1);
    drain(fd);
    nothing_more(fd);
    int file = open("watched/new", O_CREAT | O_WRONLY, 0600);
    CHECK(write(file, "x", 1) == 1);
    close(file);
    CHECK(rename("watched/new", "watched/moved") == 0 && chmod("watched/moved", 0644) == 0);
    drain(fd);
    pid_t pid = fork();
    if (pid == 0) {
        sleep_ms(10);
        CHECK(unlink("watched/moved") == 0);
        _exit(0);
    }
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1);
    reap(pid, 0);
    drain(fd);
    CHECK(rmdir("watched") == 0);
    drain(fd);
    FAILS(inotify_rm_watch(fd, watch), EINVAL);
    return done();
}
