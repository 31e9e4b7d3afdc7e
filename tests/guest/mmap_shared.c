/* Memory shared between processes by file and by descriptor, msync, remapping, protection, memfd seals. */
#include "guest.h"
#include <sys/shm.h>
#include <setjmp.h>

static sigjmp_buf jump;

static void on_fault(int number)
{
    siglongjmp(jump, number);
}

static int fault_of(volatile char *address, int write_too)
{
    on_signal(SIGSEGV, on_fault, SA_NODEFER);
    on_signal(SIGBUS, on_fault, SA_NODEFER);
    int number = sigsetjmp(jump, 1);
    if (number == 0) {
        char byte = *address;
        if (write_too)
            *address = byte;
    }
    return number;
}

static void by_file(void)
{
    int fd = open("mapped", O_CREAT | O_RDWR, 0600);
    CHECK(ftruncate(fd, 8192) == 0);
    char *map = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    pid_t pid = fork();
    if (pid == 0) {
        strcpy(map + 100, "from the child");
        _exit(0);
    }
    reap(pid, 0);
    char text[32] = "";
    CHECK(pread(fd, text, 14, 100) == 14 && strcmp(text, "from the child") == 0);
    CHECK(pwrite(fd, "F", 1, 100) == 1 && map[100] == 'F');
    CHECK(msync(map, 8192, MS_SYNC) == 0 && msync(map, 8192, MS_ASYNC) == 0);
    CHECK(fault_of(map + 12000, 0) == SIGBUS); /* past the end of the file */
    char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    private[100] = 'P';
    CHECK(map[100] == 'F');
    CHECK(mprotect(private, 4096, PROT_READ) == 0 && fault_of(private, 0) == 0 && fault_of(private, 1) == SIGSEGV);
    CHECK(fault_of((char *)64, 0) == SIGSEGV);
    char *moved = mremap(map, 16384, 32768, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved[100] == 'F');
    CHECK(munmap(moved, 32768) == 0 && fault_of(moved, 0) == SIGSEGV);
    unsigned char resident[2];
    CHECK(mincore(private, 8192, resident) == 0);
    close(fd);
    unlink("mapped");
}

static void by_descriptor(void)
{
    int fd = memfd_create("shared", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    _Atomic int *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (int i = 0; i < 4; i++)
        if (fork() == 0) {
            for (int k = 0; k < 1000; k++)
                words[0]++;
            _exit(0);
        }
    for (int i = 0; i < 4; i++)
        CHECK(wait(NULL) > 0);
    CHECK(words[0] == 4000);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == 0);
    FAILS(ftruncate(fd, 8192), EPERM);
    int *private = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (pid == 0) {
        private[0] = 1;
        _exit(0);
    }
    reap(pid, 0);
    CHECK(private[0] == 0 && madvise(private, 4096, MADV_DONTNEED) == 0);
}

