"""What a run uses of the host's memory, seen from outside by the process that waits for its end.

A process meets its own limit (RLIMIT_DATA) and a file system in memory its size at a moment that depends on
the guest alone.  The sum over all of them is looked at so often that the guest can exceed the limit by little until the
next look, and so rarely that looking costs nothing.  A margin lets whoever exceeds a limit of its own meet that first.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container

from detbox.errors import LimitExceeded
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.records import NamedTuple

#: Bytes per second: a processor cannot fill memory faster, since each new page is cleared and then written.
_FASTEST = 2 << 30
_SHORTEST_S, _LONGEST_S = 0.02, 1.0
_SHARE = 25  # a look may take one of so many parts of the time until the next
_SHOWN = 5  # processes that the message names
_MIB = 1 << 20
_MARGIN = 16 * _MIB  # and an eighth of the limit
_KCMP_VM = 1  # include/uapi/linux/kcmp.h


class Usage(NamedTuple):
    """Bytes in use: by each process (PID in the container, name), and in files."""

    processes: dict[tuple[int, str], int]
    files: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(self.processes.values()) + self.files


class Watch:
    """Looks at one run.  ``limit``: bytes that it may use, or None for no limit."""

    def __init__(self, keeper: int, limit: int | None) -> None:
        self._keeper = keeper
        self._limit = limit
        self._bound = 0 if limit is None else limit + limit // 8 + _MARGIN
        self._places: dict[str, int] = {}  # a directory in each file system in memory → its device
        self._shared_before = 0 if limit is None else _shared_memory()
        self._due = time.monotonic() + _SHORTEST_S

    def left(self) -> float | None:
        """Seconds until the next look; None if there is none to come."""
        return None if self._limit is None else max(0.0, self._due - time.monotonic())

    def look(self) -> None:
        """Look if it is time to.  Raises LimitExceeded."""
        begin = time.monotonic()
        if self._limit is None or begin < self._due:
            return
        used = 0
        pids = self._guests()
        if pids:
            files = sum(_used(place, device) for place, device in self._places.items())
            used = _most(pids, files, _shared_memory() - self._shared_before)
            if used > self._bound:
                usage = _exact(pids, files, set(self._places.values()))
                used = usage.total
                if used > self._bound:
                    raise LimitExceeded(_message(usage, self._limit), "raise --memory")
        end = time.monotonic()
        pause = min(max((self._bound - used) / _FASTEST, _SHORTEST_S), _LONGEST_S)
        self._due = end + max(pause, (end - begin) * _SHARE)

    def _guests(self) -> list[int]:
        found = processes(self._keeper)
        if len(found) > 1 and not self._places:
            self._places = memory_file_systems(f"/proc/{found[0]}")
        return found[1:]


def processes(keeper: int) -> list[int]:
    """The supervisor, and all processes of the guest once it has started; ``keeper`` is the supervisor's parent."""
    found = children(keeper)
    for pid in found:  # it grows
        found += children(pid)
    return found


def children(pid: int) -> list[int]:
    """A process's children: none if it has ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="utf-8") as file:
                found += map(int, file.read().split())
    return found


def memory_file_systems(process: str) -> dict[str, int]:
    """A directory in each file system in memory that a process sees and this one does not, and its device."""
    ours = {fields[2] for fields in _mounts("/proc/self")}
    found: dict[str, int] = {}
    overlays = 0
    for fields in _mounts(process):
        kind = fields[fields.index("-") + 1]
        # All overlays' upper layers are in one file system, whose numbers each of them shows.
        if fields[2] in ours or kind not in ("tmpfs", "overlay") or kind == "overlay" and overlays:
            continue
        major, minor = fields[2].split(":")
        device, place = os.makedev(int(major), int(minor)), f"{process}/root{fields[4]}"
        with contextlib.suppress(OSError):
            if os.stat(place).st_dev == device:  # otherwise another mount covers it
                found[place] = device
                overlays += kind == "overlay"
    return found


def _mounts(process: str) -> list[list[str]]:
    with open(f"{process}/mountinfo", errors="replace") as file:
        return [line.split() for line in file]


def _used(place: str, device: int) -> int:
    """Bytes in use in the file system with that number; 0 while its place leads elsewhere.

    The supervisor has the host's root for as long as it imports something.
    """
    try:
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        if os.fstat(fd).st_dev != device:
            return 0
        found = os.fstatvfs(fd)
    finally:
        os.close(fd)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _kib(path: str) -> dict[str, int]:
    """The lines of a file that give a size, in bytes."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.endswith(" kB\n"):
                name, _, rest = line.partition(":")
                found[name] = found.get(name, 0) + int(rest[:-4]) * 1024
    return found


