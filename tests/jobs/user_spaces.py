"""What an ordinary user does with user namespaces: everything that can be seen is printed.  Root starts it.

argv[1]: an empty directory.
"""

import ctypes
import errno
import os
import socket
import struct
import subprocess
import sys

TOP = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000


def ask(call, *args, **named):
    try:
        return call(*args, **named)
    except OSError as error:
        return errno.errorcode[error.errno]


def sys_call(name, *args):
    if getattr(LIBC, name)(*args) == -1:
        return errno.errorcode[ctypes.get_errno()]
    return "ok"


def unshare(flags):
    return sys_call("unshare", flags)


def put(name, text, of="self"):
    def write():
        fd = os.open(f"/proc/{of}/{name}", os.O_WRONLY)
        try:
            return os.write(fd, text.encode())
        finally:
            os.close(fd)

    return ask(write)


def get(name, of="self"):
    with open(f"/proc/{of}/{name}") as file:
        return file.read()


def status(of="self"):
    wanted = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")
    return [line.split() for line in get("status", of).splitlines() if line.split(":")[0] in wanted]


def look(what):
    print(what, os.getresuid(), os.getresgid(), os.getgroups(), status())
    print(" ", [get(name).split() for name in ("uid_map", "gid_map", "setgroups")])
    owners = []
    for name in (TOP, TOP + "/own", "/etc/passwd", "/proc/self", "/proc/self/fd", "/proc/sys/kernel", "/tmp"):
        found = os.stat(name)
        owners.append((found.st_uid, found.st_gid))
    print(" ", owners)


def caps():
    """The effective capabilities."""
    return next(line.split()[1] for line in get("status").splitlines() if line.startswith("CapEff"))


