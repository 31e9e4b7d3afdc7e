/* Pipes: blocking writes larger than the pipe, atomic small ones, end of file, EPIPE, nonblocking, many writers, FIFOs. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

static volatile sig_atomic_t broken;

static void on_pipe(int number)
{
    (void)number;
    broken++;
}

static void large(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    size_t total = 1 << 20;
    pid_t pid = fork();
    if (pid == 0) {
        char *data = malloc(total);
        for (size_t i = 0; i < total; i++)
            data[i] = (char)(i * 31 >> 3);
        close(ends[0]);
        CHECK(write(ends[1], data, total) == (ssize_t)total);
        _exit(0);
    }
    close(ends[1]);
    char buffer[5000];
    size_t got = 0;
    ssize_t n;
    unsigned sum = 0, reads = 0;
    while ((n = read(ends[0], buffer, sizeof buffer)) > 0) {
        for (ssize_t i = 0; i < n; i++)
            CHECK(buffer[i] == (char)((got + i) * 31 >> 3));
        got += (size_t)n;
        sum = sum * 7 + (unsigned)n;
        reads++;
    }
    CHECK(n == 0 && got == total);
    note("reads %u sum %u\n", reads, sum); /* how the data was cut is decided by the scheduler */
    reap(pid, 0);
    close(ends[0]);
}

static void edges(void)
{
    int ends[2], count;
    char buffer[70000];
    memset(buffer, 'e', sizeof buffer);
    CHECK(pipe2(ends, O_NONBLOCK) == 0);
    FAILS(read(ends[0], buffer, 1), EAGAIN);
    CHECK(write(ends[1], buffer, sizeof buffer) == 65536); /* short */
    FAILS(write(ends[1], buffer, 1), EAGAIN);
    CHECK(ioctl(ends[0], FIONREAD, &count) == 0 && count == 65536);
    CHECK(read(ends[0], buffer, 4095) == 4095);
    FAILS(write(ends[1], buffer, 4096), EAGAIN); /* PIPE_BUF bytes or none */
    CHECK(fcntl(ends[0], F_GETPIPE_SZ) == 65536);
    CHECK(fcntl(ends[0], F_SETPIPE_SZ, 131072) == 131072);
    struct iovec parts[2] = {{"ab", 2}, {"cde", 3}};
    CHECK(writev(ends[1], parts, 2) == 5);
    on_signal(SIGPIPE, on_pipe, 0);
    close(ends[0]);
    FAILS(write(ends[1], "x", 1), EPIPE);
    CHECK(broken == 1);
    on_signal(SIGPIPE, SIG_IGN, 0);
    FAILS(write(ends[1], "x", 1), EPIPE);
    struct pollfd p = {ends[1], POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 1 && (p.revents & POLLERR));
    close(ends[1]);
}

static void many_writers(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    for (int i = 0; i < 8; i++)
        if (fork() == 0) {
            for (int k = 0; k < 20; k++) {
                char line[16];
                int n = snprintf(line, sizeof line, "w%d.%d\n", i, k);
                CHECK(write(ends[1], line, (size_t)n) == n);
                if (k % 5 == 0)
                    sched_yield();
            }
            _exit(0);
        }
    close(ends[1]);
    FILE *in = fdopen(ends[0], "r");
    char line[32];
    int next[8] = {0}, lines = 0;
    unsigned order = 0;
    while (fgets(line, sizeof line, in)) {
        int who, k;
        CHECK(sscanf(line, "w%d.%d", &who, &k) == 2 && next[who]++ == k);
        order = order * 13 + (unsigned)who;
        lines++;
    }
    CHECK(lines == 160);
    note("order %u\n", order);
    for (int i = 0; i < 8; i++)
        CHECK(wait(NULL) > 0);
    fclose(in);
}

