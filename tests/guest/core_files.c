/* What a process leaves that a signal ends: a core file, if it may, and what its parent is told. */
#include "guest.h"
#include <elf.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/procfs.h>
#include <sys/syscall.h>

#define THREADS 3
#define PAGE 4096
#define WHOLE RLIM_INFINITY

static volatile sig_atomic_t told;
static pthread_barrier_t all_here;
static char *private_memory, *shared_memory, *hidden_memory, *untouched_memory;
static volatile uint64_t mark = 0x1122334455667788;
static const char *name;

/* -- the processes that end ----------------------------------------------------------------- */

static void limit(rlim_t bytes)
{
    struct rlimit limits;
    CHECK(getrlimit(RLIMIT_CORE, &limits) == 0);
    limits.rlim_cur = bytes;
    CHECK(setrlimit(RLIMIT_CORE, &limits) == 0);
}

static void fault(void)
{
    *(volatile int *)16 = 1;
}

static void *waits_for_ever(void *unused)
{
    pthread_barrier_wait(&all_here);
    for (;;) pause();
    return unused;
}

static void *faults(void *unused)
{
    pthread_barrier_wait(&all_here);
    usleep(20000);
    fault();
    return unused;
}

static void in_a_thread(void)
{
    pthread_barrier_init(&all_here, NULL, THREADS);
    start(waits_for_ever, NULL);
    start(waits_for_ever, NULL);
    join(start(faults, NULL));
}

static void divides(void)
{
    volatile int zero = 0;
    zero = 7 / zero;
}

static void traps(void) { __builtin_trap(); }
static void quits(void) { raise(SIGQUIT); }
static void waits(void) { for (;;) pause(); }
static void killed(void) { raise(SIGKILL); }
static void terminated(void) { raise(SIGTERM); }
static void of_its_time(void) { kill(getpid(), SIGXCPU); }

static void without_a_limit(void) { limit(0); fault(); }
static void too_little(void) { limit(4095); fault(); }
static void a_part(void) { limit(5 * PAGE); fault(); }

static void in_a_file_too_large(void)
{
    struct rlimit limits = {3 * PAGE + 100, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_FSIZE, &limits) == 0);
    fault();
}

static void not_dumpable(void)
{
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0 && prctl(PR_GET_DUMPABLE) == 0);
    fault();
}

static void of_another_user(void)
{
    if (geteuid() == 0) {
        CHECK(setgid(1234) == 0 && setuid(1234) == 0);
        CHECK(prctl(PR_GET_DUMPABLE) == 0);
    } else {
        CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
    }
    fault();
}

static void of_a_child(void)
{
    CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(prctl(PR_GET_DUMPABLE) == 0);
        fault();
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && !WCOREDUMP(status));
    _exit(0);
}

static void of_a_vfork_child(void)
{
    pid_t pid = vfork();
    if (pid == 0) fault();
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGSEGV && WCOREDUMP(status));
    _exit(0);
}

static void handled(int signo)
{
    _exit(signo);
}

static void with_a_handler(void)
{
    on_signal(SIGSEGV, handled, 0);
    fault();
}

static void with_another_mask(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise(SIGUSR1);
    umask(0);
    abort();
}

static void with_little_in_it(void)
{
    int fd = open("/proc/self/coredump_filter", O_WRONLY);
    CHECK(fd >= 0 && write(fd, "0", 1) == 1);
    close(fd);
    fault();
}

static void over_a_link(void)
{
    int fd = open("other", O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && write(fd, "other", 5) == 5);
    CHECK(symlink("other", "core") == 0);
    fault();
}

static void over_a_directory(void)
{
    CHECK(mkdir("core", 0755) == 0);
    fault();
}

static void without_rights(void)
{
    umask(0200);
    fault();
}

static void by_a_filter(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {4, code};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
    getppid();
}

static void by_a_filter_with_a_handler(void)
{
    on_signal(SIGSYS, handled, 0);
    by_a_filter();
}

/* -- what they leave --------------------------------------------------------------------------- */

static struct {
    char *bytes;
    size_t size;
    const Elf64_Phdr *parts;
    int count;
} core;

