/* Identity of files: (device, inode) names one file, hard links count, unlinked files live, numbers are not reused. */
#include "guest.h"
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

int main(void)
{
    links();
    reuse();
    others();
    return done();
}
