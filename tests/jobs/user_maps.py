"""What an ordinary user maps in user namespaces, and who may join them: everything that can be seen is printed."""

import os
import socket
import subprocess

from user_tools import (
    GID,
    NEWIPC,
    NEWNS,
    NEWUSER,
    NEWUTS,
    TOP,
    UID,
    Held,
    as_root,
    ask,
    caps,
    child,
    get,
    look,
    put,
    run,
    status,
    sys_call,
    unshare,
)


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


run(unmapped, maps, rooted, nested, limited, by_the_parent)