static int there(void)
{
    struct stat st;
    CHECK(lstat("core", &st) == 0 || errno == ENOENT);
    if (lstat("core", &st) || !S_ISREG(st.st_mode)) return 0;
    CHECK(((st.st_mode | 0200) & 07777) == 0600 && st.st_nlink == 1 && st.st_uid == geteuid());
    int fd = open("core", O_RDONLY);
    CHECK(fd >= 0);
    core.size = st.st_size;
    core.bytes = mmap(NULL, core.size + 1, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(core.bytes != MAP_FAILED);
    close(fd);
    return 1;
}

static uint64_t sum(void)
{
    uint64_t value = 14695981039346656037UL;
    for (size_t at = 0; at < core.size; at++) value = (value ^ (unsigned char)core.bytes[at]) * 1099511628211UL;
    return value;
}

static void look_at_head(void)
{
    const Elf64_Ehdr *head = (const void *)core.bytes;
    CHECK(!memcmp(head->e_ident, "\177ELF\2\1\1", 7) && head->e_type == ET_CORE && head->e_machine == EM_X86_64);
    CHECK(head->e_phoff == sizeof *head && head->e_phentsize == sizeof(Elf64_Phdr) && !head->e_shnum);
    core.parts = (const void *)(core.bytes + head->e_phoff);
    core.count = head->e_phnum;
    CHECK(core.parts[0].p_type == PT_NOTE);
}

/* Where an address is in the file, NULL if it is not. */
static const char *memory(const volatile void *address)
{
    uint64_t at = (uint64_t)address;
    for (int i = 1; i < core.count; i++) {
        const Elf64_Phdr *part = &core.parts[i];
        CHECK(part->p_type == PT_LOAD && part->p_offset % PAGE == 0 && part->p_filesz <= part->p_memsz);
        if (part->p_vaddr <= at && at < part->p_vaddr + part->p_memsz)
            return at < part->p_vaddr + part->p_filesz ? core.bytes + part->p_offset + (at - part->p_vaddr) : NULL;
    }
    CHECK(!"mapped");
    return NULL;
}

/* The number of threads; checks of all notes that the signal is told, and the process. */
static int look_at_notes(pid_t pid, int signo)
{
    const char *at = core.bytes + core.parts[0].p_offset, *end = at + core.parts[0].p_filesz;
    int threads = 0, infos = 0, vectors = 0, files = 0, fp = 0;
    while (at < end) {
        const Elf64_Nhdr *note = (const void *)at;
        const char *who = at + sizeof *note, *what = who + (note->n_namesz + 3) / 4 * 4;
        at = what + (note->n_descsz + 3) / 4 * 4;
        CHECK(!strcmp(who, note->n_type >> 8 == 2 ? "LINUX" : "CORE"));
        if (note->n_type == NT_PRSTATUS) {
            struct elf_prstatus status;
            CHECK(note->n_descsz == sizeof status);
            memcpy(&status, what, sizeof status);
            CHECK(status.pr_cursig == signo && status.pr_info.si_signo == signo && status.pr_fpvalid == 1);
            CHECK(status.pr_ppid == getpid() && status.pr_pgrp == getpgrp() && status.pr_sid == getsid(0));
            CHECK(status.pr_reg[17] == 0x33);
            CHECK(threads++ || (status.pr_sighold & ~(1ul << (SIGUSR1 - 1))) == 0);
        } else if (note->n_type == NT_PRPSINFO) {
            struct elf_prpsinfo info;
            CHECK(note->n_descsz == sizeof info && threads == 1);
            memcpy(&info, what, sizeof info);
            CHECK(info.pr_pid == pid && info.pr_ppid == getpid() && info.pr_uid == getuid());
            CHECK(!strncmp(info.pr_psargs, name, strlen(name)) && info.pr_psargs[strlen(name)] == ' ');
            CHECK(!strncmp(strrchr(name, '/') + 1, info.pr_fname, 15));
        } else if (note->n_type == NT_SIGINFO) {
            infos += ((const siginfo_t *)what)->si_signo == signo;
        } else if (note->n_type == NT_AUXV) {
            const Elf64_auxv_t *vector = (const void *)what;
            while (vector->a_type != AT_NULL) vectors += vector++->a_type == AT_ENTRY;
        } else if (note->n_type == NT_FILE) {
            const uint64_t *words = (const void *)what;
            const char *path = (const char *)(words + 2 + 3 * words[0]);
            CHECK(words[1] == PAGE);
            for (uint64_t i = 0; i < words[0]; i++) {
                files += words[2 + 3 * i + 2] == 0 && strstr(path, strrchr(name, '/')) != NULL;
                path += strlen(path) + 1;
            }
        } else if (note->n_type == NT_FPREGSET) {
            fp++;
        }
    }
    CHECK(at == end && infos == 1 && vectors == 1 && files == 1 && fp == threads);
    return threads;
}

static void look_at_memory(int little)
{
    CHECK(!memory(untouched_memory) && !memory(hidden_memory) && !memory((void *)look_at_memory));
    if (little) {
        CHECK(!memory(&mark) && !memory(private_memory) && !memory(shared_memory));
        return;
    }
    CHECK(*(uint64_t *)memory(&mark) == mark);
    CHECK(!memcmp(memory(private_memory), "private", 8) && !memcmp(memory(shared_memory), "shared", 7));
    for (int i = 0; i < PAGE; i++) CHECK(memory(private_memory)[PAGE + i] == 0);
    extern const char __executable_start[];
    CHECK(!memcmp(memory(__executable_start), "\177ELF", 4) && !memory(__executable_start + PAGE));
}

/* -- one after the other ------------------------------------------------------------------------- */

static void on_child(int signo, siginfo_t *info, void *context)
{
    (void)signo, (void)context;
    told = info->si_code;
}

enum { NONE, CUT, LITTLE, FULL };

static void try(const char *directory, void (*end)(void), int signo, int left, int threads)
{
    CHECK(mkdir(directory, 0777) == 0 && chmod(directory, 0777) == 0 && chdir(directory) == 0);
    told = 0;
    pid_t pid = fork();
    if (pid == 0) {
        limit(WHOLE);
        end();
        _exit(0);
    }
    if (end == waits) {
        sleep_ms(20);
        CHECK(kill(pid, signo) == 0);
    }
    siginfo_t info;
    int status;
    while (waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == -1) CHECK(errno == EINTR);
    CHECK(waitpid(pid, &status, 0) == pid);
    if (signo) {
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == signo && !WCOREDUMP(status) == (left == NONE));
        CHECK(info.si_code == (left == NONE ? CLD_KILLED : CLD_DUMPED) && info.si_status == signo);
        CHECK(told == info.si_code);
    } else {
        CHECK(WIFEXITED(status) && info.si_code == CLD_EXITED);
    }
    int found = there();
    CHECK(found == (left != NONE || end == of_a_vfork_child || end == without_rights));
    note("%s %d %d", directory, signo, WCOREDUMP(status) != 0);
    if (left != NONE) {
        look_at_head();
        if (left >= LITTLE) {
            CHECK(look_at_notes(pid, signo) == threads);
            look_at_memory(left == LITTLE);
            CHECK(core.size == core.parts[core.count - 1].p_offset + core.parts[core.count - 1].p_filesz);
        }
        note(" %zu %016lx", core.size, sum());
    }
    if (found) CHECK(munmap(core.bytes, core.size + 1) == 0);
    note("\n");
    CHECK(chdir("..") == 0);
}