static void several_readers(void)
{
    int ends[2], results[2];
    CHECK(pipe(ends) == 0 && pipe(results) == 0);
    for (int i = 0; i < 3; i++)
        if (fork() == 0) {
            close(ends[1]);
            char byte, mine = (char)('a' + i);
            while (read(ends[0], &byte, 1) == 1) {
                CHECK(write(results[1], (char[]){byte, mine}, 2) == 2);
                sched_yield();
            }
            _exit(0);
        }
    for (char c = 'A'; c <= 'Z'; c++)
        CHECK(write(ends[1], &c, 1) == 1);
    close(ends[1]);
    for (int i = 0; i < 3; i++)
        CHECK(wait(NULL) > 0);
    char got[53] = "";
    CHECK(read(results[0], got, 52) == 52);
    note("%s\n", got); /* which reader gets which byte is the scheduler's decision */
}

static void fifos(void)
{
    CHECK(mkfifo("a", 0600) == 0 && mkfifo("b", 0600) == 0);
    FAILS(open("a", O_WRONLY | O_NONBLOCK), ENXIO);
    pid_t pid = fork();
    if (pid == 0) { /* the rendezvous of two opens, both ways */
        int in = open("a", O_RDONLY), out = open("b", O_WRONLY);
        char byte;
        CHECK(in >= 0 && out >= 0 && read(in, &byte, 1) == 1 && byte == '?');
        CHECK(write(out, "!", 1) == 1);
        CHECK(read(in, &byte, 1) == 0);
        _exit(0);
    }
    sleep_ms(10);
    int out = open("a", O_WRONLY), in = open("b", O_RDONLY);
    char byte;
    CHECK(write(out, "?", 1) == 1 && read(in, &byte, 1) == 1 && byte == '!');
    close(out);
    reap(pid, 0);
    CHECK(read(in, &byte, 1) == 0);
    close(in);
    in = open("a", O_RDONLY | O_NONBLOCK);
    CHECK(in >= 0 && read(in, &byte, 1) == 0);
    out = open("a", O_WRONLY | O_NONBLOCK);
    CHECK(out >= 0);
    FAILS(read(in, &byte, 1), EAGAIN);
    int both = open("b", O_RDWR);
    CHECK(both >= 0 && write(both, "z", 1) == 1 && read(both, &byte, 1) == 1);
    unlink("a");
    unlink("b");
}

static void splicing(void)
{
    int a[2], b[2];
    char text[8] = "";
    CHECK(pipe(a) == 0 && pipe(b) == 0 && write(a[1], "spliced", 7) == 7);
    CHECK(tee(a[0], b[1], 3, 0) == 3);
    CHECK(read(b[0], text, 3) == 3);
    CHECK(splice(a[0], NULL, b[1], NULL, 100, 0) == 7);
    CHECK(read(b[0], text, 8) == 7 && memcmp(text, "spliced", 7) == 0);

    /* The flag is for pipes (and Unix sockets that are read): a full socket is waited for. */
    int ends[2];
    static char block[4096];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    FAILS(splice(a[0], NULL, ends[0], NULL, 9, SPLICE_F_NONBLOCK), EAGAIN);
    FAILS(splice(ends[1], NULL, b[1], NULL, 9, SPLICE_F_NONBLOCK), EAGAIN);
    while (send(ends[0], block, sizeof block, MSG_DONTWAIT) > 0)
        ;
    CHECK(write(a[1], "waits", 5) == 5);
    pid_t pid = fork();
    if (pid == 0) {
        sleep_ms(20);
        while (recv(ends[1], block, sizeof block, MSG_DONTWAIT) > 0)
            ;
        _exit(0);
    }
    CHECK(splice(a[0], NULL, ends[0], NULL, 5, SPLICE_F_NONBLOCK) == 5);
    reap(pid, 0);
}

int main(void)
{
    on_signal(SIGPIPE, SIG_DFL, 0);
    large();
    edges();
    many_writers();
    several_readers();
    fifos();
    splicing();
    return done();
}
