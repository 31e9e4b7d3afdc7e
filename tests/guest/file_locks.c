/* flock, POSIX record locks and OFD locks between processes: conflicts, blocking, ranges, EDEADLK, release at exit. */
#include "guest.h"
#include <sys/file.h>

static struct flock range(short type, off_t from, off_t length)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = from, .l_len = length};
}

static int file(void)
{
    int fd = open("locked", O_CREAT | O_RDWR, 0600);
    CHECK(fd >= 0);
    return fd;
}

/* Another process: takes the lock, says so, holds it for 30 ms. */
static pid_t holder(int command, int use_flock)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        int fd = file();
        struct flock lock = range(F_WRLCK, 0, 10);
        CHECK((use_flock ? flock(fd, LOCK_EX) : fcntl(fd, command, &lock)) == 0);
        CHECK(write(ends[1], "x", 1) == 1);
        sleep_ms(30);
        _exit(0); /* the exit releases it */
    }
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1);
    close(ends[0]);
    close(ends[1]);
    return pid;
}

static void whole(void)
{
    int a = file(), b = file();
    CHECK(flock(a, LOCK_SH) == 0 && flock(b, LOCK_SH) == 0);
    FAILS(flock(a, LOCK_EX | LOCK_NB), EAGAIN);
    CHECK(flock(b, LOCK_UN) == 0 && flock(a, LOCK_EX | LOCK_NB) == 0);
    close(a);
    pid_t pid = holder(0, 1);
    FAILS(flock(b, LOCK_EX | LOCK_NB), EAGAIN);
    CHECK(flock(b, LOCK_EX) == 0);
    close(b);
    reap(pid, 0);
}

static void records(void)
{
    int fd = file();
    pid_t pid = holder(F_SETLK, 0);
    struct flock lock = range(F_WRLCK, 5, 1);
    FAILS(fcntl(fd, F_SETLK, &lock), EAGAIN);
    CHECK(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == pid && lock.l_len == 10);
    lock = range(F_WRLCK, 10, 5);
    CHECK(fcntl(fd, F_SETLK, &lock) == 0); /* beside it */
    lock = range(F_RDLCK, 0, 0);
    CHECK(fcntl(fd, F_SETLKW, &lock) == 0);
    reap(pid, 0);
    close(file()); /* closing any descriptor of the file drops the process's locks */
    pid = holder(F_SETLK, 0);
    reap(pid, 0);
    close(fd);
}

static void open_file_descriptions(void)
{
    int a = file(), b = file();
    struct flock lock = range(F_WRLCK, 0, 4);
    CHECK(fcntl(a, F_OFD_SETLK, &lock) == 0);
    FAILS(fcntl(b, F_OFD_SETLK, &lock), EAGAIN);
    struct flock other = range(F_WRLCK, 0, 4);
    CHECK(fcntl(b, F_OFD_GETLK, &other) == 0 && other.l_pid == -1);
    close(a);
    lock.l_pid = 0;
    CHECK(fcntl(b, F_OFD_SETLK, &lock) == 0);
    close(b);
    pid_t pid = holder(F_OFD_SETLK, 0);
    b = file();
    CHECK(fcntl(b, F_OFD_SETLKW, &lock) == 0);
    reap(pid, 0);
    close(b);
}

/* A file of the image has other numbers in stat than in the kernel's table of locks. */
static void in_the_image(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    struct flock lock = range(F_WRLCK, 0, 0);
    pid_t pid = fork();
    if (pid == 0) {
        int mine = open("/etc/passwd", O_RDWR);
        CHECK(mine >= 0 && fcntl(mine, F_SETLKW, &lock) == 0);
        CHECK(write(ends[1], "x", 1) == 1);
        sleep_ms(30);
        _exit(0);
    }
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1);
    int other = open("/etc/passwd", O_RDWR);
    CHECK(other >= 0 && fcntl(other, F_SETLKW, &lock) == 0);
    reap(pid, 0);
    close(other);
}

static void deadlock(void)
{
    int fd = file(), ends[2];
    CHECK(pipe(ends) == 0);
    struct flock first = range(F_WRLCK, 0, 1), second = range(F_WRLCK, 1, 1);
    CHECK(fcntl(fd, F_SETLK, &first) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(fcntl(fd, F_SETLK, &second) == 0);
        CHECK(write(ends[1], "x", 1) == 1);
        CHECK(fcntl(fd, F_SETLKW, &first) == 0); /* waits for the parent */
        _exit(0);
    }
    char byte;
    CHECK(read(ends[0], &byte, 1) == 1);
    sleep_ms(30);
    FAILS(fcntl(fd, F_SETLKW, &second), EDEADLK);
    first.l_type = F_UNLCK;
    CHECK(fcntl(fd, F_SETLK, &first) == 0);
    reap(pid, 0);
    close(fd);
}

/* Whether /proc/locks has a line that ends like this: a process, the file's device and number, and the range. */
static int listed(const char *kind, const char *range_text)
{
    char wanted[100], line[200];
    struct stat st;
    CHECK(stat("locked", &st) == 0);
    snprintf(wanted, sizeof wanted, ":%lu %s\n", (unsigned long)st.st_ino, range_text);
    FILE *list = fopen("/proc/locks", "r");
    CHECK(list);
    int found = 0;
    while (fgets(line, sizeof line, list)) {
        size_t length = strlen(line), tail = strlen(wanted);
        found += strstr(line, kind) && length > tail && strcmp(line + length - tail, wanted) == 0;
    }
    fclose(list);
    return found;
}

static void listing(void)
{
    int fd = file();
    struct flock lock = range(F_WRLCK, 3, 10);
    char mine[60];
    CHECK(flock(fd, LOCK_SH) == 0 && fcntl(fd, F_SETLK, &lock) == 0);
    snprintf(mine, sizeof mine, "POSIX  ADVISORY  WRITE %d ", getpid());
    CHECK(listed(mine, "3 12") == 1);
    snprintf(mine, sizeof mine, "FLOCK  ADVISORY  READ %d ", getpid());
    CHECK(listed(mine, "0 EOF") == 1);
    close(fd);
    CHECK(listed("ADVISORY", "0 EOF") == 0 && listed("ADVISORY", "3 12") == 0);
}

int main(void)
{
    whole();
    listing();
    records();
    open_file_descriptions();
    if (access("/etc/passwd", W_OK) == 0)
        in_the_image();
    deadlock();
    unlink("locked");
    return done();
}
