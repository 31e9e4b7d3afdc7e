/* Every road to random bytes gives seeded ones: getrandom, the devices by any name, AT_RANDOM, /proc, rdrand's flag. */
#include "guest.h"
#include <cpuid.h>
#include <dirent.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>

static void show(const char *name, const unsigned char *bytes, size_t n)
{
    note("%s ", name);
    for (size_t i = 0; i < n; i++)
        note("%02x", bytes[i]);
    note("\n");
}

static void by_name(const char *path)
{
    unsigned char bytes[8];
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && read(fd, bytes, sizeof bytes) == sizeof bytes);
    show(path, bytes, sizeof bytes);
    close(fd);
}

/* As much as can be written is; but nothing where the range as a whole is no user's.  Not by the C library's function: newer ones
 * have random bytes without a call where the kernel serves them, and die of a fault. */
static void up_to_a_fault(void)
{
    unsigned char *two = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(two != MAP_FAILED && mprotect(two + 4096, 4096, PROT_NONE) == 0);
    CHECK(syscall(SYS_getrandom, two + 4000, 1000, 0) == 96 && syscall(SYS_getrandom, two, 3 << 20, 0) == 4096);
    FAILS(syscall(SYS_getrandom, two + 4096, 1, 0), EFAULT);
    int fd = open("/dev/urandom", O_RDONLY);
    CHECK(read(fd, two + 4000, 1000) == 96);
    FAILS(read(fd, two + 4096, 1), EFAULT);
    close(fd);
    memset(two, 0, 4096);
    FAILS(syscall(SYS_getrandom, (void *)(0x7ffffffff000 - 4096), 1 << 20, 0), EFAULT);
    CHECK(syscall(SYS_getrandom, two, 0, 0) == 0 && two[0] == 0);
}

int main(void)
{
    unsigned char bytes[300], other[300];
    CHECK(getrandom(bytes, sizeof bytes, 0) == sizeof bytes && getrandom(other, sizeof other, 0) == sizeof other);
    CHECK(memcmp(bytes, other, sizeof bytes) != 0);
    show("getrandom", bytes, 16);
    CHECK(getentropy(bytes, 16) == 0 && getrandom(bytes, 16, GRND_NONBLOCK) == 16);
    FAILS(getrandom(bytes, 16, 0x100), EINVAL);
    up_to_a_fault();
    by_name("/dev/urandom");
    by_name("/dev/../dev/random");
    CHECK(symlink("/dev/urandom", "alias") == 0);
    by_name("alias");
    int fd = open("/dev/urandom", O_RDONLY);
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    by_name(self);
    snprintf(self, sizeof self, "/dev/fd/%d", fd);
    by_name(self);
    CHECK(chdir("/dev") == 0);
    by_name("urandom");
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(read(fd, bytes, 8) == 8);
        show("child", bytes, 8);
        _exit(0);
    }
    reap(pid, 0);
    CHECK(read(fd, other, 8) == 8 && memcmp(bytes, other, 8) != 0);
    show("parent", other, 8);
    show("AT_RANDOM", (void *)getauxval(AT_RANDOM), 16);
    char uuid[64] = "", boot[64] = "", again[64] = "";
    fd = open("/proc/sys/kernel/random/uuid", O_RDONLY);
    CHECK(read(fd, uuid, 63) == 37);
    fd = open("/proc/sys/kernel/random/uuid", O_RDONLY);
    CHECK(read(fd, again, 63) == 37 && strcmp(uuid, again) != 0);
    fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY);
    CHECK(read(fd, boot, 63) == 37);
    note("%s%s%s", uuid, again, boot);
    return done();
}