def child(body, *args):
    """Run it in a child, and print what it gives."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            body(*args)
        except BaseException as error:
            print("raised", type(error).__name__, error)
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)


class Held:
    """A child that has made namespaces and waits."""

    def __init__(self, flags, then=None):
        sys.stdout.flush()
        ready, self._end = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._end[1])
            unshare(flags)
            if then:
                then()
            sys.stdout.flush()
            os.write(ready[1], b"r")
            os.read(self._end[0], 1)
            os._exit(0)
        os.close(self._end[0])
        os.read(ready[0], 1)
        os.close(ready[0]), os.close(ready[1])

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        os.close(self._end[1])
        os.waitpid(self.pid, 0)


def as_root():
    return put("setgroups", "deny"), put("uid_map", f"0 {UID} 1"), put("gid_map", f"0 {GID} 1")


UID, GID = 1000, 1001


def prepare():
    """Make files of the user's and of root's, become that user, and begin again."""
    os.umask(0o022)
    for name, mode in (("shut", 0o700), ("mnt", 0o755), ("sticky", 0o1777), ("others-shut", 0o700)):
        os.mkdir(f"{TOP}/{name}")
        os.chmod(f"{TOP}/{name}", mode)
    for name in ("own", "others", "others-shut/x", "sticky/x"):
        with open(f"{TOP}/{name}", "w") as file:
            file.write(name + "\n")
        os.chmod(f"{TOP}/{name}", 0o600)
    for name in ("", "shut", "mnt", "own"):
        os.chown(f"{TOP}/{name}", UID, GID)
    os.setgroups([])
    os.setresgid(GID, GID, GID)
    os.setresuid(UID, UID, UID)
    os.chdir("/")
    # Until it executes a program, its directory in /proc belongs to root.
    os.execv(sys.executable, [sys.executable, *sys.argv])


def refused_outside():
    for flags in (NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET):
        print("unshare", hex(flags), unshare(flags))
    print(
        "host name",
        ask(socket.sethostname, "x"),
        "chroot",
        ask(os.chroot, TOP),
        "mount",
        sys_call("mount", b"t", TOP.encode(), b"tmpfs", 0, None),
    )
    for name in ("uid_map", "gid_map", "setgroups", "projid_map"):
        print("write", name, put(name, "0 0 1"))
    print("of others", put("uid_map", "0 0 1", 1), ask(os.open, "/proc/1/setgroups", os.O_WRONLY))
    print(get("uid_map").split(), get("gid_map").split(), get("setgroups").split())


def unmapped():
    print("unshare", unshare(NEWUSER))
    look("unmapped")
    for call, arguments in (
        (os.setuid, (0,)),
        (os.setuid, (UID,)),
        (os.setuid, (65534,)),
        (os.setgid, (0,)),
        (os.setgroups, ([],)),
        (os.setresuid, (-1, -1, -1)),
        (os.setreuid, (-1, 0)),
        (os.setgroups, ([0],)),
    ):
        print(call.__name__, arguments, ask(call, *arguments))
    with open(TOP + "/made", "w") as file:
        file.write("x")
    found = os.stat(TOP + "/made")
    print("made", found.st_uid, found.st_gid, ask(os.chown, TOP + "/made", 0, 0), ask(os.chown, TOP + "/made", -1, -1))
    print("again", unshare(NEWUSER))
    print("others", unshare(NEWNS | NEWUTS))
    print("host name", ask(socket.sethostname, "inside"))
    subprocess.run(["sh", "-c", "grep Cap[IPEA] /proc/self/status; id -u; hostname"], check=False)


def maps():
    print(unshare(NEWUSER))
    for text in (
        "0 0 1",
        f"0 {UID} 2",
        f"{UID} {UID} 0",
        "0 0",
        "x",
        "",
        "\n",
        f"0 {UID} 1\n0 {UID} 1",
        "-1 0 1",
        f"0 {UID} 1 2",
        f"4294967295 {UID} 1",
        f"1 {UID} 4294967295",
        f"0 {UID} 1\n\n",
    ):
        print("uid_map", repr(text), put("uid_map", text))
    print("one by one", end=" ")
    fd = os.open("/proc/self/uid_map", os.O_RDWR)
    print(
        ask(os.pwrite, fd, b"0 0 1", 5),
        ask(os.write, fd, b"0 0 1"),
        ask(os.write, fd, f" 7 {UID} 1\n".encode()),
        ask(os.write, fd, f"7 {UID} 1".encode()),
        os.lseek(fd, 0, os.SEEK_CUR),
    )
    os.close(fd)
    print("twice", put("uid_map", f"0 {UID} 1"))
    print("gid_map", put("gid_map", f"8 {GID} 1"))
    print(
        "setgroups",
        put("setgroups", "x"),
        put("setgroups", "allow"),
        put("setgroups", "deny\n"),
        put("setgroups", "allow"),
        put("setgroups", "deny x"),
        put("setgroups", "deny    "),
    )
    print("gid_map", put("gid_map", f"8 {GID + 1} 1"), put("gid_map", f"8 {GID} 1"))
    print("setgroups", put("setgroups", "deny"), put("setgroups", "allow"))
    look("as 7")
    print(
        "setuid",
        [ask(os.setuid, uid) for uid in (0, UID, 7)],
        "setgid",
        [ask(os.setgid, gid) for gid in (0, GID, 8)],
        "groups",
        ask(os.setgroups, []),
    )
    print(
        "chown", [ask(os.chown, TOP + "/own", uid, gid) for uid, gid in ((7, 8), (0, 0), (7, -1), (-1, 8), (UID, GID))]
    )
    print("chown of others", ask(os.chown, "/etc/passwd", 7, 8), ask(os.chmod, "/etc/passwd", 0o600))
    subprocess.run(["sh", "-c", "grep Cap[IPEA] /proc/self/status; id -u"], check=False)


def rooted():
    print("unshare", unshare(NEWUSER | NEWNS | NEWUTS | NEWIPC), as_root())
    look("root")
    os.chmod(TOP + "/shut", 0)
    os.chmod(TOP + "/own", 0)
    print(
        "own",
        ask(os.listdir, TOP + "/shut"),
        open(TOP + "/own").read(),
        os.access(TOP + "/own", os.R_OK | os.W_OK),
        os.access(TOP + "/own", os.X_OK),
        os.access("/etc/passwd", os.W_OK),
    )
    print(
        "others'",
        ask(os.open, TOP + "/others", os.O_RDONLY),
        ask(os.listdir, TOP + "/others-shut"),
        ask(os.chown, TOP + "/others", 0, 0),
        ask(os.utime, TOP + "/others"),
        ask(os.unlink, TOP + "/others-shut/x"),
        ask(os.rename, TOP + "/others", TOP + "/x"),
        ask(os.mkdir, "/etc/x"),
    )
    print("sticky", ask(os.unlink, TOP + "/sticky/x"), os.stat(TOP + "/sticky/x").st_uid)
    print("host name", ask(socket.sethostname, "inside"), socket.gethostname(), os.uname().nodename)
    print("chroot", ask(os.chroot, "/"))
    print("kill", ask(os.kill, os.getppid(), 0), ask(os.kill, 1, 0))
    print(
        "nice",
        ask(os.setpriority, os.PRIO_PROCESS, 0, -1),
        ask(os.setpriority, os.PRIO_USER, 0, 0),
        ask(os.getpriority, os.PRIO_USER, 5),
    )
    subprocess.run(
        [
            "sh",
            "-ec",
            f"""
        mount -t tmpfs -o mode=755 t {TOP}/mnt; echo x > {TOP}/mnt/y; chown 0:0 {TOP}/mnt/y
        stat -c %u:%g {TOP}/mnt {TOP}/mnt/y; chown 1:1 {TOP}/mnt/y || :
        mount -t tmpfs -o uid=5 t {TOP}/mnt/ 2>&1 | tail -1; umount {TOP}/mnt; ls {TOP}/mnt; id; hostname
        mount --bind /etc {TOP}/mnt; [ -e {TOP}/mnt/passwd ]; mount -o remount,bind,ro {TOP}/mnt
        mkdir {TOP}/mnt/x {TOP}/mnt/passwd || umount {TOP}/mnt
        """,
        ],
        check=False,
        stderr=subprocess.STDOUT,
    )
    os.setresuid(0, 0, 0)
    subprocess.run(
        [
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "sh",
            "-c",
            f"grep Cap[IPEA] /proc/self/status; cat {TOP}/own 2>&1; mount -t tmpfs t {TOP}/mnt 2>/dev/null; echo $?",
        ],
        check=False,
    )
    os.chmod(TOP + "/shut", 0o700)
    os.chmod(TOP + "/own", 0o600)


def mounting():
    """File systems of a namespace's own root."""
    print("unshare", unshare(NEWUSER | NEWNS), as_root())
    script = f"""
        mount -t sysfs s {TOP}/mnt 2> /dev/null || echo no network of its own
        unshare -n sh -ec 'mount -t sysfs s {TOP}/mnt; ls {TOP}/mnt/class/net; ! touch {TOP}/mnt/x 2> /dev/null'
        mount -t tmpfs t {TOP}/mnt; cd {TOP}/mnt; mkdir low up work all; echo low > low/a
        mount -t overlay o -o lowerdir=low,upperdir=up,workdir=work all
        stat -c '%n %u:%g' all all/a; echo x >> all/a; echo new > all/b; mkdir all/c; rm all/a; mv all/b all/c/d
        cat all/c/d; stat -c '%n %u:%g' all/c all/c/d work/work; chmod 700 work/work
        mknod null c 1 3 || mkfifo fifo; stat -c '%n %F %u:%g' fifo
    """
    subprocess.run(["unshare", "-m", "sh", "-ec", script], check=False, stderr=subprocess.STDOUT)


