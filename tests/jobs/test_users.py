"""A command that runs as another user than root can do what it could do elsewhere."""

from __future__ import annotations

from pathlib import Path

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
