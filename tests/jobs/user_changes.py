"""Makes directories, files and sockets of many modes and owners below argv[1]; then an ordinary user changes them."""

import ctypes
import errno
import itertools
import os
import socket
import sys

libc = ctypes.CDLL(None, use_errno=True)
TOP = sys.argv[1]
OWNERS = ((0, 0), (1000, 1000), (0, 77))
FILES = {
    f"{mode:o}-{uid}-{gid}": (mode, uid, gid)
    for mode, (uid, gid) in itertools.product((0o755, 0o644, 0o600, 0o700, 0o070, 0o001), OWNERS)
}
SOCKETS = {
    f"s{mode:o}-{uid}-{gid}": (mode, uid, gid)
    for mode, (uid, gid) in itertools.product((0o777, 0o755, 0o700, 0o070, 0o002), OWNERS)
}


def make(place, mode, uid, gid):
    os.mkdir(place)
    for name in FILES:
        with open(f"{place}/{name}", "w") as file:
            file.write("#!/bin/true\n")
    for name in SOCKETS:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"{place}/{name}")
            one.listen(9)
            os.dup(one.fileno())  # never closed: somebody listens to the end
    for name, (own, *owner) in (FILES | SOCKETS).items():
        os.chown(f"{place}/{name}", *owner)
        os.chmod(f"{place}/{name}", own)
    os.mkdir(place + "/d")
    os.chmod(place + "/d", 0o700)
    os.symlink("755-0-0", place + "/l")
    os.chown(place, uid, gid)
    os.chmod(place, mode)


def ask(call, *args):
    try:
        found = call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return found if isinstance(found, str) else "ok"


def execute(name):
    pid = os.fork()
    if not pid:
        try:
            os.execv(name, [name])
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def connect(name):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(name)


def bind(name):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(name)


def watch(name):
    fd = libc.inotify_init1(0)
    watched = libc.inotify_add_watch(fd, name.encode(), 2)
    code = ctypes.get_errno()
    os.close(fd)
    if watched < 0:
        raise OSError(code, "inotify_add_watch")


def change(place):
    print(place[len(TOP) :])
    for name in sorted(FILES):
        path = f"{place}/{name}"
        print(
            name, execute(path), ask(watch, path), ask(os.truncate, path, 3), ask(os.utime, path),
            ask(os.utime, path, (1, 1)), ask(os.getxattr, path, "user.x"), ask(os.setxattr, path, "user.x", b"1"),
            ask(os.statvfs, path), ask(os.chmod, path, FILES[name][0]), ask(os.chown, path, 1000, 1000),
            ask(os.chown, path, -1, 77), ask(os.listdir, path), ask(connect, path),
        )  # fmt: skip
    for name in sorted(SOCKETS):
        print(name, ask(connect, f"{place}/{name}"))
    print(
        "make", ask(os.mkdir, place + "/new"), ask(os.symlink, "x", place + "/link"), ask(os.mkfifo, place + "/fifo"),
        ask(bind, place + "/socket"), ask(os.link, place + "/755-1000-1000", place + "/hard"),
        ask(os.open, place + "/file", os.O_CREAT | os.O_WRONLY), ask(os.listdir, place), ask(os.chdir, place + "/d"),
        ask(os.readlink, place + "/l"),
    )  # fmt: skip
    print(
        "move", ask(os.rename, place + "/755-1000-1000", place + "/moved"),
        ask(os.rename, place + "/755-0-0", place + "/moved0"), ask(os.rename, place + "/644-1000-1000", TOP + "/x"),
    )  # fmt: skip
    print("drop", *(ask(os.unlink, f"{place}/{name}") for name in [*sorted(FILES), "l"]))
    print("drop", *(ask(os.rmdir, place + name) for name in ("/d", "/new", "")))


os.umask(0)
places = []
for mode, (uid, gid) in itertools.product(
    (0o755, 0o711, 0o700, 0o777, 0o1777, 0o070, 0o007, 0o444), ((0, 0), (1000, 0), (0, 77))
):
    place = f"{TOP}/{mode:o}-{uid}-{gid}"
    make(place, mode, uid, gid)
    places.append(place)
os.setgroups([77])
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
for place in places:
    change(place)
