"""What a guest is told of the mounts that it stands on."""

from __future__ import annotations

import os
from pathlib import Path

import detbox

SCRIPT = """
import os
print(*(os.statvfs(path).f_flag for path in ("/", "/etc/passwd", "/work", "/kept", "/tmp", "/dev/shm", "/proc")))
print(os.statvfs("/in").f_flag)
"""


def test_how_the_container_is_mounted_does_not_show(tmp_path: Path) -> None:
    """The overlay of the system is `nosuid`, and so is /dev/shm on most hosts."""
    (tmp_path / "in").mkdir()
    command = ["/usr/bin/python3", "-c", SCRIPT]
    done = detbox.run(command, workdir=tmp_path, ro=[f"{tmp_path}/in:/in"], rw=["/dev/shm:/kept"])
    noatime = 1024
    assert done.stdout.split() == [b"%d" % noatime] * 7 + [b"%d" % (noatime | os.ST_RDONLY)]
