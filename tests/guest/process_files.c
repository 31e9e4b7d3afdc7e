/* What a program reads about itself in /proc and /sys; printed whole, since all of it must be the same every time. */
#include "guest.h"
#include <sys/wait.h>

static void show(const char *path, size_t limit)
{
    static char text[65536];
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        note("%s: errno %d\n", path, errno);
        return;
    }
    size_t length = 0;
    ssize_t n;
    while (length < limit && (n = read(fd, text + length, limit - length)) > 0)
        length += (size_t)n;
    close(fd);
    note("== %s %zu\n", path, length);
    fwrite(text, 1, length, stdout);
    fflush(stdout);
}

static void *waits(void *pipe)
{
    char byte;
    return read(*(int *)pipe, &byte, 1) == 1 ? pipe : NULL;
}

/* Sandboxes look there whether they have threads. */
static void threads_as_links(void)
{
    struct stat st;
    int ends[2], proc = open("/proc", O_PATH | O_DIRECTORY);
    pthread_t threads[2];
    CHECK(fstatat(proc, "self/task/", &st, 0) == 0 && st.st_nlink == 3 && pipe(ends) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, waits, ends) == 0);
    CHECK(stat("/proc/thread-self/../../task", &st) == 0 && st.st_nlink == 5 && write(ends[1], "ab", 2) == 2);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    close(proc);
}

/* The letter behind "State:", read at the file's beginning. */
static char state_in(int fd, int placed)
{
    char text[2048];
    CHECK(placed || lseek(fd, 0, SEEK_SET) == 0);
    ssize_t n = placed ? pread(fd, text, sizeof text - 1, 0) : read(fd, text, sizeof text - 1);
    CHECK(n > 0);
    text[n > 0 ? n : 0] = 0;
    const char *found = strstr(text, "State:\t");
    CHECK(found != NULL);
    return found ? found[7] : 0;
}

/* A file that stays open tells what there is when it is read from its beginning, the first time, too. */
static void read_again(void)
{
    int status;
    char path[64], byte;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        raise(SIGSTOP);
        for (;;)
            pause();
    }
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    int fd = open(path, O_RDONLY), other = open(path, O_RDONLY);
    CHECK(fd >= 0 && other >= 0);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    usleep(1000);
    CHECK(state_in(fd, 0) == 'T' && state_in(other, 1) == 'T');
    CHECK(kill(pid, SIGCONT) == 0 && waitpid(pid, &status, WCONTINUED) == pid);
    usleep(1000);
    CHECK(state_in(fd, 1) == 'S' && state_in(other, 0) == 'S');
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, &status, 0) == pid && lseek(fd, 0, SEEK_SET) == 0);
    FAILS(read(fd, &byte, 1), ESRCH);
    FAILS(pread(other, &byte, 1, 0), ESRCH);
    close(fd);
    close(other);
}

int main(void)
{
    threads_as_links();
    read_again();
    static const char *paths[] = {
        "/proc/self/stat", "/proc/self/status", "/proc/self/maps", "/proc/self/limits", "/proc/self/cgroup",
        "/proc/self/mountinfo", "/proc/self/cmdline", "/proc/self/environ", "/proc/self/io", "/proc/self/statm",
        "/proc/self/sched", "/proc/self/smaps_rollup", "/proc/self/comm", "/proc/self/auxv", "/proc/self/loginuid",
        "/proc/self/oom_score", "/proc/self/uid_map", "/proc/self/wchan", "/proc/self/fdinfo/0", "/proc/1/stat",
        "/proc/cpuinfo", "/proc/meminfo", "/proc/uptime", "/proc/loadavg", "/proc/stat", "/proc/version",
        "/proc/interrupts", "/proc/vmstat", "/proc/diskstats", "/proc/net/dev", "/proc/net/tcp", "/proc/cmdline",
        "/proc/filesystems", "/proc/mounts", "/proc/swaps", "/proc/modules", "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/osrelease", "/proc/sys/kernel/pid_max", "/proc/sys/fs/file-nr",
        "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/random/entropy_avail", "/proc/buildinfo",
        "/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible", "/sys/kernel/mm/transparent_hugepage/enabled",
        "/sys/class/net/lo/address", "/sys/class/dmi/id/product_name", "/sys/fs/cgroup/memory.max",
        "/etc/hostname", "/etc/machine-id", "/etc/mtab", "/etc/resolv.conf",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        show(paths[i], 8192);
    char target[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", target, sizeof target);
    CHECK(n > 0);
    note("exe %.*s\n", (int)n, target);
    n = readlink("/proc/self", target, sizeof target);
    CHECK(n > 0 && atoi(target) == getpid());
    n = readlink("/proc/self/ns/pid", target, sizeof target);
    note("ns %.*s\n", n > 0 ? (int)n : 0, target);
    return done();
}
