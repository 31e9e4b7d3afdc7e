"""What users may ask of namespaces, message queues and other processes: everything that can be seen is printed."""

import ctypes
import errno
import fcntl
import os
import stat
import subprocess

from user_tools import NEWNET, NEWNS, NEWPID, NEWUSER, NEWUTS, TOP, UID, Held, as_root, ask, child, put, run, unshare

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
USERNS, PARENT, NSTYPE, OWNER = range(0xB701, 0xB705)
RT = ctypes.CDLL("librt.so.1", use_errno=True)


def opened(kind, of="self"):
    return ask(os.open, f"/proc/{of}/ns/{kind}", os.O_RDONLY)


def same(fd, kind, of):
    """Whether a descriptor is of that namespace of a process."""
    return isinstance(fd, int) and os.fstat(fd).st_ino == os.stat(f"/proc/{of}/ns/{kind}").st_ino


def owner(fd):
    answer = ask(fcntl.ioctl, fd, OWNER, bytes(4))
    return answer if isinstance(answer, str) else int.from_bytes(answer, "little")


def asks(label, of, others=()):
    """What the namespaces of one process tell; whose user namespaces they belong to."""
    for kind in KINDS:
        fd = opened(kind, of)
        if isinstance(fd, str):
            print(label, kind, fd)
            continue
        related = [ask(fcntl.ioctl, fd, request) for request in (USERNS, PARENT)]
        whose = [[same(found, "user", pid) for pid in ("self", of, *others)] for found in related]
        told = [found if isinstance(found, str) else "open" for found in related]
        print(label, kind, hex(ask(fcntl.ioctl, fd, NSTYPE)), told, whose, owner(fd))
        number, status = int(os.readlink(f"/proc/{of}/ns/{kind}").split("[")[1][:-1]), os.fstat(fd)
        print(" ", number == status.st_ino == os.stat(f"/proc/{of}/ns/{kind}").st_ino, stat.S_ISREG(status.st_mode))


def of_ones_own():
    """In namespaces below one's own; those of the machine belong to root."""
    unshare(NEWUSER | NEWNS | NEWUTS | NEWNET), as_root()
    asks("own", "self")
    with Held(NEWUSER | NEWPID | NEWNS, as_root) as held:
        asks("below", held.pid)

        def beside():
            unshare(NEWUSER), put("uid_map", "0 0 1")
            asks("beside", "self")

        child(beside)


def of_others():
    file = os.open(TOP + "/own", os.O_RDONLY)
    print([ask(fcntl.ioctl, file, request) for request in (USERNS, PARENT, NSTYPE)], owner(file))
    user = opened("user")
    print(ask(fcntl.ioctl, user, PARENT), owner(user), ask(fcntl.ioctl, opened("uts"), PARENT), owner(opened("uts")))


def listed():
    """lsns(8) in namespaces where nobody else is."""
    command = "unshare -Urpfn --mount-proc sh -c 'lsns -n -o TYPE,NPROCS,PID,COMMAND | sort; :'"
    subprocess.run(["sh", "-c", command], check=False)


def queue(call, name, *args):
    result = getattr(RT, call)(name, *args)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "ok"


def queues():
    """A queue belongs to who makes it, and in its namespace root may do what its owner may."""
    names = [b"/%d-%d" % (os.getpid(), mode) for mode in (0o600, 0o400, 0)]
    for name, mode in zip(names, (0o600, 0o400, 0), strict=True):
        print(mode, queue("mq_open", name, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode, None))

    def looks():
        for name in names:
            kinds = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            print([queue("mq_open", name, kind, 0o600, None) for kind in kinds])

    looks()
    print([queue("mq_unlink", name) for name in (*names, b"/none")])


def files_of_processes():
    """Who may debug a process may see what is in its memory."""

    def may(label, pid):
        for name in ("maps", "smaps", "environ", "auxv", "mem", "status", "stat", "cmdline", "limits"):
            fd = ask(os.open, f"/proc/{pid}/{name}", os.O_RDONLY)
            print(label, name, fd if isinstance(fd, str) else "open")

    with Held(0) as beside, Held(NEWUSER, as_root) as below:
        may("beside", beside.pid)
        may("below", below.pid)

        def inside():
            unshare(NEWUSER), put("uid_map", f"0 {UID} 1")
            may("above", beside.pid)
            may("other", below.pid)

        child(inside)


run(of_ones_own, of_others, listed, queues, files_of_processes)
