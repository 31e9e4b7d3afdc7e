/* Order of 1,000 entries, telldir and seekdir, small buffers, names of 255 bytes and of any bytes, changes while reading. */
#include "guest.h"
#include <dirent.h>

static void make(const char *name)
{
    int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
    CHECK(fd >= 0 && close(fd) == 0);
}

static int list(int print)
{
    DIR *dir = opendir(".");
    struct dirent *entry;
    int count = 0;
    while ((entry = readdir(dir))) {
        if (print)
            for (unsigned char *c = (void *)entry->d_name; *c; c++)
                note(*c > 32 && *c < 127 ? "%c" : "\\%o", *c);
        if (print)
            note(" %d%s", entry->d_type, count % 10 == 9 ? "\n" : " ");
        count++;
    }
    note("%d\n", count);
    closedir(dir);
    return count;
}

static void seek(void)
{
    DIR *dir = opendir(".");
    long places[1100];
    char names[1100][16];
    int n = 0;
    struct dirent *entry;
    for (places[0] = telldir(dir); (entry = readdir(dir)); places[++n] = telldir(dir))
        snprintf(names[n], sizeof names[n], "%.15s", entry->d_name);
    for (int i = n - 1; i > 0; i -= 97) {
        seekdir(dir, places[i]);
        entry = readdir(dir);
        CHECK(entry && strncmp(entry->d_name, names[i], 15) == 0);
    }
    rewinddir(dir);
    entry = readdir(dir);
    CHECK(entry && strncmp(entry->d_name, names[0], 15) == 0);
    closedir(dir);
}

struct entry64 {
    uint64_t ino;
    int64_t off;
    unsigned short reclen;
    unsigned char type;
    char name[];
};

static void chunks(void)
{
    char small[64], large[65536];
    int fd = open(".", O_RDONLY | O_DIRECTORY), count = 0, other = 0;
    long n;
    while ((n = syscall(SYS_getdents64, fd, small, sizeof small)) > 0)
        for (long at = 0; at < n; at += ((struct entry64 *)(small + at))->reclen)
            count++;
    CHECK(n == 0 && lseek(fd, 0, SEEK_SET) == 0);
    while ((n = syscall(SYS_getdents64, fd, large, sizeof large)) > 0)
        for (long at = 0; at < n; at += ((struct entry64 *)(large + at))->reclen)
            other++;
    CHECK(count == other);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    FAILS(syscall(SYS_getdents64, fd, small, 16), EINVAL);
    close(fd);
}

static void unlink_while_reading(void)
{
    DIR *dir = opendir(".");
    struct dirent *entry;
    int removed = 0;
    while ((entry = readdir(dir)))
        if (entry->d_name[0] == 'f') {
            CHECK(unlink(entry->d_name) == 0);
            removed++;
        }
    closedir(dir);
    CHECK(removed == 1000); /* each name exactly once, although the directory shrinks */
}

static void strange_names(void)
{
    char longest[257];
    memset(longest, 'L', 256);
    longest[256] = 0;
    FAILS(open(longest, O_CREAT | O_WRONLY, 0600), ENAMETOOLONG);
    longest[255] = 0;
    make(longest);
    char byte[2] = "";
    for (int c = 1; c < 256; c++)
        if (c != '/' && c != '.') {
            byte[0] = (char)c;
            make(byte);
        }
    make("\xff\xfe not utf-8 \x80");
    make("new\nline");
    CHECK(mkdir("directory", 0700) == 0 && symlink("nowhere", "symlink") == 0 && mkfifo("fifo", 0600) == 0);
    CHECK(list(1) == 261);
}

int main(void)
{
    char name[16];
    CHECK(mkdir("here", 0755) == 0 && chdir("here") == 0);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "f%d", i * 7919 % 1000);
        make(name);
    }
    CHECK(list(1) == 1002);
    seek();
    chunks();
    unlink_while_reading();
    strange_names();
    return done();
}
