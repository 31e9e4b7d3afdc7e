/* What a guest may not have: each attempt fails cleanly, with the errno that makes programs fall back. */
#include "guest.h"
#include <arpa/inet.h>
#include <grp.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <linux/perf_event.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/sysmacros.h>

static int answer(long result)
{
    return result == -1 ? errno : 0;
}

/* The error of each call, or 0 where it worked. */
static void attempts(void)
{
    struct perf_event_attr event = {.type = PERF_TYPE_HARDWARE, .size = sizeof event};
    char space[256] = "";
    CHECK(answer(syscall(100000)) == ENOSYS);
    CHECK(answer(syscall(337)) == ENOSYS); /* a number between those in use */
    CHECK(answer(syscall(0x40000000 + 39)) == ENOSYS); /* the x32 getpid */
    CHECK(answer(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0)) != 0);
    CHECK(answer(syscall(SYS_bpf, 0, space, sizeof space)) != 0);
    CHECK(answer(syscall(SYS_io_uring_setup, 4, space)) != 0);
    CHECK(answer(syscall(SYS_userfaultfd, 0)) != 0);
    CHECK(answer(syscall(SYS_init_module, space, 0, "")) != 0);
    CHECK(answer(syscall(SYS_finit_module, 0, "", 0)) != 0);
    CHECK(answer(syscall(SYS_delete_module, "none", 0)) != 0);
    CHECK(answer(syscall(SYS_add_key, "user", "a", "b", 1, -2)) != 0);
    CHECK(answer(syscall(SYS_keyctl, 0, -3, 1)) != 0);
    CHECK(answer(syscall(SYS_syslog, 3, space, sizeof space)) != 0);
    CHECK(answer(syscall(SYS_kexec_load, 0, 0, NULL, 0)) != 0);
    CHECK(answer(syscall(SYS_reboot, 0, 0, 0, NULL)) != 0);
    CHECK(answer(syscall(SYS_swapon, "/dev/null", 0)) != 0);
    CHECK(answer(syscall(SYS_iopl, 3)) != 0);
    CHECK(answer(syscall(SYS_fanotify_init, 0, 0)) != 0);
    CHECK(answer(syscall(SYS_open_by_handle_at, 3, space, 0)) != 0);
    CHECK(answer(mount("none", "/mnt", "tmpfs", 0, NULL)) != 0);
    /* A device can be made, but not be opened unless it is harmless. */
    CHECK(mknod("disk", S_IFBLK | 0600, makedev(254, 0)) == 0 && answer(open("disk", O_RDONLY)) == ENXIO);
    CHECK(mknod("mem", S_IFCHR | 0600, makedev(1, 1)) == 0 && answer(open("mem", O_RDWR | O_CREAT, 0600)) == ENXIO);
}

/* The kernel's vDSO shows the host's clock: neither the one that a program starts with is there, nor another one. */
static void clock_of_the_host(void)
{
    for (int code = 0x2001; code <= 0x2003; code++) /* ARCH_MAP_VDSO_X32, _32, _64 */
        CHECK(answer(syscall(SYS_arch_prctl, code, 0x10000000L)) == EINVAL);
    char line[256];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        CHECK(!strstr(line, "[v"));
    CHECK(maps && fclose(maps) == 0);
}

/* What only some kernels have, or show of the processor. */
static void of_some_hosts(void)
{
    char space[1024];
    CHECK(answer(syscall(SYS_arch_prctl, 0x1021, space)) == EINVAL); /* ARCH_GET_XCOMP_SUPP */
    CHECK(answer(syscall(SYS_arch_prctl, 0x1022, space)) == EINVAL);
    CHECK(answer(prctl(0x41555856, space, sizeof space, 0, 0)) == EINVAL); /* PR_GET_AUXV */
    CHECK(answer(prctl(65, 0, 0, 0, 0)) == EINVAL && answer(prctl(68, 0, 0, 0, 0)) == EINVAL);
    CHECK(answer(prctl(59, 1, space, sizeof space, NULL)) == EINVAL); /* PR_SET_SYSCALL_USER_DISPATCH */
    CHECK(answer(prctl(0x53564d41, 0, space, 4096, "name")) == EINVAL); /* PR_SET_VMA */
    CHECK(answer(prctl(0x59616d61, -1, 0, 0, 0)) == EINVAL);            /* PR_SET_PTRACER */
}