/* Where large mappings come: some file systems align them for huge pages. */
static void large_places(void)
{
    enum { size = 5 << 20, aligned = 4 << 20 };
    int fd = open("large", O_CREAT | O_RDWR, 0600);
    CHECK(ftruncate(fd, size) == 0 && pwrite(fd, "second", 7, 4096) == 7);
    for (int shared = 0; shared < 2; shared++)
        for (int i = 0; i < 3; i++) {
            int prot = i == 0 ? PROT_READ : i == 1 ? PROT_READ | PROT_WRITE : PROT_READ | PROT_EXEC;
            char *all = mmap(NULL, size, prot, shared ? MAP_SHARED : MAP_PRIVATE, fd, 0);
            char *part = mmap(NULL, aligned, prot, shared ? MAP_SHARED : MAP_PRIVATE, fd, 4096);
            CHECK(all != MAP_FAILED && part != MAP_FAILED && strcmp(all + 4096, "second") == 0);
            CHECK(strcmp(part, "second") == 0 && mprotect(all + size - 4096, 4096, PROT_READ) == 0);
            note("large %p %p\n", (void *)all, (void *)part);
        }
    char *other = mmap(NULL, aligned, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(munmap(other, aligned) == 0);
    CHECK(mmap(other, size, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == other && strcmp(other + 4096, "second") == 0);
    FAILS(mmap(NULL, size, PROT_READ, MAP_PRIVATE, 1000, 0) == MAP_FAILED ? -1 : 0, EBADF);
    for (int i = 0; i < 8; i++) {
        int kind = i & 1 ? MAP_SHARED : MAP_PRIVATE, first = i & 2 ? 4096 : size - 8192;
        int how = i & 4 ? MREMAP_MAYMOVE | MREMAP_DONTUNMAP : MREMAP_MAYMOVE;
        if (how & MREMAP_DONTUNMAP)
            first = size - 4096;
        char *old = mmap(NULL, first, PROT_READ | PROT_WRITE, kind, fd, 4096);
        char *wall = mmap(old + first, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(old != MAP_FAILED && wall != MAP_FAILED && strcmp(old, "second") == 0);
        old[100] = 'x';
        char *moved = mremap(old, first, size - 4096, how, NULL);
        CHECK(moved != MAP_FAILED && moved != old && strcmp(moved, "second") == 0 && moved[100] == 'x');
        char *again = mremap(moved, size - 4096, 2 * size, MREMAP_MAYMOVE);
        CHECK(again != MAP_FAILED && strcmp(again, "second") == 0 && again[100] == 'x');
        char *smaller = mremap(again, 2 * size, size - 4096, MREMAP_MAYMOVE);
        CHECK(smaller == again && munmap(wall, 4096) == 0);
        FAILS(mremap(smaller, size - 4096, 0x7fffffff0000, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0, ENOMEM);
        note("moved %p %p %p\n", (void *)old, (void *)moved, (void *)again);
    }
    char *nearly = mmap(NULL, (2 << 20) - 100, PROT_READ, MAP_PRIVATE, fd, 0);
    char *shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int id = shmget(IPC_PRIVATE, size, 0600);
    char *segment = shmat(id, NULL, 0), *twice = shmat(id, NULL, SHM_RDONLY);
    CHECK(nearly != MAP_FAILED && strcmp(nearly + 4096, "second") == 0 && shared != MAP_FAILED);
    CHECK(id >= 0 && segment != (void *)-1 && twice != (void *)-1);
    segment[size - 1] = shared[size - 1] = 'z';
    CHECK(twice[size - 1] == 'z' && shmdt(segment) == 0 && shmctl(id, IPC_RMID, NULL) == 0 && twice[size - 1] == 'z');
    note("nearly %p, shared %p, segments %p %p\n", (void *)nearly, (void *)shared, (void *)segment, (void *)twice);
    char *copy = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK((copy = mremap(copy, 0, size, MREMAP_MAYMOVE)) != MAP_FAILED && strcmp(copy + 4096, "second") == 0);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory[1] = 'y';
    CHECK((memory = mremap(memory, size, 4 * size, MREMAP_MAYMOVE)) != MAP_FAILED && memory[1] == 'y');
    note("copy %p, memory %p\n", (void *)copy, (void *)memory);
    /* What is wanted in the first 2 GiB lies there, whoever chooses the place. */
    for (int i = 0; i < 3; i++) {
        char *low = mmap(NULL, size, PROT_READ, (i == 1 ? MAP_PRIVATE : MAP_SHARED) | MAP_32BIT, fd, 0);
        char *low_shared = mmap(NULL, aligned, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
        CHECK(low != MAP_FAILED && low + size <= (char *)(1L << 31) && strcmp(low + 4096, "second") == 0);
        CHECK(low_shared != MAP_FAILED && low_shared + aligned <= (char *)(1L << 31) && low_shared[1] == 0);
        note("low %p %p\n", (void *)low, (void *)low_shared);
    }
    close(fd);
    unlink("large");
}

static int in_data;

int main(void)
{
    int on_stack;
    void *heap = malloc(100), *large = malloc(1 << 20);
    note("layout %p %p %p %p %p %p\n", (void *)main, (void *)&in_data, (void *)&on_stack, heap, large, (void *)printf);
    note("break %p\n", sbrk(0));
    by_file();
    by_descriptor();
    large_places();
    return done();
}
