/* What moves a file's times, their order, explicit times, and that make's view of newer and older holds. */
#include "guest.h"
#include <sys/uio.h>
#include <sys/xattr.h>

static int64_t mtime(const char *path)
{
    struct stat status;
    CHECK(lstat(path, &status) == 0);
    return status.st_mtim.tv_sec * SECOND + status.st_mtim.tv_nsec;
}

static int64_t changed(const char *path)
{
    struct stat status;
    CHECK(lstat(path, &status) == 0);
    return status.st_ctim.tv_sec * SECOND + status.st_ctim.tv_nsec;
}

/* The action moves the path's mtime forward (by at least a kernel tick, hence the pause). */
#define MOVES(path, action)            \
    do {                               \
        int64_t was = mtime(path);     \
        sleep_ms(12);                  \
        CHECK(action);                 \
        CHECK(mtime(path) > was);      \
    } while (0)
#define KEEPS(path, action)            \
    do {                               \
        int64_t was = mtime(path);     \
        sleep_ms(12);                  \
        CHECK(action);                 \
        CHECK(mtime(path) == was);     \
    } while (0)

static void contents(int fd)
{
    struct iovec part = {"v", 1};
    MOVES("file", write(fd, "abc", 3) == 3);
    MOVES("file", pwrite(fd, "d", 1, 0) == 1);
    MOVES("file", writev(fd, &part, 1) == 1);
    MOVES("file", ftruncate(fd, 100) == 0);
    MOVES("file", truncate("file", 50) == 0);
    MOVES("file", close(open("file", O_WRONLY | O_TRUNC)) == 0);
    MOVES("file", fallocate(fd, 0, 0, 4096) == 0);
    MOVES("file", utimensat(AT_FDCWD, "file", NULL, 0) == 0);
    char byte;
    KEEPS("file", pread(fd, &byte, 1, 0) == 1);
    KEEPS("file", chmod("file", 0640) == 0);
    KEEPS("file", close(open("file", O_RDWR)) == 0);
    KEEPS("file", pwrite(fd, "", 0, 0) == 0);
    int64_t was = changed("file");
    sleep_ms(12);
    CHECK(chmod("file", 0600) == 0 && changed("file") > was);
    was = mtime("file");
    sleep_ms(12);
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    map[0] = 'm';
    CHECK(msync(map, 4096, MS_SYNC) == 0 && munmap(map, 4096) == 0);
    CHECK(mtime("file") > was);
}

static void directories(void)
{
    CHECK(mkdir("dir", 0755) == 0);
    MOVES("dir", close(open("dir/a", O_CREAT | O_WRONLY, 0644)) == 0);
    MOVES("dir", link("dir/a", "dir/b") == 0);
    MOVES("dir", rename("dir/b", "dir/c") == 0);
    MOVES("dir", symlink("a", "dir/s") == 0);
    MOVES("dir", mkdir("dir/sub", 0755) == 0);
    MOVES("dir", rmdir("dir/sub") == 0);
    MOVES("dir", unlink("dir/c") == 0);
    MOVES("dir", mkfifo("dir/fifo", 0600) == 0);
    KEEPS("dir/a", rename("dir/a", "dir/renamed") == 0 && rename("dir/renamed", "dir/a") == 0);
    KEEPS("dir", chmod("dir/a", 0600) == 0);
    KEEPS("dir", close(open("dir/a", O_CREAT | O_WRONLY, 0644)) == 0);
}

static void explicit(void)
{
    struct timespec times[2] = {{1, 2}, {1000000000, 123456789}};
    CHECK(utimensat(AT_FDCWD, "file", times, 0) == 0);
    CHECK(mtime("file") == 1000000000LL * SECOND + 123456789);
    times[1].tv_nsec = UTIME_OMIT;
    CHECK(utimensat(AT_FDCWD, "file", times, 0) == 0 && mtime("file") == 1000000000LL * SECOND + 123456789);
    CHECK(symlink("file", "symlink") == 0);
    times[1] = (struct timespec){77, 7};
    CHECK(utimensat(AT_FDCWD, "symlink", times, AT_SYMLINK_NOFOLLOW) == 0);
    CHECK(mtime("symlink") == 77 * SECOND + 7 && mtime("file") != 77 * SECOND + 7);
    struct stat status;
    CHECK(stat("file", &status) == 0 && status.st_atim.tv_sec == 1);
    struct statx extended;
    CHECK(statx(AT_FDCWD, "file", 0, STATX_ALL, &extended) == 0);
    CHECK(extended.stx_mtime.tv_sec == 1000000000 && extended.stx_mtime.tv_nsec == 123456789);
}

static void order(void)
{
    char name[16];
    int64_t last = 0;
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "n%d", i);
        int fd = open(name, O_CREAT | O_WRONLY, 0644);
        CHECK(write(fd, name, 1) == 1 && close(fd) == 0);
        CHECK(mtime(name) >= last);
        last = mtime(name);
        note("%lld %lld\n", (long long)last, (long long)changed(name));
    }
    CHECK(last <= clock_ns(CLOCK_REALTIME));
    CHECK(setxattr("n0", "user.note", "kept", 4, 0) == 0 || errno == EOPNOTSUPP);
}

int main(void)
{
    int fd = open("file", O_CREAT | O_RDWR, 0644);
    CHECK(fd >= 0);
    contents(fd);
    directories();
    explicit();
    order();
    return done();
}
