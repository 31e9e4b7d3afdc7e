/* Sparse files, O_TMPFILE, linkat, renameat2, openat2, copy_file_range, sendfile, attributes, permissions, umask. */
#include "guest.h"
#include <linux/fs.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <sys/xattr.h>

static int make(const char *path, const char *text)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0644);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    return fd;
}

static void sparse(void)
{
    int fd = open("sparse", O_CREAT | O_RDWR, 0600);
    off_t far = 1LL << 33;
    CHECK(pwrite(fd, "end", 3, far) == 3);
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && status.st_size == far + 3);
    CHECK(lseek(fd, 0, SEEK_DATA) == far && lseek(fd, 0, SEEK_HOLE) == 0 && lseek(fd, far, SEEK_HOLE) == far + 3);
    FAILS(lseek(fd, far + 3, SEEK_DATA), ENXIO);
    CHECK(pwrite(fd, "begin", 5, 0) == 5 && lseek(fd, 0, SEEK_DATA) == 0 && lseek(fd, 0, SEEK_HOLE) == 4096);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0);
    CHECK(lseek(fd, 0, SEEK_DATA) == far);
    CHECK(ftruncate(fd, 10) == 0);
    close(fd);
}

/* Long reads of a device are not cut short, though somebody looks now and then at what takes so long. */
static void long_reads(void)
{
    enum { PART = 1 << 20, PARTS = 1024 };
    char *memory = malloc(PART);
    struct iovec parts[PARTS];
    int fd = open("/dev/zero", O_RDONLY);
    CHECK(memory && fd >= 0);
    memset(memory, 1, PART);
    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct iovec){memory, PART};
    alarm(1000);
    for (int i = 0; i < 2; i++) {
        CHECK(readv(fd, parts, PARTS) == (ssize_t)PART * PARTS);
        CHECK(preadv(fd, parts, PARTS, 0) == (ssize_t)PART * PARTS);
        CHECK(preadv2(fd, parts, PARTS, -1, 0) == (ssize_t)PART * PARTS);
    }
    alarm(0);
    close(fd);
    free(memory);
}

static void temporary(void)
{
    int fd = open(".", O_TMPFILE | O_RDWR, 0600);
    if (fd == -1 && errno == EOPNOTSUPP)
        return;
    CHECK(fd >= 0 && write(fd, "hidden", 6) == 6);
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    CHECK(linkat(AT_FDCWD, self, AT_FDCWD, "appeared", AT_SYMLINK_FOLLOW) == 0);
    struct stat status;
    CHECK(stat("appeared", &status) == 0 && status.st_size == 6 && status.st_nlink == 1);
    close(fd);
}

/* Removing and renaming mean a link itself, also with a slash at its end. */
static void last_components(void)
{
    struct stat status;
    CHECK(mkdir("real", 0755) == 0 && symlink("real", "to-real") == 0 && symlink("nowhere", "dangling") == 0);
    const char *links[] = {"to-real/", "dangling/", "loop/", "dangling//"};
    for (int i = 0; i < 4; i++) {
        FAILS(rmdir(links[i]), ENOTDIR);
        FAILS(unlink(links[i]), ENOTDIR);
        FAILS(rename(links[i], "moved"), ENOTDIR);
        FAILS(rename("real", links[i]), ENOTDIR);
    }
    FAILS(rmdir("missing/"), ENOENT);
    FAILS(unlink("real/"), EISDIR);
    FAILS(rmdir("/"), EBUSY);
    CHECK(rename("real/", "really/") == 0 && rmdir("really//") == 0 && lstat("to-real", &status) == 0);
    /* The mounts are looked at before the names. */
    FAILS(rename("missing", "/dev/shm/missing"), EXDEV);
}

