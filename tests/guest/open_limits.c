/* openat2 with limits on where the path may lead, and what it refuses. */
#include "guest.h"
#include <linux/openat2.h>

static int limited(int dir, const char *path, unsigned long flags, unsigned long mode, unsigned long resolve)
{
    struct open_how how = {.flags = flags, .mode = mode, .resolve = resolve};
    return syscall(SYS_openat2, dir, path, &how, sizeof how);
}

static int holds(int fd, const char *text)
{
    char got[16] = "";
    int same = fd >= 0 && read(fd, got, sizeof got - 1) >= 0 && strcmp(got, text) == 0;
    close(fd);
    return same;
}

int main(void)
{
    CHECK(mkdir("top", 0755) == 0 && mkdir("top/sub", 0755) == 0);
    int fd = open("top/sub/file", O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0 && write(fd, "text", 4) == 4 && close(fd) == 0);
    CHECK(symlink("sub/file", "top/inside") == 0 && symlink("/sub/file", "top/absolute") == 0);
    CHECK(symlink("../top/sub/file", "top/outside") == 0 && symlink("gone", "top/dangling") == 0);
    int top = open("top", O_RDONLY | O_DIRECTORY);
    CHECK(top >= 0);
    CHECK(holds(limited(top, "sub/file", O_RDONLY, 0, 0), "text"));
    CHECK(holds(limited(top, "sub/../sub/file", O_RDONLY, 0, RESOLVE_BENEATH), "text"));
    CHECK(holds(limited(top, "inside", O_RDONLY, 0, RESOLVE_BENEATH), "text"));
    FAILS(limited(top, "outside", O_RDONLY, 0, RESOLVE_BENEATH), EXDEV);
    FAILS(limited(top, "absolute", O_RDONLY, 0, RESOLVE_BENEATH), EXDEV);
    FAILS(limited(top, "/sub/file", O_RDONLY, 0, RESOLVE_BENEATH), EXDEV);
    FAILS(limited(top, "..", O_RDONLY, 0, RESOLVE_BENEATH), EXDEV);
    CHECK(holds(limited(top, "absolute", O_RDONLY, 0, RESOLVE_IN_ROOT), "text"));
    CHECK(holds(limited(top, "/sub/file", O_RDONLY, 0, RESOLVE_IN_ROOT), "text"));
    CHECK(holds(limited(top, "../../sub/file", O_RDONLY, 0, RESOLVE_IN_ROOT), "text"));
    FAILS(limited(top, "inside", O_RDONLY, 0, RESOLVE_NO_SYMLINKS), ELOOP);
    FAILS(limited(top, "inside", O_RDONLY | O_NOFOLLOW, 0, RESOLVE_BENEATH), ELOOP);
    CHECK(holds(limited(top, "sub/file", O_RDONLY, 0, RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS), "text"));
    CHECK(holds(limited(top, "sub/file", O_RDONLY, 0, RESOLVE_NO_XDEV), "text"));
    FAILS(limited(AT_FDCWD, "/proc/version", O_RDONLY, 0, RESOLVE_NO_XDEV), EXDEV);
    FAILS(limited(AT_FDCWD, "/proc/self/fd/0", O_RDONLY, 0, RESOLVE_NO_MAGICLINKS), ELOOP);
    FAILS(limited(top, "sub/none", O_RDONLY, 0, RESOLVE_BENEATH), ENOENT);
    FAILS(limited(top, "sub", O_RDWR, 0, RESOLVE_BENEATH), EISDIR);
    FAILS(limited(top, "sub/file", O_RDONLY | O_DIRECTORY, 0, RESOLVE_BENEATH), ENOTDIR);

    CHECK((fd = limited(top, "sub/new", O_CREAT | O_EXCL | O_RDWR, 0666, RESOLVE_BENEATH)) >= 0);
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && (status.st_mode & 07777) == 0644 && write(fd, "n", 1) == 1 && close(fd) == 0);
    CHECK(holds(limited(top, "sub/new", O_CREAT | O_RDWR, 0600, RESOLVE_BENEATH), "n"));
    FAILS(limited(top, "sub/new", O_CREAT | O_EXCL | O_RDWR, 0600, RESOLVE_IN_ROOT), EEXIST);
    FAILS(limited(top, "../new", O_CREAT | O_RDWR, 0600, RESOLVE_BENEATH), EXDEV);
    CHECK((fd = limited(top, "/sub/rooted", O_CREAT | O_RDWR, 0600, RESOLVE_IN_ROOT)) >= 0 && close(fd) == 0);
    CHECK(access("top/sub/rooted", F_OK) == 0);
    CHECK((fd = limited(top, "sub/new", O_WRONLY | O_TRUNC, 0, RESOLVE_BENEATH)) >= 0);
    CHECK(fstat(fd, &status) == 0 && status.st_size == 0 && close(fd) == 0);
    CHECK((fd = limited(top, "inside", O_PATH | O_NOFOLLOW, 0, RESOLVE_BENEATH)) >= 0);
    CHECK(fstat(fd, &status) == 0 && S_ISLNK(status.st_mode) && close(fd) == 0);

    FAILS(limited(top, "sub", O_RDONLY, 0, 1 << 20), EINVAL);
    FAILS(limited(top, "sub", O_RDONLY, 0, RESOLVE_BENEATH | RESOLVE_IN_ROOT), EINVAL);
    FAILS(limited(top, "sub", O_RDONLY, 0644, RESOLVE_BENEATH), EINVAL);
    FAILS(limited(99, "sub", O_RDONLY, 0, RESOLVE_BENEATH), EBADF);
    FAILS(limited(top, "sub/new", O_CREAT | O_RDWR, 0600, RESOLVE_CACHED), EAGAIN);
    struct { struct open_how how; unsigned long more; } long_how = {.how = {.flags = O_RDONLY}, .more = 0};
    CHECK((fd = syscall(SYS_openat2, top, "sub", &long_how, sizeof long_how)) >= 0 && close(fd) == 0);
    long_how.more = 1;
    FAILS(syscall(SYS_openat2, top, "sub", &long_how, sizeof long_how), E2BIG);
    FAILS(syscall(SYS_openat2, top, "sub", &long_how, 8UL), EINVAL);
    puts("EXIT-SUCCESS");
    return 0;
}
