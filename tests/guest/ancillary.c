/* Ancillary data: descriptors, credentials and times of arrival, where one call waits for several messages, too. */
#include "guest.h"
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/utsname.h>

static char space[4][256];

static struct mmsghdr *headers(size_t room)
{
    static struct mmsghdr all[4];
    static struct iovec data[4];
    static char bytes[4];
    for (int i = 0; i < 4; i++) {
        data[i] = (struct iovec){&bytes[i], 1};
        all[i].msg_hdr = (struct msghdr){.msg_iov = &data[i], .msg_iovlen = 1, .msg_control = space[i],
                                         .msg_controllen = room};
    }
    return all;
}

static void send_with(int socket, int type, const void *value, size_t size)
{
    char control[64] = {0};
    struct iovec data = {"x", 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = CMSG_SPACE(size)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = type, .cmsg_len = CMSG_LEN(size)};
    memcpy(CMSG_DATA(header), value, size);
    CHECK(sendmsg(socket, &message, 0) == 1);
    CHECK(memcmp(CMSG_DATA(header), value, size) == 0);
}

static void *part(struct msghdr *message, int type, size_t size)
{
    for (struct cmsghdr *h = CMSG_FIRSTHDR(message); h; h = CMSG_NXTHDR(message, h))
        if (h->cmsg_level == SOL_SOCKET && h->cmsg_type == type) {
            CHECK(h->cmsg_len == CMSG_LEN(size));
            return CMSG_DATA(h);
        }
    return NULL;
}

static void waiting(void)
{
    int pair[2], on = 1;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_TIMESTAMP, &on, sizeof on) == 0);
    int64_t begin = clock_ns(CLOCK_REALTIME);
    pid_t pid = fork();
    if (pid == 0) {
        int ends[2];
        CHECK(pipe(ends) == 0 && write(ends[1], "through", 7) == 7);
        CHECK(send(pair[1], "x", 1, 0) == 1);
        sleep_ms(5);
        send_with(pair[1], SCM_RIGHTS, ends, sizeof ends);
        struct ucred me = {getpid(), getuid(), getgid()};
        send_with(pair[1], SCM_CREDENTIALS, &me, sizeof me);
        send_with(pair[1], SCM_RIGHTS, ends, sizeof ends);
        _exit(0);
    }
    struct mmsghdr *all = headers(sizeof space[0]);
    all[3].msg_hdr.msg_controllen = CMSG_SPACE(sizeof(struct timeval)); /* no room for more */
    CHECK(recvmmsg(pair[0], all, 4, MSG_CMSG_CLOEXEC, NULL) == 4);
    for (int i = 0; i < 4; i++) {
        struct timeval *at = part(&all[i].msg_hdr, SCM_TIMESTAMP, sizeof *at);
        int64_t ns = at->tv_sec * SECOND + at->tv_usec * 1000;
        CHECK(all[i].msg_len == 1 && ns >= begin - 1000 && ns <= clock_ns(CLOCK_REALTIME));
        if (i == 3)
            break;
        struct ucred *who = part(&all[i].msg_hdr, SCM_CREDENTIALS, sizeof *who);
        CHECK(who && who->pid == pid && who->uid == getuid() && who->gid == getgid());
    }
    int *ends = part(&all[1].msg_hdr, SCM_RIGHTS, 2 * sizeof(int));
    char text[8] = "";
    CHECK(ends && fcntl(ends[0], F_GETFD) == FD_CLOEXEC && read(ends[0], text, 7) == 7 && !strcmp(text, "through"));
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    CHECK(all[3].msg_hdr.msg_flags & MSG_CTRUNC && !part(&all[3].msg_hdr, SCM_RIGHTS, 0));
    CHECK(!(all[1].msg_hdr.msg_flags & MSG_CTRUNC));
    reap(pid, 0);
}

/* Root's messages say who it has become; nobody else may say that he is root. */
static void other_users(void)
{
    int pair[2], on = 1;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct ucred as = {getpid(), 1234, 99}, root = {getpid(), 0, 0};
        send_with(pair[1], SCM_CREDENTIALS, &as, sizeof as);
        sleep_ms(5);
        CHECK(setresgid(77, 77, 77) == 0 && setresuid(1000, 1000, 1000) == 0);
        char control[CMSG_SPACE(sizeof root)] = {0};
        struct iovec data = {"x", 1};
        struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                                 .msg_controllen = sizeof control};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_CREDENTIALS,
                                   .cmsg_len = CMSG_LEN(sizeof root)};
        memcpy(CMSG_DATA(header), &root, sizeof root);
        FAILS(sendmsg(pair[1], &message, 0), EPERM);
        CHECK(send(pair[1], "x", 1, 0) == 1);
        _exit(0);
    }
    for (int i = 0; i < 2; i++) {
        struct msghdr *message = &headers(sizeof space[0])->msg_hdr;
        CHECK(recvmsg(pair[0], message, 0) == 1);
        struct ucred *who = part(message, SCM_CREDENTIALS, sizeof *who);
        CHECK(who->pid == pid && who->uid == (i ? 1000 : 1234) && who->gid == (i ? 77 : 99));
    }
    reap(pid, 0);
}