static void renames(void)
{
    close(make("a", "A"));
    close(make("b", "BB"));
    struct stat status;
    CHECK(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0);
    CHECK(stat("a", &status) == 0 && status.st_size == 2 && stat("b", &status) == 0 && status.st_size == 1);
    FAILS(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE), EEXIST);
    CHECK(rename("a", "b") == 0);
    FAILS(rename("a", "c"), ENOENT);
    CHECK(mkdir("m", 0755) == 0);
    FAILS(rename("m", "m/inside"), EINVAL);
    FAILS(rename("b", "m"), EISDIR);
    close(make("m/x", "x"));
    FAILS(rmdir("m"), ENOTEMPTY);
    FAILS(open("b/under", O_RDONLY), ENOTDIR);
    CHECK(symlink("missing/", "slash") == 0 && symlink("slash", "behind") == 0);
    FAILS(open("slash", O_WRONLY | O_CREAT, 0600), EISDIR);
    FAILS(open("behind", O_WRONLY | O_CREAT, 0600), EISDIR);
    CHECK(symlink("loop", "loop") == 0);
    FAILS(open("loop", O_RDONLY), ELOOP);
    FAILS(open("loop", O_RDONLY | O_NOFOLLOW), ELOOP);
    FAILS(mkdir("b", 0755), EEXIST);
    last_components();
    struct open_how how = {.flags = O_RDONLY, .resolve = RESOLVE_BENEATH};
    FAILS(syscall(SYS_openat2, AT_FDCWD, "../..", &how, sizeof how), EXDEV);
}

static void copies(void)
{
    int from = make("from", "0123456789"), to = open("to", O_CREAT | O_RDWR, 0644);
    off_t at = 2;
    CHECK(copy_file_range(from, &at, to, NULL, 5, 0) == 5 && at == 7);
    CHECK(syscall(SYS_copy_file_range, from, NULL, to, NULL, 0, 1UL << 32) == 0); /* flags are 32 bits */
    at = 0;
    CHECK(sendfile(to, from, &at, 3) == 3 && at == 3);
    int ends[2];
    at = -1;
    CHECK(pipe(ends) == 0);
    FAILS(sendfile(ends[1], from, &at, 3), EINVAL);
    char text[16] = "";
    CHECK(pread(to, text, 15, 0) == 8 && strcmp(text, "23456012") == 0);
    int copy = dup3(to, 100, O_CLOEXEC);
    CHECK(copy == 100 && (fcntl(copy, F_GETFD) & FD_CLOEXEC) && lseek(copy, 0, SEEK_CUR) == 8);
    CHECK(fcntl(to, F_DUPFD, 50) == 50);
    CHECK(close_range(50, 100, 0) == 0);
    FAILS(fcntl(50, F_GETFD), EBADF);
    CHECK(symlink("nowhere", "leads-nowhere") == 0);
    FAILS(getxattr("leads-nowhere", "security.none", text, 15), ENOENT);
    CHECK(lgetxattr("leads-nowhere", "security.none", text, 15) == -1 && errno != ENOENT);
    CHECK(unlink("leads-nowhere") == 0);
    if (setxattr("to", "user.colour", "red", 3, 0) == 0) {
        CHECK(getxattr("to", "user.colour", text, 15) == 3 && memcmp(text, "red", 3) == 0);
        CHECK(listxattr("to", text, 15) == 12 && removexattr("to", "user.colour") == 0);
        FAILS(getxattr("to", "user.colour", text, 15), ENODATA);
    }
    close(from);
    close(to);
}

static void modes(void)
{
    struct stat status;
    umask(027);
    CHECK(umask(027) == 027);
    close(open("masked", O_CREAT | O_WRONLY, 0777));
    CHECK(stat("masked", &status) == 0 && (status.st_mode & 07777) == 0750);
    CHECK(chmod("masked", 04711) == 0 && stat("masked", &status) == 0 && (status.st_mode & 07777) == 04711);
    CHECK(access("masked", F_OK) == 0 && access("nothing", F_OK) == -1);
    CHECK(chdir("m") == 0);
    char path[PATH_MAX];
    CHECK(getcwd(path, sizeof path));
    note("%s\n", path);
    FAILS(open("/proc/self/mem/x", O_RDONLY), ENOTDIR);
}

