/* TCP and UDP over loopback, IPv4 and IPv6: servers with clients, shutdown, backlog, nonblocking connect, no other network. */
#include "guest.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/utsname.h>

static struct sockaddr_in loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int listening(int *port)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(0);
    socklen_t size = sizeof address;
    CHECK(bind(listener, (void *)&address, size) == 0 && listen(listener, 16) == 0);
    CHECK(getsockname(listener, (void *)&address, &size) == 0);
    *port = ntohs(address.sin_port);
    return listener;
}

static void client(int port, int me)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = loopback(port);
    CHECK(connect(fd, (void *)&address, sizeof address) == 0);
    CHECK(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0);
    for (int i = 0; i < 5; i++) {
        char text[32], back[32] = "";
        int n = snprintf(text, sizeof text, "%d says %d", me, i);
        CHECK(send(fd, text, (size_t)n, 0) == n);
        CHECK(recv(fd, back, (size_t)n, MSG_WAITALL) == n && memcmp(text, back, (size_t)n) == 0);
    }
    CHECK(shutdown(fd, SHUT_WR) == 0);
    char byte;
    CHECK(read(fd, &byte, 1) == 0);
    _exit(0);
}

static void *echo(void *argument)
{
    int fd = (int)(intptr_t)argument;
    char text[64];
    ssize_t n;
    while ((n = read(fd, text, sizeof text)) > 0)
        CHECK(write(fd, text, (size_t)n) == n);
    close(fd);
    return NULL;
}

static void stream(void)
{
    int port, listener = listening(&port);
    pthread_t threads[5];
    note("port %d\n", port);
    for (int i = 0; i < 5; i++)
        if (fork() == 0)
            client(port, i);
    for (int i = 0; i < 5; i++) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        int fd = accept(listener, (void *)&peer, &size);
        CHECK(fd >= 0);
        note("from port %d\n", ntohs(peer.sin_port));
        threads[i] = start(echo, (void *)(intptr_t)fd);
    }
    for (int i = 0; i < 5; i++)
        join(threads[i]);
    for (int i = 0; i < 5; i++)
        CHECK(wait(NULL) > 0);
    close(listener);
}

static void bulk(void)
{
    int port, listener = listening(&port);
    size_t total = 4 << 20;
    pid_t pid = fork();
    if (pid == 0) {
        struct sockaddr_in address = loopback(port);
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(fd, (void *)&address, sizeof address) == 0);
        char *data = calloc(1, total);
        CHECK(write(fd, data, total) == (ssize_t)total);
        _exit(0);
    }
    int fd = accept(listener, NULL, NULL);
    static char buffer[100000];
    size_t got = 0;
    unsigned cuts = 0;
    ssize_t n;
    while ((n = read(fd, buffer, sizeof buffer)) > 0) {
        got += (size_t)n;
        cuts = cuts * 31 + (unsigned)n;
    }
    CHECK(got == total);
    note("cuts %u\n", cuts);
    reap(pid, 0);
    close(fd);
    close(listener);
}

static void nonblocking(void)
{
    int port, listener = listening(&port), error;
    socklen_t size = sizeof error;
    struct sockaddr_in address = loopback(port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int result = connect(fd, (void *)&address, sizeof address);
    CHECK(result == 0 || errno == EINPROGRESS);
    struct pollfd p = {fd, POLLOUT, 0};
    CHECK(poll(&p, 1, 1000) == 1);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    int peer = accept(listener, NULL, NULL);
    CHECK(peer >= 0);
    FAILS(accept(listener, NULL, NULL), EAGAIN);
    char byte;
    FAILS(read(fd, &byte, 1), EAGAIN);
    close(listener);
    int refused = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(connect(refused, (void *)&address, sizeof address), ECONNREFUSED);
    struct linger reset = {1, 0};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(peer);
    p.events = POLLIN;
    CHECK(poll(&p, 1, 1000) == 1);
    FAILS(read(fd, &byte, 1), ECONNRESET);
    close(fd);
}

static void datagrams(void)
{
    int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = loopback(0), from;
    socklen_t size = sizeof address;
    CHECK(bind(a, (void *)&address, size) == 0 && getsockname(a, (void *)&address, &size) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < 10; i++) {
            CHECK(sendto(b, &i, sizeof i, 0, (void *)&address, size) == sizeof i);
            sched_yield();
        }
        char text[8];
        CHECK(recv(b, text, sizeof text, 0) == 2);
        _exit(0);
    }
    for (int i = 0; i < 10; i++) {
        int value;
        CHECK(recvfrom(a, &value, sizeof value, 0, (void *)&from, &size) == sizeof value && value == i);
    }
    note("udp from %d\n", ntohs(from.sin_port));
    CHECK(sendto(a, "ok", 2, 0, (void *)&from, size) == 2);
    reap(pid, 0);
    struct timeval tv = {0, 10000};
    setsockopt(a, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv);
    char byte;
    FAILS(recv(a, &byte, 1, 0), EAGAIN);
}

