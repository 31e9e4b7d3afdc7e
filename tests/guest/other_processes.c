/* What a process can learn of others, and do to them, by their numbers: memory, scheduling. */
#include "guest.h"
#include <sys/resource.h>
#include <sys/uio.h>

static char *pages; /* two pages, of which only the first can be used after split() */

static void map_pages(void)
{
    pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    for (int i = 0; i < 8192; i++) pages[i] = (char)(i % 251);
}

static void memory(void)
{
    int there[2], back[2];
    char byte, text[9000], big[8192];
    map_pages();
    CHECK(pipe(there) == 0 && pipe(back) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(munmap(pages + 4096, 4096) == 0);
        memcpy(pages, "the child's", 12);
        CHECK(write(back[1], "r", 1) == 1);
        CHECK(read(there[0], &byte, 1) == 1);
        CHECK(strcmp(pages + 100, "hello") == 0 && strcmp(pages + 200, "again") == 0);
        _exit(7);
    }
    CHECK(read(back[0], &byte, 1) == 1);
    struct iovec mine[2] = {{text, 4}, {text + 100, 8}}, its[2] = {{pages, 6}, {pages + 6, 6}};
    CHECK(process_vm_readv(child, mine, 2, its, 2, 0) == 12);
    CHECK(memcmp(text, "the ", 4) == 0 && strcmp(text + 100, "child's") == 0);
    /* As much as there is. */
    struct iovec all = {big, sizeof big}, whole = {pages, 8192};
    CHECK(process_vm_readv(child, &all, 1, &whole, 1, 0) == 4096);
    CHECK(memcmp(big + 12, pages + 12, 4084) == 0);
    struct iovec missing = {pages + 4096, 10};
    FAILS(process_vm_readv(child, &all, 1, &missing, 1, 0), EFAULT);
    FAILS(process_vm_readv(child, &all, 1, &whole, 1, 1), EINVAL);
    FAILS(process_vm_readv(child, &all, 1025, &whole, 1, 0), EINVAL);
    FAILS(process_vm_readv(child, &all, 1, &whole, 1UL << 32, 0), EINVAL);
    CHECK(process_vm_readv(child, &all, 1UL << 32, &whole, 1, 0) == 0); /* of this count 32 bits are looked at */
    FAILS(process_vm_readv(4000000, &all, 1, &whole, 1, 0), ESRCH);
    CHECK(process_vm_readv(4000000, &all, 0, &whole, 1, 0) == 0);
    CHECK(strcpy(text, "hello") && strcpy(text + 50, "again"));
    struct iovec out[2] = {{text, 6}, {text + 50, 6}}, in[2] = {{pages + 100, 6}, {pages + 200, 6}};
    CHECK(process_vm_writev(child, out, 2, in, 2, 0) == 12);
    CHECK(write(there[1], "g", 1) == 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    FAILS(process_vm_readv(child, &all, 1, &whole, 1, 0), ESRCH);
}

/* The parent (the first process, in a container) can be asked about as any other can. */
static void scheduling(void)
{
    pid_t parent = getppid();
    struct sched_param parameters = {5};
    cpu_set_t processors;
    CHECK(sched_getscheduler(parent) == SCHED_OTHER);
    CHECK(sched_getparam(parent, &parameters) == 0 && parameters.sched_priority == 0);
    CHECK(sched_getaffinity(parent, sizeof processors, &processors) == 0 && CPU_COUNT(&processors) > 0);
    errno = 0;
    CHECK(getpriority(PRIO_PROCESS, parent) >= -20 && errno == 0);
    FAILS(sched_getscheduler(-1), EINVAL);
    FAILS(sched_getscheduler(4000000), ESRCH);
}

static volatile sig_atomic_t got;
static volatile pid_t sender;

static void on_user(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    sender = info->si_code == SI_USER ? info->si_pid : -1;
    got++;
}

/* Who may not signal a process, and what comes of it when it is one of several. */
static void refused(pid_t root, pid_t equal)
{
    CHECK(setresuid(1, 1, 1) == 0);
    FAILS(kill(1, 0), EPERM);
    FAILS(kill(root, 0), EPERM);
    FAILS(kill(root, SIGKILL), EPERM);
    FAILS(kill(root, 65), EINVAL);
    FAILS(kill(4000000, 0), ESRCH);
    FAILS(syscall(SYS_tgkill, root, root, SIGTERM), EPERM);
    FAILS(sigqueue(root, SIGTERM, (union sigval){0}), EPERM);
    CHECK(kill(root, SIGCONT) == 0); /* of the same session */
    int descriptor = (int)syscall(SYS_pidfd_open, root, 0), its = (int)syscall(SYS_pidfd_open, equal, 0);
    FAILS(syscall(SYS_pidfd_send_signal, descriptor, SIGTERM, NULL, 0), EPERM);
    CHECK(syscall(SYS_pidfd_send_signal, its, 0, NULL, 0) == 0);
    struct sigaction action = {.sa_sigaction = on_user, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(kill(0, SIGUSR1) == 0 && got == 1 && sender == getpid()); /* not to root */
    FAILS(kill(-getpgid(root) - 1, SIGUSR1), ESRCH);
    CHECK(kill(equal, SIGTERM) == 0);
    sleep_ms(5);
}

static void signals(void)
{
    if (geteuid()) return;
    int status;
    pid_t middle = fork();
    if (middle == 0) {
        int prepared[2];
        char byte = 0;
        CHECK(setpgid(0, 0) == 0 && pipe(prepared) == 0);
        pid_t root = getpid(), equal = fork();
        if (equal == 0) {
            CHECK(setresuid(0, 0, 1) == 0);
            signal(SIGUSR1, SIG_IGN);
            CHECK(write(prepared[1], &byte, 1) == 1);
            for (;;) pause();
        }
        pid_t child = fork();
        if (child == 0) {
            CHECK(read(prepared[0], &byte, 1) == 1);
            refused(root, equal);
            kill(0, SIGKILL);
        }
        CHECK(waitpid(equal, &status, 0) == equal && WTERMSIG(status) == SIGTERM);
        CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL);
        FAILS(kill(child, 0), ESRCH);
        _exit(3);
    }
    CHECK(waitpid(middle, &status, 0) == middle && WIFEXITED(status) && WEXITSTATUS(status) == 3);
}

/* Where the links of a process lead is for those who may debug it, by whatever path they are found. */
static void other_links(pid_t root)
{
    char path[64], text[PATH_MAX];
    struct stat st;
    const char *names[] = {"exe", "cwd", "root", "ns/net"};
    CHECK(setresgid(1, 1, 1) == 0 && setresuid(1, 1, 1) == 0);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "/proc/%d/%s", (int)root, names[i]);
        FAILS(readlink(path, text, sizeof text), EACCES);
        FAILS(stat(path, &st), EACCES);
        FAILS(open(path, O_RDONLY), EACCES);
        CHECK(lstat(path, &st) == 0 && S_ISLNK(st.st_mode));
        int link = open(path, O_PATH | O_NOFOLLOW);
        CHECK(link >= 0);
        FAILS(readlinkat(link, "", text, sizeof text), EACCES);
        close(link);
        snprintf(path, sizeof path, "/proc/%d/task/%d/%s", (int)root, (int)root, names[i]);
        FAILS(readlink(path, text, sizeof text), EACCES);
        FAILS(access(path, F_OK), EACCES);
    }
    snprintf(path, sizeof path, "/proc/%d/root/etc/passwd", (int)root);
    FAILS(open(path, O_RDONLY), EACCES);
    snprintf(path, sizeof path, "/proc/%d", (int)root);
    CHECK(chdir(path) == 0);
    FAILS(readlink("exe", text, sizeof text), EACCES);
    FAILS(chdir("cwd"), EACCES);
    FAILS(stat("exe", &st), EACCES);
    CHECK(chdir("/") == 0);
    CHECK(readlink("/proc/self/cwd", text, sizeof text) == 1 && text[0] == '/');
    CHECK(stat("/proc/self/exe", &st) == 0 && S_ISREG(st.st_mode));
    snprintf(path, sizeof path, "/proc/%d", (int)getpid());
    CHECK(chdir(path) == 0);
    CHECK(readlink("root", text, sizeof text) == 1 && text[0] == '/');
    CHECK(stat("exe", &st) == 0 && S_ISREG(st.st_mode));
}

static void links(void)
{
    int status;
    char byte, path[64], text[64], other[64];
    int held[2];
    CHECK(pipe(held) == 0);
    /* The texts are the same by a descriptor of the link itself. */
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, i == 0 ? "/proc/self/ns/net" : i == 1 ? "/proc/self/fd/%d" : "/proc/self", held[0]);
        int link = open(path, O_PATH | O_NOFOLLOW);
        CHECK(link >= 0);
        ssize_t size = readlink(path, text, sizeof text);
        CHECK(size > 0 && readlinkat(link, "", other, sizeof other) == size && memcmp(text, other, size) == 0);
        note("%.*s\n", i == 2 ? 0 : (int)size, text);
        close(link);
    }
    if (geteuid()) return;
    pid_t root = fork();
    if (root == 0) {
        close(held[1]);
        CHECK(read(held[0], &byte, 1) == 0);
        _exit(0);
    }
    pid_t child = fork();
    if (child == 0) {
        other_links(root);
        _exit(5);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
    close(held[1]);
    CHECK(waitpid(root, &status, 0) == root && status == 0);
}

int main(void)
{
    memory();
    scheduling();
    signals();
    links();
    puts("EXIT-SUCCESS");
}
