"""Makes directories and files of many modes and owners below argv[1]; then an ordinary user looks at each."""

import errno
import itertools
import os
import sys

TOP = sys.argv[1]
MODES = (0o755, 0o711, 0o700, 0o070, 0o007, 0o677, 0o767, 0o776, 0o111, 0o444)
FILES = {
    f"in/{mode:o}-{owner}": (mode, owner)
    for mode, owner in itertools.product((0o444, 0o644, 0o600, 0o040, 0o404, 0o755), (0, 1000))
}


def make(place, mode, uid, gid):
    os.makedirs(place + "/in")
    os.symlink("in", place + "/link")
    os.symlink(place + "/in", place + ".directory")
    os.symlink(place + "/link/../in/644-0", place + ".file")
    for name, (own, owner) in FILES.items():
        with open(f"{place}/{name}", "w") as file:
            file.write("x")
        os.chmod(f"{place}/{name}", own)
        os.chown(f"{place}/{name}", owner, owner)
    os.chown(place, uid, gid)
    os.chmod(place, mode)


def ask(call, *args, **how):
    try:
        found = call(*args, **how)
    except OSError as error:
        return errno.errorcode[error.errno]
    if call is os.open:
        os.close(found)
    return "ok" if call in (os.open, os.stat, os.lstat) else found


def each(at, path):
    for call in os.stat, os.lstat:
        yield ask(call, path, dir_fd=at)
    for flags in os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT:
        yield ask(os.open, path, flags, dir_fd=at)
    yield ask(os.readlink, path, dir_fd=at)
    for mode in os.F_OK, os.R_OK, os.W_OK, os.X_OK:
        yield ask(os.access, path, mode, dir_fd=at)


def look(place, fd):
    print(place[len(TOP) :])
    for name in FILES:
        print(name, *each(None, f"{place}/{name}"), *each(None, f"{place}/link/../{name}"))
    for name in "in", "in/644-0", "link", "link/644-0", "missing", "in/missing", "in/644-0/x", "missing/x":
        print(name, *each(None, f"{place}/{name}"), *each(fd, name))
    for name in ".directory", ".directory/", ".directory/.", ".directory/644-0", ".file", "/.", "/..", "/", "":
        print(name, *each(None, place + name), ask(os.chdir, place + name))
    if ask(os.fchdir, fd) == "EACCES":
        os.chdir("/")
    print(*each(None, "in/644-0"), *each(None, "link"))


os.umask(0)
places = {}
for mode, (uid, gid) in itertools.product(MODES, ((0, 0), (1000, 0), (0, 1000), (0, 77))):
    place = f"{TOP}/{mode:o}-{uid}-{gid}"
    make(place, mode, uid, gid)
    places[place] = os.open(place, os.O_PATH)
os.setgroups([77])
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
for place, fd in places.items():
    look(place, fd)