/* The kernel would wait within the call: for room after a part, between messages, for a receiver that poll does not see. */
static void full(void)
{
    static char large[1 << 20];
    int pair[2], ends[2], on = 1;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe(ends) == 0 && write(ends[1], "through", 7) == 7);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        char control[CMSG_SPACE(sizeof(int))] = {0};
        struct iovec data = {large, sizeof large};
        struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                                 .msg_controllen = sizeof control};
        *CMSG_FIRSTHDR(&message) = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                                    .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), ends, sizeof(int));
        CHECK(sendmsg(pair[1], &message, 0) == sizeof large);
        CHECK(send(pair[1], large, sizeof large, 0) == sizeof large);
        _exit(0);
    }
    size_t got = 0;
    for (int i = 0; got < 2 * sizeof large; i++) {
        struct msghdr *message = &headers(sizeof space[0])->msg_hdr;
        struct iovec data = {large, 100000};
        message->msg_iov = &data;
        ssize_t n = recvmsg(pair[0], message, 0);
        CHECK(n > 0);
        got += (size_t)n;
        int *fd = part(message, SCM_RIGHTS, sizeof *fd);
        CHECK(!fd == !!i && (i || (read(*fd, large, 100) == 7 && memcmp(large, "through", 7) == 0)));
        struct ucred *who = part(message, SCM_CREDENTIALS, sizeof *who);
        CHECK(who && who->pid == pid && who->uid == getuid());
    }
    reap(pid, 0);

    enum { MANY = 300 };
    static struct mmsghdr all[MANY];
    static struct iovec data[MANY];
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "full"};
    int receiver = socket(AF_UNIX, SOCK_DGRAM, 0), value;
    CHECK(bind(receiver, (void *)&address, sizeof address) == 0);
    pid = fork();
    if (pid == 0) {
        int sender = socket(AF_UNIX, SOCK_DGRAM, 0);
        for (int i = 0; i < MANY; i++)
            CHECK(sendto(sender, &i, sizeof i, 0, (void *)&address, sizeof address) == sizeof i);
        for (int i = 0; i < MANY; i++) {
            data[i] = (struct iovec){&data[i], 8};
            all[i].msg_hdr = (struct msghdr){.msg_iov = &data[i], .msg_iovlen = 1, .msg_name = &address,
                                             .msg_namelen = sizeof address};
        }
        CHECK(sendmmsg(sender, all, MANY, 0) == MANY && all[MANY - 1].msg_len == 8);
        struct timeval limit = {0, 20000};
        CHECK(setsockopt(sender, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
        CHECK(send(pair[0], "x", 1, 0) == 1);
        sleep_ms(5);
        int n = 0;
        while (sendto(sender, &n, sizeof n, 0, (void *)&address, sizeof address) == sizeof n)
            n++;
        CHECK(errno == EAGAIN && n > 0);
        _exit(0);
    }
    for (int i = 0; i < MANY; i++)
        CHECK(recv(receiver, &value, sizeof value, 0) == sizeof value && value == i);
    for (int i = 0; i < MANY; i++)
        CHECK(recv(receiver, large, 100, 0) == 8);
    reap(pid, 0);
    CHECK(unlink("full") == 0);
}

static int64_t stamp(struct msghdr *message)
{
    struct scm_timestamping *times = part(message, SCM_TIMESTAMPING, sizeof *times);
    CHECK(times && times->ts[1].tv_sec == 0 && times->ts[2].tv_sec == 0);
    return times->ts[0].tv_sec * SECOND + times->ts[0].tv_nsec;
}

/* Stamps of sending and of receiving on the loopback device. */
static void stamping(int native)
{
    int flags = SOF_TIMESTAMPING_RX_SOFTWARE | SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE |
                SOF_TIMESTAMPING_OPT_TSONLY | SOF_TIMESTAMPING_OPT_ID, none = 1 << 30;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    CHECK(bind(fd, (void *)&address, size) == 0 && getsockname(fd, (void *)&address, &size) == 0);
    FAILS(setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &none, sizeof none), EINVAL);
    CHECK(setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPING, &flags, sizeof flags) == 0);
    if (native)
        sleep_ms(500); /* net_enable_timestamp() in net/core/dev.c begins in a worker */
    int64_t begin = clock_ns(CLOCK_REALTIME);
    CHECK(sendto(fd, "x", 1, 0, (void *)&address, size) == 1);
    struct pollfd events = {fd, POLLIN, 0};
    CHECK(poll(&events, 1, -1) == 1 && events.revents == (POLLIN | POLLERR));
    struct msghdr *message = &headers(sizeof space[0])->msg_hdr;
    CHECK(recvmsg(fd, message, MSG_ERRQUEUE) == 0);
    int64_t sent = stamp(message);
    message = &headers(sizeof space[0])->msg_hdr;
    CHECK(recvmsg(fd, message, 0) == 1);
    int64_t received = stamp(message);
    CHECK(begin <= sent && sent <= received && received <= clock_ns(CLOCK_REALTIME));
}

int main(void)
{
    struct utsname system;
    CHECK(uname(&system) == 0);
    waiting();
    if (getuid() == 0)
        other_users();
    full();
    stamping(!strstr(system.release, "detbox"));
    return done();
}
