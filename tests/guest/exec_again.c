/* A program that is executed again starts as the first time: with its signals, limits and filters, and with every
 * register as the C library's first code expects it. */
#include "guest.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/auxv.h>
#include <sys/prctl.h>

static const char *self;

/* Its own word on what it was given. */
static int started(const char *what)
{
    char line[128];
    struct timespec now;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status);
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "SigBlk", 6) || !strncmp(line, "SigPnd", 6) || !strncmp(line, "ShdPnd", 6)) note("%s %s", what, line);
    fclose(status);
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &now) && now.tv_sec > 0);
    CHECK(getauxval(AT_SYSINFO_EHDR));
    note("%s: %d\n", what, open("/dev/null", O_RDONLY));
    return 0;
}

static int run(const char *what, void (*before)(void))
{
    int status;
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (!pid) {
        before();
        execl(self, self, what, (char *)NULL);
        _exit(126);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void nothing(void) {}

static void pending(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 3);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    kill(getpid(), SIGRTMIN + 3);
}

static void little_memory(void)
{
    struct rlimit limit = {1 << 30, 1 << 30};
    CHECK(!setrlimit(RLIMIT_AS, &limit));
}

static void no_descriptors(void)
{
    struct rlimit limit = {3, 3};
    int fd = open("/dev/null", O_RDWR);
    dup2(fd, 0);
    dup2(fd, 2);
    close(fd);
    CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
}

static void no_mask(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigprocmask, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

int main(int argc, char **argv)
{
    self = argv[0];
    if (argc > 1) return started(argv[1]);
    for (int i = 0; i < 3; i++) {
        CHECK(run("plain", nothing) == 0);
        CHECK(run("pending", pending) == 0);
        CHECK(run("little memory", little_memory) == 0);
        CHECK(run("no descriptors", no_descriptors) == 127); /* the C library cannot be opened */
        CHECK(run("no mask", no_mask) == 0);
    }
    puts("EXIT-SUCCESS");
    return 0;
}