static void version6(void)
{
    int listener = socket(AF_INET6, SOCK_STREAM, 0);
    if (listener < 0)
        return;
    struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    socklen_t size = sizeof address;
    if (bind(listener, (void *)&address, size) != 0)
        return;
    CHECK(listen(listener, 1) == 0 && getsockname(listener, (void *)&address, &size) == 0);
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    CHECK(connect(fd, (void *)&address, size) == 0);
    int peer = accept(listener, NULL, NULL);
    CHECK(write(fd, "6", 1) == 1);
    char byte;
    CHECK(read(peer, &byte, 1) == 1 && byte == '6');
}

/* What the kernel ends by its own clock: a closed connection's port, and a close that lingers. */
static void closing(void)
{
    static char data[1 << 16];
    struct linger wait = {1, 1}, is;
    struct utsname system;
    socklen_t size = sizeof is;
    int port, listener = listening(&port), fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = loopback(port);
    CHECK(connect(fd, (void *)&address, sizeof address) == 0);
    int peer = accept(listener, NULL, NULL);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait) == 0);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_LINGER, &is, &size) == 0 && is.l_onoff == 1 && is.l_linger == 1);
    pid_t pid = fork();
    if (pid == 0) {
        close(fd);
        sleep_ms(50);
        while (read(peer, data, sizeof data) > 0)
            ;
        _exit(0);
    }
    close(peer);
    while (send(fd, data, sizeof data, MSG_DONTWAIT) > 0)
        ;
    CHECK(close(fd) == 0 && close(listener) == 0);
    reap(pid, 0);
    CHECK(uname(&system) == 0);
    listener = socket(AF_INET, SOCK_STREAM, 0); /* on a plain kernel the port stays taken for a minute */
    CHECK(bind(listener, (void *)&address, sizeof address) == 0 || !strstr(system.release, "detbox"));
}

/* On a socket that listens nothing but accept waits. */
static void only_accept_waits(void)
{
    struct msghdr message = {0};
    char byte;
    int port, listener = listening(&port), local = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(read(listener, &byte, 1) == -1 && errno == ENOTCONN);
    CHECK(recv(listener, &byte, 1, 0) == -1 && errno == ENOTCONN);
    CHECK(recvmsg(listener, &message, 0) == -1 && errno == ENOTCONN);
    CHECK(send(listener, &byte, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    CHECK(bind(local, (struct sockaddr *)&(struct sockaddr){AF_UNIX, ""}, sizeof(sa_family_t)) == 0 && listen(local, 1) == 0);
    CHECK(read(local, &byte, 1) == -1 && errno == EINVAL);
    CHECK(send(local, &byte, 1, MSG_NOSIGNAL) == -1 && errno == ENOTCONN);
    CHECK(close(listener) == 0 && close(local) == 0);
}

/* How long a connection may wait for its first data is kept as a number of the kernel's retransmits. */
static void deferring(void)
{
    static const int told[][2] = {{-1, 0}, {0, 0}, {1, 1}, {2, 3}, {3, 3}, {30, 31}, {100, 127}, {1000, 1087}};
    int is, fd = socket(AF_INET, SOCK_STREAM, 0);
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        socklen_t size = sizeof is;
        CHECK(setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &told[i][0], sizeof(int)) == 0);
        CHECK(getsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &is, &size) == 0 && is == told[i][1]);
    }
    close(fd);
}

int main(void)
{
    stream();
    only_accept_waits();
    deferring();
    closing();
    bulk();
    nonblocking();
    datagrams();
    version6();
    return done();
}
