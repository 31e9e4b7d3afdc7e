"""What the programs about an ordinary user's namespaces share.  Root starts them; argv[1] is an empty directory."""

import ctypes
import errno
import os
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


def run(*bodies):
    """Run each in a child of its own, as the user."""
    if os.getuid() == 0:
        prepare()
    for body in bodies:
        print("----", body.__name__)
        child(body)