def nested():
    """Root in one, somebody else in the next: as bubblewrap does."""
    print("outer", unshare(NEWUSER | NEWNS), as_root())
    with open(TOP + "/inner", "w") as file:
        file.write("x")
    print("inner", unshare(NEWUSER))
    print(put("uid_map", f"{UID} {UID} 1"), put("uid_map", "5 0 1"), put("setgroups", "allow"), put("gid_map", "6 0 1"))
    look("inner")
    print(
        "mount",
        sys_call("mount", b"t", TOP.encode(), b"tmpfs", 0, None),
        "host name",
        ask(socket.sethostname, "x"),
        "unshare",
        unshare(NEWUTS),
        ask(socket.sethostname, "x"),
    )
    subprocess.run(
        [
            "sh",
            "-c",
            f"id -u; grep Cap[IPEA] /proc/self/status; stat -c %u:%g {TOP}/inner; chmod 600 {TOP}/inner && echo yes",
        ],
        check=False,
    )
    deep = []
    for _ in range(12):
        deep.append((unshare(NEWUSER), put("uid_map", f"5 {os.getuid() if not deep else 5} 1")))
    print("deep", deep)


def limited():
    """As bubblewrap keeps what it starts from making user namespaces."""
    limit = "/proc/sys/user/max_user_namespaces"
    print(ask(os.open, limit, os.O_WRONLY), unshare(NEWUSER), as_root())
    with open(limit) as file:
        print(file.read())
    for text in ("x", "-1", "1"):
        fd = os.open(limit, os.O_WRONLY)
        print(ask(os.write, fd, text.encode()), end=" ")
        os.close(fd)
    with open(limit) as file:
        print(file.read(), unshare(NEWUSER), put("uid_map", "0 0 1"), put("gid_map", "0 0 1"))
    print(unshare(NEWUSER), unshare(NEWUTS), subprocess.run(["cat", limit], capture_output=True).stdout)


def by_the_parent():
    with Held(NEWUSER) as held:
        print("of a child", status(held.pid)[:3], get("uid_map", held.pid).split(), get("setgroups", held.pid))
        print(
            put("uid_map", f"0 {UID} 1", held.pid),
            put("gid_map", f"0 {GID} 1", held.pid),
            put("setgroups", "deny", held.pid),
            put("gid_map", f"0 {GID} 1", held.pid),
            put("uid_map", f"1 {UID} 1", held.pid),
        )
        print("of a child", status(held.pid)[:3], get("uid_map", held.pid).split(), os.stat(f"/proc/{held.pid}").st_uid)
        child(join, held)
    with Held(NEWUSER | NEWUTS | NEWNS, lambda: (as_root(), socket.sethostname("theirs"))) as held:
        child(join, held)
        child(join_by_pidfd, held)
        child(join_too_little, held)
    with Held(NEWUSER, as_root) as held:
        child(write_from_inside, held)


