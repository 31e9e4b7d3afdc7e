/* Every road to random bytes gives seeded ones: getrandom, the devices by any name, AT_RANDOM, /proc, rdrand's flag. */
#include "guest.h"
#include <cpuid.h>
#include <dirent.h>
#include <sys/auxv.h>
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

int main(void)
{
    unsigned char bytes[300], other[300];
    CHECK(getrandom(bytes, sizeof bytes, 0) == sizeof bytes && getrandom(other, sizeof other, 0) == sizeof other);
    CHECK(memcmp(bytes, other, sizeof bytes) != 0);
    show("getrandom", bytes, 16);
    CHECK(getentropy(bytes, 16) == 0 && getrandom(bytes, 16, GRND_NONBLOCK) == 16);
    FAILS(getrandom(bytes, 16, 0x100), EINVAL);
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