static void tracing(void)
{
    /* Of the guest's own any process may be traced (debugging.c), but nobody outside, and by nobody there. */
    CHECK(answer(ptrace(PTRACE_TRACEME, 0, NULL, NULL)) == EPERM);
    CHECK(answer(ptrace(PTRACE_ATTACH, 1, NULL, NULL)) == EPERM);
    CHECK(answer(ptrace(PTRACE_SEIZE, 1, NULL, NULL)) == EPERM);
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    CHECK(answer(ptrace(PTRACE_POKEDATA, pid, &pid, NULL)) == ESRCH);
    CHECK(answer(ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACESECCOMP)) == EIO);
    CHECK(answer(ptrace(PTRACE_SEIZE, pid, NULL, NULL)) == 0);
    CHECK(answer(ptrace(PTRACE_SINGLEBLOCK, pid, NULL, NULL)) == ESRCH);
    CHECK(answer(ptrace(PTRACE_INTERRUPT, pid, NULL, NULL)) == 0);
    CHECK(waitpid(pid, NULL, 0) == pid);
    CHECK(answer(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACESECCOMP)) == EINVAL);
    CHECK(answer(ptrace(PTRACE_SINGLEBLOCK, pid, NULL, NULL)) == EIO);
    kill(pid, SIGKILL);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
}

/* The 32-bit entry: getpid is 20 there.  Refused by ENOSYS, or by a signal. */
static void old_entry(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        int result = 20;
        __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
        _exit(result == -ENOSYS ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    note("int 0x80 %x\n", status);
    CHECK(status == 0 || WIFSIGNALED(status));
}

/* A run's own limit, as a whole machine's would depend on what others have. */
static void terminals(void)
{
    struct rlimit files = {2048, 2048};
    int count = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &files) == 0);
    while (open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0)
        count++;
    CHECK(errno == ENOSPC && count == 1024);
    closefrom(3);
}

/* Libraries of their own for names want one to be listed; a question to it is refused at once, and not waited for. */
static void a_name_server(void)
{
    FILE *file = fopen("/etc/resolv.conf", "r");
    char address[64];
    CHECK(file && fscanf(file, "nameserver %63s", address) == 1 && fclose(file) == 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53)};
    CHECK(inet_pton(AF_INET, address, &to.sin_addr) == 1);
    int asks = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(connect(asks, (struct sockaddr *)&to, sizeof to) == 0 && send(asks, "?", 1, 0) == 1);
    FAILS(recv(asks, address, sizeof address, 0), ECONNREFUSED);
    close(asks);
}

/* Huge pages are there if the host's administrator has set some aside, and who may have them depends on who asks. */
static void huge_pages(void)
{
    const size_t huge = 2 << 20;
    const int kinds[] = {MAP_PRIVATE, MAP_SHARED, MAP_PRIVATE | 21 << 26, MAP_PRIVATE | MAP_NORESERVE};
    for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
        FAILS((intptr_t)mmap(NULL, huge, PROT_READ, kinds[i] | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0), ENOMEM);
    FAILS((intptr_t)mmap(NULL, huge, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | 5 << 26, -1, 0), EINVAL);
    FAILS(memfd_create("huge", MFD_HUGETLB), ENODEV);
    FAILS(memfd_create("huge", MFD_HUGETLB | 21 << 26), ENODEV);
    FAILS(memfd_create("unknown", MFD_HUGETLB | 0x20), EINVAL);
    FAILS(memfd_create("unknown", ~0U), EINVAL);
    FAILS(shmget(IPC_PRIVATE, huge, IPC_CREAT | SHM_HUGETLB | 0600), ENOMEM);
    FAILS(shmget(IPC_PRIVATE, 0, IPC_CREAT | SHM_HUGETLB | 0600), EINVAL);
    FAILS(shmget(0x4321, huge, SHM_HUGETLB | 0600), ENOENT);
    FAILS(shmget(0x4321, huge, IPC_CREAT | SHM_HUGETLB | 0600), ENOMEM);
    int id = shmget(0x4321, 4096, IPC_CREAT | 0600);
    CHECK(id >= 0 && shmget(0x4321, 4096, IPC_CREAT | SHM_HUGETLB | 0600) == id);
    FAILS(shmget(0x4321, 4096, IPC_CREAT | IPC_EXCL | SHM_HUGETLB | 0600), EEXIST);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(setgroups(0, NULL) == 0 && setgid(1000) == 0 && setuid(1000) == 0);
        FAILS(shmget(IPC_PRIVATE, huge, IPC_CREAT | SHM_HUGETLB | 0600), EPERM);
        _exit(0);
    }
    reap(pid, 0);
}

int main(void)
{
    CHECK(getpid() == 2); /* a container's first process: on the bare machine root would succeed */
    attempts();
    clock_of_the_host();
    of_some_hosts();
    tracing();
    old_entry();
    terminals();
    a_name_server();
    huge_pages();
    return done();
}