/* What file systems and their caches answer differently. */
static void answers_of_hosts(void)
{
    char word[8] = "";
    struct iovec part = {word, 5};
    long long size = -1;
    int fd = open("answers", O_CREAT | O_RDWR, 0600), memory = memfd_create("memory", MFD_ALLOW_SEALING);
    CHECK(write(fd, "hello", 5) == 5 && fcntl(memory, F_GET_SEALS) == 0);
    note("seals %d\n", fcntl(fd, F_GET_SEALS));
    CHECK(ioctl(fd, FIOQSIZE, &size) == 0);
    note("occupied %lld\n", size);
    for (int flags = RWF_HIPRI; flags <= 0x80; flags <<= 1) {
        ssize_t got = preadv2(fd, &part, 1, 0, flags), put = pwritev2(fd, &part, 1, 0, flags);
        note("flags %x: %zd %zd\n", flags, got, put);
    }
    FAILS(preadv2(fd, &part, 1, 0, 1 << 30), EOPNOTSUPP);
    CHECK(preadv2(memory, &part, 1, 0, 0) == 0 && close(fd) == 0 && close(memory) == 0 && unlink("answers") == 0);
}

static volatile int signals, own;

static void too_large(int number, siginfo_t *info, void *context)
{
    (void)context;
    signals += number == SIGXFSZ;
    own += info->si_code == SI_USER && info->si_pid == getpid();
}

static void refused(long result)
{
    int error = errno;
    CHECK(result == -1 && error == EFBIG && signals == 1 && own == 1);
    signals = own = 0;
}

/* The limit of a file's size holds for every call that makes one larger: with a signal, if not a byte fits. */
static void size_limit(void)
{
    static char data[20000];
    struct sigaction action = {.sa_sigaction = too_large, .sa_flags = SA_SIGINFO};
    struct rlimit former, limit;
    struct stat status;
    int from = open("from", O_CREAT | O_RDWR, 0600), to = open("to", O_CREAT | O_RDWR, 0600), ends[2];
    CHECK(write(from, data, sizeof data) == sizeof data && pipe(ends) == 0);
    CHECK(sigaction(SIGXFSZ, &action, NULL) == 0 && getrlimit(RLIMIT_FSIZE, &former) == 0);
    limit = former;
    limit.rlim_cur = 5000;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(write(to, data, sizeof data) == 5000);
    refused(write(to, data, 1));
    refused(pwrite(to, data, 1, 5000));
    refused(ftruncate(to, 5001));
    refused(truncate("to", 5001));
    refused(fallocate(to, 0, 0, 5001));
    CHECK(truncate("to", 5000) == 0 && fallocate(to, 0, 4000, 1000) == 0);
    note("beyond the limit: %d\n", fallocate(to, FALLOC_FL_KEEP_SIZE, 0, 6000)); /* natively, tmpfs refuses it */
    CHECK(fstat(to, &status) == 0 && status.st_size == 5000);
    signals = own = 0;
    CHECK(ftruncate(to, 0) == 0 && lseek(to, 0, SEEK_SET) == 0 && lseek(from, 0, SEEK_SET) == 0);
    CHECK(copy_file_range(from, NULL, to, NULL, sizeof data, 0) == 5000 && signals == 0);
    refused(copy_file_range(from, NULL, to, NULL, sizeof data, 0));
    CHECK(ftruncate(to, 0) == 0 && lseek(to, 0, SEEK_SET) == 0);
    CHECK(write(ends[1], data, sizeof data) == sizeof data);
    CHECK(splice(ends[0], NULL, to, NULL, sizeof data, 0) == 5000);
    signals = own = 0;
    refused(splice(ends[0], NULL, to, NULL, sizeof data, 0));
    CHECK(read(ends[0], data, sizeof data) == sizeof data - 5000);
    CHECK(setrlimit(RLIMIT_FSIZE, &former) == 0 && truncate("to", 6000) == 0);
    close(from), close(to), close(ends[0]), close(ends[1]);
    CHECK(unlink("from") == 0 && unlink("to") == 0);
}

int main(void)
{
    sparse();
    long_reads();
    temporary();
    renames();
    copies();
    size_limit();
    modes();
    answers_of_hosts();
    return done();
}