static int patterns_are_plain(void)
{
    char text[8] = "";
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text) > 0);
    close(fd);
    return !strcmp(text, "core\n");
}

int main(int argc, char **argv)
{
    (void)argc;
    name = argv[0];
    struct rlimit limits;
    CHECK(getrlimit(RLIMIT_CORE, &limits) == 0);
    if (!patterns_are_plain() || limits.rlim_max != RLIM_INFINITY) return done();  /* of a host */
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
    for (int signo = 1; signo < SIGSYS; signo++)
        if (signo != SIGCHLD) signal(signo, SIG_DFL);
    private_memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared_memory = shared_page(PAGE);
    hidden_memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    untouched_memory = mmap(NULL, 1 << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(private_memory != MAP_FAILED && hidden_memory != MAP_FAILED && untouched_memory != MAP_FAILED);
    strcpy(private_memory, "private");
    strcpy(shared_memory, "shared");
    strcpy(hidden_memory, "hidden");
    CHECK(mprotect(private_memory, PAGE, PROT_NONE) == 0);
    CHECK(madvise(hidden_memory, PAGE, MADV_DONTDUMP) == 0);
    umask(022);

    try("thread", in_a_thread, SIGSEGV, FULL, THREADS + 1);
    try("fault", fault, SIGSEGV, FULL, 1);
    try("abort", with_another_mask, SIGABRT, FULL, 1);
    try("divide", divides, SIGFPE, FULL, 1);
    try("trap", traps, SIGILL, FULL, 1);
    try("quit", quits, SIGQUIT, FULL, 1);
    try("wait", waits, SIGBUS, FULL, 1);
    try("time", of_its_time, SIGXCPU, FULL, 1);
    try("kill", killed, SIGKILL, NONE, 0);
    try("term", terminated, SIGTERM, NONE, 0);
    try("zero", without_a_limit, SIGSEGV, NONE, 0);
    try("small", too_little, SIGSEGV, NONE, 0);
    try("part", a_part, SIGSEGV, CUT, 0);
    CHECK(core.size <= 64 * PAGE);
    try("long", in_a_file_too_large, SIGSEGV, CUT, 0);
    CHECK(core.size == 3 * PAGE + 100);
    try("closed", not_dumpable, SIGSEGV, NONE, 0);
    try("user", of_another_user, SIGSEGV, NONE, 0);
    try("child", of_a_child, 0, NONE, 0);
    try("vfork", of_a_vfork_child, 0, NONE, 0);
    try("handler", with_a_handler, 0, NONE, 0);
    try("little", with_little_in_it, SIGSEGV, LITTLE, 1);
    try("link", over_a_link, SIGSEGV, FULL, 1);
    struct stat st;
    CHECK(stat("link/other", &st) == 0 && st.st_size == 5);
    try("directory", over_a_directory, SIGSEGV, NONE, 0);
    try("rights", without_rights, SIGSEGV, NONE, 0);
    try("filter", by_a_filter, SIGSYS, FULL, 1);
    try("caught", by_a_filter_with_a_handler, SIGSYS, FULL, 1);
    return done();
}
