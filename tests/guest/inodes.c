/* Identity of files: (device, inode) names one file, hard links count, unlinked files live, numbers are not reused,
 * and stay the same however many others there are meanwhile. */
#include "guest.h"
#include <sys/socket.h>
#include <sys/statvfs.h>

static struct stat of(const char *path)
{
    struct stat status;
    CHECK(lstat(path, &status) == 0);
    return status;
}

static int same(struct stat a, struct stat b)
{
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static int make(const char *path)
{
    int fd = open(path, O_CREAT | O_EXCL | O_RDWR, 0644);
    CHECK(fd >= 0);
    return fd;
}

static void links(void)
{
    int fd = make("one");
    CHECK(link("one", "two") == 0 && of("one").st_nlink == 2 && same(of("one"), of("two")));
    FAILS(link("one", "two"), EEXIST);
    CHECK(symlink("one", "symbolic") == 0 && S_ISLNK(of("symbolic").st_mode) && of("symbolic").st_size == 3);
    struct stat held, before = of("one");
    CHECK(rename("one", "three") == 0 && same(before, of("three")));
    CHECK(unlink("two") == 0 && of("three").st_nlink == 1);
    CHECK(unlink("three") == 0 && fstat(fd, &held) == 0 && held.st_nlink == 0 && same(before, held));
    CHECK(write(fd, "still", 5) == 5);
    char text[8] = "";
    CHECK(pread(fd, text, 8, 0) == 5);
    int other = make("fresh");
    struct stat fresh;
    CHECK(fstat(other, &fresh) == 0 && !same(fresh, held)); /* while the old one is still open */
    CHECK(mkdir("d", 0755) == 0 && mkdir("d/e", 0755) == 0 && mkdir("d/f", 0755) == 0);
    CHECK(same(of("d/e/.."), of("d")) && same(of("d/."), of("d")) && !same(of("d"), of(".")));
    note("links of d: %lu, size %lld\n", (unsigned long)of("d").st_nlink, (long long)of("d").st_size);
    note("inode %llu device %llu\n", (unsigned long long)of("fresh").st_ino, (unsigned long long)of("fresh").st_dev);
    note("blocks %lld of %ld\n", (long long)of("fresh").st_blocks, (long)of("fresh").st_blksize);
    close(fd);
    close(other);
}

static void reuse(void)
{
    char seen_name[16];
    ino_t numbers[50];
    for (int i = 0; i < 50; i++) {
        snprintf(seen_name, sizeof seen_name, "r%d", i);
        close(make(seen_name));
        numbers[i] = of(seen_name).st_ino;
        for (int k = 0; k < i; k++)
            CHECK(numbers[k] != numbers[i]);
    }
    CHECK(unlink("r49") == 0);
    close(make("again"));
    for (int k = 0; k < 49; k++)
        CHECK(of("again").st_ino != numbers[k]);
    note("again %lld\n", (long long)(of("again").st_ino - numbers[0]));
}

static void others(void)
{
    struct stat root = of("/"), up = of("/.."), proc = of("/proc"), null = of("/dev/null");
    CHECK(same(root, up) && root.st_dev != proc.st_dev);
    CHECK(S_ISCHR(null.st_mode) && null.st_rdev == 0x103);
    int ends[2];
    struct stat a, b;
    CHECK(pipe(ends) == 0 && fstat(ends[0], &a) == 0 && fstat(ends[1], &b) == 0 && same(a, b) && S_ISFIFO(a.st_mode));
    note("pipe %llu null %llu root %llu\n", (unsigned long long)a.st_ino, (unsigned long long)null.st_ino,
         (unsigned long long)root.st_ino);
    struct statvfs about;
    CHECK(statvfs(".", &about) == 0 && about.f_namemax == 255);
    note("statvfs %lu %llu %llu %llu\n", about.f_bsize, (unsigned long long)about.f_blocks,
         (unsigned long long)about.f_bfree, (unsigned long long)about.f_files);
}

static struct stat of_fd(int fd)
{
    struct stat status;
    CHECK(fstat(fd, &status) == 0);
    return status;
}

static void pass_by(int count) /* nameless files that nobody has open for long */
{
    for (int ends[2]; count-- > 0; close(ends[0]), close(ends[1])) {
        CHECK(pipe(ends) == 0);
        of_fd(ends[0]);
    }
}

static struct msghdr one_descriptor(char *room, size_t size)
{
    static char byte;
    static struct iovec part = {&byte, 1};
    return (struct msghdr){.msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = size};
}

static void lasting(void)
{
    int ends[2], pair[2], sent[2];
    char room[CMSG_SPACE(sizeof(int))] = {0};
    CHECK(pipe(ends) == 0 && pipe(sent) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(mkdir("gone", 0755) == 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
    int file = make("../unlinked");
    CHECK(unlink("../unlinked") == 0);
    struct stat before[] = {of_fd(ends[0]), of_fd(pair[0]), of("."), of_fd(file), of_fd(sent[0])};
    pass_by(8400);
    CHECK(same(before[0], of_fd(ends[1])) && same(before[1], of_fd(pair[0])) && same(before[2], of(".")));
    CHECK(same(before[3], of_fd(file)) && same(before[4], of_fd(sent[0])));

    struct msghdr message = one_descriptor(room, sizeof room);
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), &sent[0], sizeof(int));
    CHECK(sendmsg(pair[0], &message, 0) == 1 && close(sent[0]) == 0 && close(sent[1]) == 0);
    pass_by(8400);
    message = one_descriptor(room, sizeof room);
    CHECK(recvmsg(pair[1], &message, 0) == 1);
    memcpy(&sent[0], CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
    CHECK(same(before[4], of_fd(sent[0])) && same(before[0], of_fd(ends[0])));
    note("last %llu\n", (unsigned long long)before[4].st_ino);
}

int main(void)
{
    links();
    reuse();
    others();
    lasting();
    return done();
}
