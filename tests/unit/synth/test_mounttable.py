"""What the guest sees of the mounts in a namespace of its own."""

from __future__ import annotations

from detbox.synth.mounttable import Shape, Tree, parse
from detbox.synth.view import Mount

CONTAINER = b"""\
96 66 0:41 / / rw,nosuid,nodev,relatime - tmpfs tmpfs rw,mode=755,uid=999
100 96 0:43 / /usr rw,nosuid,nodev,relatime - overlay overlay rw,lowerdir=/proc/self/fd/22
116 96 0:61 / /tmp rw,nosuid,nodev,relatime - tmpfs tmpfs rw,uid=999
117 96 0:62 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
129 96 254:0 /home/a\\040b/work /work rw,noatime - ext4 /dev/vda rw,discard
"""
TABLE = (
    Mount(20, 1, 8, 1, b"/", "overlay", b"detbox"),
    Mount(21, 20, 0, 21, b"/proc", "proc", b"proc"),
    Mount(28, 20, 0, 25, b"/tmp", "tmpfs", b"tmpfs"),
)


def shown(own: bytes) -> list[tuple[int, int, str, str, str, str, str]]:
    shape = Shape(parse(CONTAINER), TABLE)
    mounts = Tree(shape, parse(CONTAINER + own)).shown({0x2000 | 7: 26}, {205: ["nosuid"]})
    return [
        (one.mount_id, one.parent_id, f"{one.major}:{one.minor}", one.root.decode(), one.point.decode(), one.options,
         one.optional)
        for one in mounts
    ]  # fmt: skip


def test_container_is_one_piece() -> None:
    assert shown(b"") == [
        (20, 1, "8:1", "/", "/", "rw,noatime", ""),
        (21, 20, "0:25", "/", "/tmp", "rw,noatime", ""),
        (22, 20, "0:21", "/", "/proc", "rw,noatime", ""),
    ]


def test_copy_of_the_root_hides_the_same_mounts() -> None:
    copy = b"""\
200 116 0:41 / /tmp/new rw,nosuid,nodev,relatime - tmpfs tmpfs rw,mode=755,uid=999
201 200 0:43 / /tmp/new/usr rw,nosuid,nodev,relatime - overlay overlay rw
202 200 254:0 /home/a\\040b/work /tmp/new/work rw,noatime - ext4 /dev/vda rw,discard
203 200 0:61 / /tmp/new/tmp rw,nosuid,nodev,relatime - tmpfs tmpfs rw
"""
    assert [line[:5] for line in shown(copy)[3:]] == [
        (23, 21, "8:1", "/", "/tmp/new"), (24, 23, "0:25", "/", "/tmp/new/tmp"),
    ]  # fmt: skip


def test_own_mounts_and_places_of_the_container() -> None:
    own = b"""\
204 100 254:0 /home/a\\040b/work/deep /usr/local ro,noatime shared:7 master:3 - ext4 /dev/vda rw,discard
205 100 0:43 / /usr rw,nosuid,relatime shared:3 - overlay overlay rw
206 96 0:32 / /mnt rw,noexec,relatime - tmpfs x rw,size=4k,uid=7,inode64
"""
    assert shown(own)[3:] == [
        (23, 20, "8:1", "/work/deep", "/usr/local", "ro,noatime", "shared:1 master:2"),
        (24, 20, "8:1", "/usr", "/usr", "rw,nosuid,noatime", "shared:2"),
        (25, 20, "0:0", "/", "/mnt", "rw,noexec,relatime", ""),
    ]
