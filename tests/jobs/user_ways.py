"""An ordinary user's ways below argv[1] are closed and opened again, after he has been on them."""

import errno
import itertools
import os
import subprocess
import sys

TOP = sys.argv[1]
OPEN, CLOSED = 0o755, 0o600


def ask(call, *args):
    try:
        found = call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    if isinstance(found, int):
        os.close(found)
    return "ok"


def look(what):
    os.chdir(TOP + "/stand/below")
    print(what)
    for place in (TOP, "../..", "/proc/self/cwd/../.."):
        for name in ("way/b/c", "way/b/f", "way/b/none", "way/b/l", "link/c/f", "link/l/f", "way/b/", "way//b/../b/f"):
            path = f"{place}/{name}"
            print(
                name, ask(os.stat, path), ask(os.lstat, path), ask(os.open, path, os.O_RDONLY), ask(os.readlink, path),
                ask(os.listdir, path), os.access(path, os.R_OK), ask(os.chdir, path) if place == TOP else "",
            )  # fmt: skip
            os.chdir(TOP + "/stand/below")
    os.chdir(TOP + "/way")
    print("here", ask(os.stat, "b"), ask(os.stat, "b/f"), ask(os.open, "b/c/f", os.O_RDONLY), ask(os.stat, "none"))


def tree(top, mode):
    os.makedirs(top + "/b/c")
    for name in ("b/f", "b/c/f"):
        with open(f"{top}/{name}", "w") as file:
            file.write("text\n")
    os.symlink("c", top + "/b/l")
    os.chmod(top + "/b", mode)


def closed_here():
    """A directory is closed while somebody stands in it, and while somebody else does."""
    os.chdir(TOP + "/way/b")
    child = subprocess.Popen(
        ["sh", "-c", "cat f; read x; cat f; read x; cat f"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    print("child", child.stdout.readline())
    for mode in (CLOSED, OPEN):
        os.chmod(TOP + "/way/b", mode)
        print("mode", oct(mode), ask(os.stat, "f"), ask(os.stat, "./c/f"), ask(os.stat, "."), ask(os.stat, "../b"))
        child.stdin.write("x\n")
        child.stdin.flush()
        print("child", child.stdout.readline())
    child.stdin.close()
    child.wait()


os.setgroups([])
os.chown(TOP, 1000, 1000)
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
os.umask(0o022)
os.makedirs(TOP + "/stand/below")
tree(TOP + "/way", OPEN)
tree(TOP + "/other", CLOSED)
os.symlink("way/b", TOP + "/link")
look("at first")
os.chmod(TOP + "/way/b", CLOSED)
look("closed")
os.chmod(TOP + "/way/b", OPEN)
look("open")
fd = os.open(TOP + "/way", os.O_RDONLY)
os.fchmod(fd, CLOSED)
print(ask(os.chdir, TOP + "/way"))
os.fchmod(fd, OPEN)
look("closed and opened by a descriptor")
os.rename(TOP + "/way/b", TOP + "/aside")
os.rename(TOP + "/other/b", TOP + "/way/b")
look("another directory in its place")
os.rename(TOP + "/way/b", TOP + "/other/b")
os.rename(TOP + "/aside", TOP + "/way/b")
look("the first again")
os.unlink(TOP + "/link")
os.symlink("other/b", TOP + "/link")
look("another link in its place")
os.unlink(TOP + "/link")
os.symlink("way/b", TOP + "/aside")
os.rename(TOP + "/aside", TOP + "/link")
look("a link renamed")
os.symlink("other/b", TOP + "/third")
os.unlink(TOP + "/link")
os.link(TOP + "/third", TOP + "/link", follow_symlinks=False)
look("a second name of a link")
subprocess.run(["rm", "-r", TOP + "/way/b"], check=True)
look("gone")
os.mkdir(TOP + "/way/b", CLOSED)
look("made anew")
os.rmdir(TOP + "/way/b")
os.mkdir(TOP + "/way/b", OPEN)
for name, mode in itertools.product(("/way", ""), (CLOSED, OPEN)):
    os.chmod(TOP + name, mode)
    print(oct(mode), name, ask(os.stat, TOP + "/way/b"), ask(os.stat, TOP + "/way"), ask(os.stat, TOP + "/none"))
tree(TOP + "/last", OPEN)
os.rename(TOP + "/way", TOP + "/aside")
os.rename(TOP + "/last", TOP + "/way")
closed_here()
