/* inotify: which events come, in which order, across processes; a program that finds no inotify must cope. */
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

int main(void)
{
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd == -1 && (errno == ENOSYS || errno == EMFILE)) {
        note("no inotify\n");
        return done();
    }
    CHECK(fd >= 0 && mkdir("watched", 0700) == 0);
    int watch = inotify_add_watch(fd, "watched", IN_ALL_EVENTS);
    CHECK(watch == 1);
    drain(fd);
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
