"""A command that runs as another user than root can do what it could do elsewhere."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

import detbox


def test_descriptors_can_be_opened_by_name(tmp_path: Path) -> None:
    script = (
        "echo pipe | cat /dev/stdin; cat <(echo substitution); echo file > /tmp/f; cat /dev/stdin < /tmp/f;"
        " echo out > /dev/stdout; ls /proc/self/fd > /dev/null && stat -c '%A %U' /proc/self/fd /var/tmp"
    )
    result = detbox.run(["bash", "-c", script], workdir=tmp_path, user="nobody")
    assert result.stdout.decode().splitlines() == [
        "pipe", "substitution", "file", "out", "dr-x------ nobody", "drwxrwxrwt root",
    ]  # fmt: skip
    assert (result.status, result.stderr) == (0, b"")


def test_a_socket_belongs_to_who_binds_it(tmp_path: Path) -> None:
    program = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); s.bind('/tmp/s'); os.chmod('/tmp/s', 0o700);"
        " print(os.stat('/tmp/s').st_uid == os.getuid() != 0)"
    )
    result = detbox.run(["/usr/bin/python3", "-c", program], workdir=tmp_path, user="nobody")
    assert (result.status, result.stdout, result.stderr) == (0, b"True\n", b"")


#: Makes directories and files of many modes and owners; then an ordinary user looks at each.
RIGHTS = '''
import errno, itertools, os, sys
top = sys.argv[1]
os.umask(0)
kinds = []
for mode, (uid, gid) in itertools.product((0o755, 0o711, 0o700, 0o070, 0o007, 0o677, 0o767, 0o776, 0o111, 0o444),
                                          ((0, 0), (1000, 0), (0, 1000), (0, 77))):
    place = "%s/%o-%d-%d" % (top, mode, uid, gid)
    os.mkdir(place)
    os.mkdir(place + "/in")
    os.symlink("in", place + "/link")
    os.symlink(place + "/in", place + ".directory")
    os.symlink(place + "/link/../in/644-0", place + ".file")
    for own, other in itertools.product((0o444, 0o644, 0o600, 0o040, 0o404, 0o755), ((0, 0), (1000, 1000))):
        name = "in/%o-%d" % (own, other[0])
        with open(place + "/" + name, "w") as file:
            file.write("x")
        os.chmod(file.name, own)
        os.chown(file.name, *other)
        kinds.append((place, name))
    os.chown(place, uid, gid)
    os.chmod(place, mode)
here = [os.open(place, os.O_PATH) for place in sorted({place for place, _ in kinds})]
os.setgroups([77])
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)

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

for place, name in kinds:
    print(place[len(top):], name, *each(None, place + "/" + name), *each(None, place + "/link/../" + name))
for fd, place in zip(here, sorted({place for place, _ in kinds})):
    for name in "in", "in/644-0", "link", "link/644-0", "missing", "in/missing", "in/644-0/x", "missing/x":
        print(place[len(top):], name, *each(None, place + "/" + name), *each(fd, name))
    for name in ".directory", ".directory/", ".directory/.", ".directory/644-0", ".file", "/.", "/..", "/", "":
        print(place[len(top):], name, *each(None, place + name), ask(os.chdir, place + name))
    os.fchdir(fd) if ask(os.fchdir, fd) != "EACCES" else os.chdir("/")
    print(*each(None, "in/644-0"), *each(None, "link"))
'''


@pytest.mark.skipif(os.geteuid() != 0, reason="files of other users can natively be made by root alone")
def test_rights_are_those_of_the_kernel(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        native = subprocess.run(["/usr/bin/python3", "-c", RIGHTS, place], capture_output=True, check=True).stdout
        native = native.replace(place.encode(), b"/tmp/t")  # in the texts of links
    script = 'mkdir /tmp/t; exec /usr/bin/python3 -c "$1" /tmp/t'
    result = detbox.run(["sh", "-c", script, "sh", RIGHTS], workdir=tmp_path)
    assert (result.status, result.stderr) == (0, b"")
    assert result.stdout.splitlines() == native.splitlines()
    assert len(native.splitlines()) == 10 * 4 * (12 + 9 + 9)
