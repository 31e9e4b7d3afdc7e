/* Unix sockets: stream, datagram, seqpacket; passing descriptors and credentials; shutdown; abstract names. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

static void send_fd(int socket, int fd)
{
    char byte = 'f', space[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    CHECK(sendmsg(socket, &message, 0) == 1);
}

static int receive_fd(int socket)
{
    char byte, space[CMSG_SPACE(sizeof(int))];
    int fd;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    CHECK(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && byte == 'f');
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(header && header->cmsg_type == SCM_RIGHTS);
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static void passing(void)
{
    int pair[2], inner[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        int file = open("passed", O_CREAT | O_RDWR, 0600);
        CHECK(write(file, "through", 7) == 7);
        CHECK(pipe(inner) == 0);
        send_fd(pair[1], file);
        send_fd(pair[1], inner[0]);
        CHECK(write(inner[1], "pipe", 4) == 4);
        _exit(0);
    }
    int file = receive_fd(pair[0]), end = receive_fd(pair[0]);
    char text[16] = "";
    CHECK(pread(file, text, 15, 0) == 7 && strcmp(text, "through") == 0);
    CHECK(read(end, text, 15) == 4 && read(end, text, 15) == 0);
    reap(pid, 0);
    struct ucred who;
    socklen_t size = sizeof who;
    CHECK(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &who, &size) == 0 && who.pid == getpid());
    CHECK(who.uid == getuid() && who.gid == getgid());
    close(pair[1]);
    CHECK(read(pair[0], text, 1) == 0);
    on_signal(SIGPIPE, SIG_IGN, 0);
    FAILS(send(pair[0], "x", 1, 0), EPIPE);
    unlink("passed");
}

static struct sockaddr_un named(const char *name, socklen_t *size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, name, strlen(name + 1) + 1);
    *size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name + 1) + 1);
    return address;
}

/* Echo server on a listening socket with clients that connect together. */
static void serve(int type, const char *name)
{
    socklen_t size;
    struct sockaddr_un address = named(name, &size);
    int listener = socket(AF_UNIX, type, 0);
    CHECK(bind(listener, (void *)&address, size) == 0 && listen(listener, 8) == 0);
    int second = socket(AF_UNIX, type, 0);
    FAILS(bind(second, (void *)&address, size), EADDRINUSE);
    close(second);
    for (int i = 0; i < 4; i++)
        if (fork() == 0) {
            int client = socket(AF_UNIX, type, 0);
            char text[16];
            CHECK(connect(client, (void *)&address, size) == 0);
            int n = snprintf(text, sizeof text, "client %d", i);
            CHECK(send(client, text, (size_t)n, 0) == n);
            char back[16] = "";
            CHECK(recv(client, back, sizeof back, 0) == n && memcmp(back, text, (size_t)n) == 0);
            _exit(0);
        }
    for (int i = 0; i < 4; i++) {
        int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        char text[16] = "";
        ssize_t n = recv(peer, text, sizeof text - 1, 0);
        CHECK(n == 8);
        note("%s\n", text); /* in order of their connections */
        CHECK(send(peer, text, (size_t)n, 0) == n);
        close(peer);
    }
    for (int i = 0; i < 4; i++)
        CHECK(wait(NULL) > 0);
    close(listener);
    if (name[0])
        CHECK(unlink(name) == 0);
    int client = socket(AF_UNIX, type, 0);
    FAILS(connect(client, (void *)&address, size), name[0] ? ENOENT : ECONNREFUSED);
    close(client);
}

static void datagrams(void)
{
    int pair[2];
    char text[8];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    CHECK(send(pair[0], "abcdefghij", 10, 0) == 10 && send(pair[0], "k", 1, 0) == 1);
    CHECK(recv(pair[1], text, 4, MSG_PEEK) == 4);
    CHECK(recv(pair[1], text, 4, MSG_TRUNC) == 10);
    CHECK(recv(pair[1], text, 4, 0) == 1);
    FAILS(recv(pair[1], text, 4, MSG_DONTWAIT), EAGAIN);
    struct timeval tv = {0, 20000};
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    int64_t begin = now_ns();
    FAILS(recv(pair[1], text, 4, 0), EAGAIN);
    CHECK(now_ns() - begin >= 20 * MS);
    pid_t pid = fork();
    if (pid == 0) { /* fills the queue until it blocks, and goes on when there is room */
        for (int i = 0; i < 2000; i++)
            CHECK(send(pair[0], &i, sizeof i, 0) == sizeof i);
        _exit(0);
    }
    tv = (struct timeval){0, 0};
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    for (int i = 0; i < 2000; i++) {
        int value;
        CHECK(recv(pair[1], &value, sizeof value, 0) == sizeof value && value == i);
    }
    reap(pid, 0);
}

static void large_stream(void)
{
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    size_t total = 3 << 20;
    pid_t pid = fork();
    if (pid == 0) {
        char *data = malloc(total);
        memset(data, 's', total);
        CHECK(send(pair[1], data, total, 0) == (ssize_t)total);
        shutdown(pair[1], SHUT_WR);
        char byte;
        CHECK(read(pair[1], &byte, 1) == 1 && byte == 'k');
        _exit(0);
    }
    static char buffer[50000];
    size_t got = 0;
    CHECK(recv(pair[0], buffer, sizeof buffer, MSG_WAITALL) == sizeof buffer);
    got = sizeof buffer;
    ssize_t n;
    close(pair[1]);
    while ((n = read(pair[0], buffer, sizeof buffer)) > 0)
        got += (size_t)n;
    CHECK(got == total && write(pair[0], "k", 1) == 1);
    reap(pid, 0);
}

int main(void)
{
    passing();
    serve(SOCK_STREAM, "socket");
    serve(SOCK_SEQPACKET, "socket2");
    serve(SOCK_STREAM, "\0abstract");
    datagrams();
    large_stream();
    return done();
}
