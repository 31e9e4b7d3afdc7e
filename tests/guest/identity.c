/* User and group ids, ownership and privileges as the guest sees them; as root it may change them. */
#include "guest.h"
#include <grp.h>
#include <pwd.h>
#include <sys/personality.h>
#include <sys/fsuid.h>
#include <sys/utsname.h>

static void as_root(void)
{
    struct stat status;
    close(open("owned", O_CREAT | O_WRONLY, 0644));
    CHECK(chown("owned", 1234, 4321) == 0);
    CHECK(stat("owned", &status) == 0 && status.st_uid == 1234 && status.st_gid == 4321);
    CHECK(lchown("owned", (uid_t)-1, 5) == 0 && stat("owned", &status) == 0 && status.st_uid == 1234 && status.st_gid == 5);
    CHECK(chmod("owned", 04755) == 0 && chown("owned", 0, 0) == 0);
    CHECK(stat("owned", &status) == 0 && (status.st_mode & 07777) == 0755); /* chown drops set-uid */
    pid_t pid = fork();
    if (pid == 0) {
        gid_t groups[2] = {7, 8}, got[8];
        CHECK(setgroups(2, groups) == 0 && getgroups(8, got) == 2 && got[1] == 8);
        CHECK(setresgid(1000, 1000, 1000) == 0 && setresuid(1000, 1001, 0) == 0);
        uid_t r, e, s;
        CHECK(getresuid(&r, &e, &s) == 0 && r == 1000 && e == 1001 && s == 0);
        CHECK(setfsuid(1000) == 1001);
        CHECK(seteuid(0) == 0 && setuid(1000) == 0 && getuid() == 1000 && geteuid() == 1000);
        FAILS(setuid(0), EPERM);
        FAILS(setgroups(0, NULL), EPERM);
        _exit(0);
    }
    reap(pid, 0);
}

static void *waits(void *pipe_end)
{
    char byte;
    CHECK(read((int)(intptr_t)pipe_end, &byte, 1) == 0);
    return NULL;
}

/* A call that gives rights is made in each thread by the library, and judged by the rights from before. */
static void with_threads(void)
{
    pthread_t thread;
    int ends[2];
    pid_t pid = fork();
    if (pid == 0) {
        uid_t r, e, s;
        CHECK(pipe(ends) == 0 && pthread_create(&thread, NULL, waits, (void *)(intptr_t)ends[0]) == 0);
        CHECK(setresuid(1000, 1000, -1) == 0 && setuid(0) == 0);
        CHECK(getresuid(&r, &e, &s) == 0 && r == 1000 && e == 0 && s == 0);
        CHECK(setuid(0) == 0);
        CHECK(getresuid(&r, &e, &s) == 0 && r == 0 && e == 0 && s == 0);
        CHECK(close(ends[1]) == 0 && pthread_join(thread, NULL) == 0);
        _exit(0);
    }
    reap(pid, 0);
}

static void old_release(void)
{
    struct utsname before, after;
    unsigned int minor, shown;
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(uname(&before) == 0 && sscanf(before.release, "%*u.%u", &minor) == 1);
        CHECK(personality(UNAME26) == 0 && uname(&after) == 0);
        CHECK(sscanf(after.release, "2.6.%u", &shown) == 1 && shown == minor + 60);
        _exit(0);
    }
    reap(pid, 0);
}

int main(void)
{
    old_release();
    struct utsname name;
    struct passwd *me = getpwuid(getuid());
    CHECK(uname(&name) == 0);
    note("%s %s %s %s %s\n", name.sysname, name.nodename, name.release, name.version, name.machine);
    note("uid %d %d gid %d %d\n", getuid(), geteuid(), getgid(), getegid());
    note("name %s home %s shell %s\n", me ? me->pw_name : "-", me ? me->pw_dir : "-", me ? me->pw_shell : "-");
    note("pid %d ppid %d pgrp %d session %d\n", getpid(), getppid(), getpgrp(), getsid(0));
    gid_t groups[64];
    int n = getgroups(64, groups);
    for (int i = 0; i < n; i++)
        note("group %d\n", groups[i]);
    for (char **variable = environ; *variable; variable++)
        note("%s\n", *variable);
    if (getuid() == 0) {
        as_root();
        with_threads();
    }
    return done();
}