def _shared_memory() -> int:
    """Bytes of all file systems in memory and shared memory of the machine."""
    return _kib("/proc/meminfo").get("Shmem", 0)


def _most(pids: list[int], files: int, grown: int) -> int:
    """Bytes that the processes use at most.  ``grown``: by so much has the machine's shared memory grown."""
    own = shared = 0
    for pid in pids:
        sizes = _kib(f"/proc/{pid}/status")
        own += sizes.get("RssAnon", 0) + sizes.get("VmSwap", 0)
        shared += sizes.get("RssShmem", 0)
    return own + max(shared + files, grown)


def _exact(pids: list[int], files: int, devices: set[int]) -> Usage:
    """What each process uses, where shared pages are divided among those who share them.

    Files in memory count with ``files``, which those in the file systems of ``devices`` do already, and not for the
    processes that have mapped them.
    """
    found: dict[tuple[int, str], int] = {}
    open_files = _open_memory_files(pids)
    seen: dict[tuple[int, ...], int] = {}
    for pid in pids:
        sizes = _kib(f"/proc/{pid}/smaps_rollup")
        shared = sizes.get("Pss_Shmem", 0)
        used = sizes.get("Pss_Anon", 0) + shared + sizes.get("SwapPss", 0)
        # The child of vfork(2) has no memory of its own.
        twin = seen.setdefault(tuple(sizes.values()), pid)
        if not used or twin != pid and _native.raw_syscall(NUMBERS["kcmp"], twin, pid, _KCMP_VM, 0, 0) == 0:
            continue
        if shared > _MIB:
            used -= min(_mapped(pid, devices, open_files), shared)
        found[_name(pid)] = used
    return Usage(found, files + sum(open_files.values()))


def _open_memory_files(pids: list[int]) -> dict[tuple[int, int], int]:
    """Device and inode of each file of memfd_create(2) that a process has open, and its bytes."""
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                place = f"/proc/{pid}/fd/{number}"
                if os.readlink(place).startswith("/memfd:"):
                    st = os.stat(place)
                    found[st.st_dev, st.st_ino] = st.st_blocks * 512
    return found


def _mapped(pid: int, devices: set[int], files: Container[tuple[int, int]]) -> int:
    """Bytes of the files, and of those on the devices, that a process has mapped (proc_pid_smaps(5))."""
    found, counts = 0, False
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(" ")
            if not name.endswith(":"):
                _, _, numbers, inode = rest.split()[:4]
                major, minor = numbers.split(":")
                device = os.makedev(int(major, 16), int(minor, 16))
                counts = device in devices or (device, int(inode)) in files
            elif counts and name == "Pss:":
                found += int(rest.split()[0]) * 1024
    return found


def _name(pid: int) -> tuple[int, str]:
    name, number = "?", pid
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, rest = line.partition(":")
            if key == "Name":
                name = rest.strip()
            elif key == "NSpid":  # the first is the number here, the second the one in the container
                number = int(rest.split()[:2][-1])
    return number, name


def _message(usage: Usage, limit: int) -> str:
    most = sorted(usage.processes.items(), key=lambda item: (-item[1], item[0]))
    lines = [
        f"the run used more memory than it may: {limit / _MIB:.0f} MiB allowed, {usage.total / _MIB:.0f} MiB used",
        *[f"  {size / _MIB:8.1f} MiB  {name} (PID {number})" for (number, name), size in most[:_SHOWN]],
    ]
    if len(most) > _SHOWN:
        rest = sum(size for _, size in most[_SHOWN:])
        lines.append(f"  {rest / _MIB:8.1f} MiB  {len(most) - _SHOWN} other processes")
    lines.append(f"  {usage.files / _MIB:8.1f} MiB  files that vanish with the run")
    return "\n".join(lines)
