"""What an ordinary user may do in user namespaces of its own: everything that can be seen is printed."""

import os
import signal
import socket
import struct
import subprocess

from user_tools import (
    GID,
    LIBC,
    NEWIPC,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    NEWUTS,
    TOP,
    UID,
    as_root,
    ask,
    caps,
    child,
    get,
    look,
    put,
    run,
    sys_call,
    unshare,
)


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


run(refused_outside, mounting, credentials, signals, files_of_others, no_new_privileges, with_clone)
