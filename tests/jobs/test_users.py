"""A command that runs as another user than root can do what it could do elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


@pytest.mark.parametrize("program", ["user_looks.py", "user_changes.py", "user_ways.py"])
@pytest.mark.skipif(os.geteuid() != 0, reason="files of other users can natively be made by root alone")
def test_rights_are_those_of_the_kernel(program: str, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / program, tmp_path / "program.py")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        native = subprocess.run(
            ["/usr/bin/python3", tmp_path / "program.py", place], capture_output=True, check=True
        ).stdout.replace(place.encode(), b"/tmp/t")  # in the texts of links
    result = detbox.run(
        ["sh", "-c", "mkdir /tmp/t; exec /usr/bin/python3 program.py /tmp/t"], workdir=tmp_path
    )
    assert (result.status, result.stderr) == (0, b"")
    assert result.stdout.splitlines() == native.splitlines()
    assert len(native.splitlines()) > 250


def _users_may_make_namespaces() -> bool:
    command = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "unshare", "-Ur", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(("program", "lines"), [("user_maps.py", 90), ("user_spaces.py", 60), ("user_requests.py", 90)])
@pytest.mark.skipif(os.geteuid() != 0 or not _users_may_make_namespaces(), reason="needs namespaces of another user's")
def test_user_namespaces_are_those_of_the_kernel(program: str, lines: int, tmp_path: Path) -> None:
    for name in (program, "user_tools.py"):
        shutil.copy(Path(__file__).parent / name, tmp_path / name)
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        # Where the user may read it.
        command = f"cp *.py {place}; exec env -i PATH=/usr/sbin:/usr/bin:/bin python3 -B {place}/{program} {place}"
        native = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, timeout=60)
    result = detbox.run(["sh", "-c", f"mkdir -p {place}; {command}"], workdir=tmp_path)
    assert result.stdout.decode().splitlines() == native.stdout.decode().splitlines()
    assert (result.status, result.stderr) == (0, native.stderr)
    assert len(native.stdout.splitlines()) > lines


@pytest.mark.parametrize("user", ["root", "1000", "nobody"])
def test_anybody_is_root_of_a_user_namespace(user: str, tmp_path: Path) -> None:
    script = "id -u; unshare -Ur sh -c 'id; cat /proc/self/uid_map; mount -t tmpfs t /mnt 2> /dev/null || echo no'"
    result = detbox.run(["sh", "-c", script + "; unshare -Urm mount -t tmpfs t /mnt"], workdir=tmp_path, user=user)
    own, shown, mapped, refused = result.stdout.decode().splitlines()
    assert shown == "uid=0(root) gid=0(root) groups=0(root)" and mapped.split() == ["0", own, "1"] and refused == "no"
    assert (result.status, result.stderr) == (0, b"")


def test_low_ports_are_for_root(tmp_path: Path) -> None:
    program = (
        "import fcntl, os, socket, struct; one, other = (socket.socket() for _ in 'ab'); one.bind(('127.0.0.1', 80));"
        " one.listen(); socket.create_connection(('127.0.0.1', 80)); os.setuid(1000); other.bind(('127.0.0.1', 81))"
    )
    result = detbox.run(["/usr/bin/python3", "-c", program], workdir=tmp_path)
    assert result.stderr.splitlines()[-1] == b"PermissionError: [Errno 13] Permission denied"
    bring_up = "fcntl.ioctl(one, 0x8914, struct.pack('16sh14x', b'lo', 1))"
    inside = program.replace("os.setuid(1000)", "os.getuid()").replace("one.bind", bring_up + "; one.bind")
    result = detbox.run(["unshare", "-Urn", "/usr/bin/python3", "-c", inside], workdir=tmp_path, user="1000")
    assert (result.status, result.stderr) == (0, b"")


def test_root_of_a_user_namespace_that_has_no_other_users(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import detbox; script = 'id; ls -l /etc/passwd program.py; echo > /etc/made';"
        " done = detbox.run(['sh', '-c', script], workdir='.'); print(done.stdout.decode(), done.stderr, done.status)"
    )
    command = [sys.executable, "program.py"]
    env = {**os.environ, "PYTHONPATH": str(Path(detbox.__file__).parents[1])}
    alone = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*alone, "test", "-r", detbox.__file__], check=False).returncode:
        pytest.skip("this tree is in a directory that other users are shut out of: that root is one of them")
    plain, inside = (
        subprocess.run([*before, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        for before in ([], alone)
    )
    assert inside.stdout == plain.stdout and inside.stderr == plain.stderr
    assert inside.stdout.startswith("uid=0(root) gid=0(root) groups=0(root)\n-rw-r--r-- 1 root root ")
    assert inside.stdout.endswith("\n b'' 0\n")


def test_python_finds_its_compiled_files(tmp_path: Path) -> None:
    told = [
        detbox.run(["/usr/bin/python3", "-v", "-c", "import json"], workdir=tmp_path, user=user).stderr
        for user in ("root", "nobody")
    ]
    assert told[0].count(b".pyc matches") == told[1].count(b".pyc matches") > 0
    assert b"stale" not in told[1]