def join(held):
    fds = [os.open(f"/proc/{held.pid}/ns/{name}", os.O_RDONLY) for name in ("user", "uts", "mnt")]
    print("setns", [sys_call("setns", fds[0], flags) for flags in (NEWUTS, 0)], sys_call("setns", fds[0], NEWUSER))
    look("joined")
    print("rest", [sys_call("setns", fd, 0) for fd in fds[1:]], socket.gethostname() == "theirs")
    subprocess.run(["id"], check=False)


def join_by_pidfd(held):
    fd = os.pidfd_open(held.pid)
    print("pidfd", sys_call("setns", fd, NEWUSER | NEWUTS), socket.gethostname(), os.getuid(), caps())


def join_too_little(held):
    fd = os.open(f"/proc/{held.pid}/ns/uts", os.O_RDONLY)
    print("without its users", sys_call("setns", fd, 0), unshare(NEWUSER), sys_call("setns", fd, 0))


def write_from_inside(held):
    """In a namespace of its own that is not the one written to, nor above it."""
    print(unshare(NEWUSER), ask(put, "uid_map", f"0 {UID} 1", held.pid))


def credentials():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    right.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    def sent(uid, gid):
        data = struct.pack("<iII", os.getpid(), uid, gid)
        return ask(left.sendmsg, [b"x"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, data)])

    def received():
        _, control, _, _ = right.recvmsg(1, 100)
        return struct.unpack("<iII", control[0][2])[1:]

    def inside():
        print(unshare(NEWUSER), as_root(), [sent(uid, gid) for uid, gid in ((0, 0), (UID, 0), (0, GID), (5, 5))])
        print(
            "inside", received(), struct.unpack("<iII", left.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:]
        )
        sent(0, 0), left.send(b"x")

    child(inside)
    print("outside", received(), received())


def signals():
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    parent = os.getpid()

    def inside():
        unshare(NEWUSER), as_root()
        os.kill(parent, signal.SIGUSR1)

    child(inside)
    print("outside", signal.sigwaitinfo([signal.SIGUSR1]).si_uid)

    def other():
        unshare(NEWUSER), put("setgroups", "deny"), put("uid_map", f"9 {UID} 1")
        os.kill(os.getpid(), signal.SIGUSR1)
        print("inside", signal.sigwaitinfo([signal.SIGUSR1]).si_uid)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        print("waited", os.waitid(os.P_PID, pid, os.WEXITED).si_uid)

    child(other)


def files_of_others():
    """What ids there are when only one is mapped."""
    unshare(NEWUSER), put("uid_map", f"0 {UID} 1")
    look("no groups")
    print([ask(os.chown, TOP + "/own", uid, gid) for uid, gid in ((0, -1), (-1, 0), (0, 0), (-1, -1))])
    print(unshare(NEWUSER), ask(os.setgid, 0), ask(os.setgroups, []))
    subprocess.run(["stat", "-c", "%u:%g %A", TOP + "/own"], check=False)


def no_new_privileges():
    LIBC.prctl(38, 1, 0, 0, 0)
    print(unshare(NEWUSER), as_root(), caps())
    subprocess.run(["sh", "-c", "grep -e Cap[IPEA] -e NoNew /proc/self/status; id -u"], check=False)


def with_clone():
    """The shell's tools do it by clone and unshare, with the map written by the one or the other."""
    for command in (
        "unshare -Ur id -u",
        "unshare -U --map-user=33 --map-group=44 id",
        "unshare -Uc id -u",
        "unshare -Urpf sh -c 'echo $$; id -u'",
        "unshare -n true",
        "unshare -Ur --setgroups=deny id -u",
        "unshare -Ur unshare -U id -u",
        "unshare -Ur unshare -Ur id -u",
        "unshare -Ur setpriv --reuid=0 --clear-groups id -u",
        "unshare -Ur sh -c 'su nobody -s /bin/sh -c id'",
        "unshare -Ur unshare -m true",
        "unshare -m true",
        "unshare -Ur setpriv --ambient-caps=+net_raw true",
        "unshare -Ur chroot / id -u",
        "unshare -Ur nice -n -5 true",
    ):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        print(command, done.returncode, done.stdout.split(), bool(done.stderr))


if os.getuid() == 0:
    prepare()
for body in (
    refused_outside,
    unmapped,
    maps,
    rooted,
    mounting,
    nested,
    limited,
    by_the_parent,
    credentials,
    signals,
    files_of_others,
    no_new_privileges,
    with_clone,
):
    print("----", body.__name__)
    child(body)
