"""Renderers of /proc/PID files about identity, state and accounting: stat, statm, status, sched, io, fdinfo,
…"""

from __future__ import annotations

from resource import RLIMIT_SIGPENDING

from detbox.machine.constants import PAGE_SIZE, USER_HZ
from detbox.machine.limits import text
from detbox.synth.maps import sizes
from detbox.synth.table import Query

STATE_NAMES = {
    "R": "running", "S": "sleeping", "D": "disk sleep", "T": "stopped", "t": "tracing stop", "X": "dead",
    "Z": "zombie", "I": "idle", "P": "parked",
}  # fmt: skip
NODE_WORDS = 32  # 32-bit words in the node mask of a kernel with NODES_SHIFT=10
NS_PER_TICK = 1_000_000_000 // USER_HZ
MASK64 = (1 << 64) - 1


def state_letter(query: Query) -> str:
    """The state of the thread or process; an unknown letter counts as sleeping."""
    letter = query.thread.state if query.of_thread else query.process.state
    return letter if letter in STATE_NAMES else "S"


def _comm(query: Query) -> bytes:
    return (query.thread.comm if query.of_thread else query.process.comm)[:15]


def comm(query: Query) -> bytes:
    """The thread's name."""
    return _comm(query) + b"\n"


def cmdline(query: Query) -> bytes:
    """The arguments, each with its NUL, for a process whose memory is not the guest's."""
    return b"".join(argument + b"\0" for argument in query.process.argv)


def _escaped_comm(query: Query) -> bytes:
    """status escapes backslashes and newlines (seq_escape with ESCAPE_SPACE | ESCAPE_SPECIAL of
    "\\n\\\\")."""
    return _comm(query).replace(b"\\", b"\\\\").replace(b"\n", b"\\n")


def _real_stat_fields(query: Query) -> dict[int, bytes]:
    """Fields 3 to 52 of the kernel's own stat, by number; empty if it cannot be read."""
    if query.process.hidden:
        return {}
    try:
        raw = query.reader(b"/proc/%d/stat" % query.process.pid)
    except OSError:
        return {}
    return dict(enumerate(raw[raw.rfind(b")") + 1 :].split(), 3))


#: Fields of stat: where the program's code and data start and end.
_OF_PROGRAM = frozenset((26, 27, 45, 46))


def stat(query: Query) -> bytes:
    """The 52 fields of proc(5).

    Addresses (26 to 28, 45 to 51) are the kernel's: the layout of a guest is fixed.  Faults (10 to 13),
    processor (39) and wait channel (35) depend on the host and are zero; so is everything that a sleeping
    thread hides.
    """
    process, thread = query.process, query.thread
    size = sizes(query)
    real = _real_stat_fields(query)

    def address(number: int) -> int:
        text = real.get(number, b"0")
        value = int(text) if text.isdigit() else 0
        return value - process.moved_down if number in _OF_PROGRAM and value > 1 else value

    utime, stime = (thread.utime, thread.stime) if query.is_task else (process.utime, process.stime)
    nice = thread.nice if query.of_thread else process.nice
    start = thread.start_ticks if query.of_thread else process.start_ticks
    pending = thread.sig_pending if query.is_task else process.sig_pending
    blocked = thread.sig_blocked if query.is_task else process.sig_blocked
    fields: list[object] = [
        state_letter(query), process.ppid, process.pgrp, process.sid, process.tty, process.tpgid, 0,
        0, 0, 0, 0, utime, stime, process.cutime, process.cstime, 20 + nice, nice, len(process.tids), 0,
        start,
        size.total * 1024, size.resident * 1024 // PAGE_SIZE, MASK64, address(26), address(27), address(28),
        0, 0,
        pending & 0x7FFFFFFF, blocked & 0x7FFFFFFF, process.sig_ignored & 0x7FFFFFFF,
        process.sig_caught & 0x7FFFFFFF, 0, 0, 0, process.exit_signal, 0, 0, 0, 0, 0, 0,
        *(address(number) for number in range(45, 52)), 0,
    ]  # fmt: skip
    number = thread.tid if query.of_thread else process.pid
    return b"%d (%s) %s\n" % (number, _comm(query), " ".join(map(str, fields)).encode())


def statm(query: Query) -> bytes:
    """Sizes in pages."""
    size = sizes(query)
    total, resident, text, data = (
        kb * 1024 // PAGE_SIZE for kb in (size.total, size.resident, size.text, size.data + size.stack)
    )
    shared = (size.resident - size.resident_anonymous) * 1024 // PAGE_SIZE
    return b"%d %d %d %d 0 %d 0\n" % (total, resident, shared, text, data)


def cpu_mask(cpus: int) -> str:
    """A kernel bitmap of the first ``cpus`` bits, in comma-separated 32-bit groups."""
    bits = (1 << cpus) - 1
    groups = [f"{bits >> shift & 0xFFFFFFFF:08x}" for shift in range(0, max(cpus, 1), 32)]
    text = ",".join(reversed(groups))
    return text if len(groups) > 1 else f"{bits:x}"


def cpu_list(cpus: int) -> str:
    """A kernel list of the first ``cpus`` numbers."""
    return "0" if cpus == 1 else f"0-{cpus - 1}"


def _memory_lines(query: Query) -> list[str]:
    size = sizes(query)
    if not size.total:
        return []  # a zombie has no memory and no such lines
    file = size.resident - size.resident_anonymous - size.resident_shared
    rows = [
        ("VmPeak", size.total), ("VmSize", size.total), ("VmLck", query.process.locked_kb()),
        ("VmPin", 0), ("VmHWM", size.resident),
        ("VmRSS", size.resident), ("RssAnon", size.resident_anonymous), ("RssFile", max(0, file)),
        ("RssShmem", size.resident_shared), ("VmData", size.data), ("VmStk", size.stack), ("VmExe",
        size.text),
        ("VmLib", size.libraries), ("VmPTE", size.page_tables), ("VmSwap", 0), ("HugetlbPages", 0),
    ]  # fmt: skip
    return [f"{name}:\t{kb:8d} kB" for name, kb in rows] + ["CoreDumping:\t0", "THP_enabled:\t1"]


def status(query: Query) -> bytes:
    """The fields of Linux 6.1.  The filter, and the tracer but one in the guest, are detbox's own and not shown."""
    process, thread, view = query.process, query.thread, query.view
    letter = state_letter(query)
    pid = thread.tid if query.of_thread else process.pid
    lines = [
        f"Umask:\t{process.umask & 0o777:04o}",
        f"State:\t{letter} ({STATE_NAMES[letter]})",
        f"Tgid:\t{process.pid}", "Ngid:\t0", f"Pid:\t{pid}", f"PPid:\t{process.ppid}", f"TracerPid:\t{thread.tracer}",
        "Uid:\t" + "\t".join(map(str, process.uids)), "Gid:\t" + "\t".join(map(str, process.gids)),
        f"FDSize:\t{process.fd_size}", "Groups:\t" + " ".join(map(str, process.groups)) + " ",
        f"NStgid:\t{process.pid}", f"NSpid:\t{pid}", f"NSpgid:\t{process.pgrp}", f"NSsid:\t{process.sid}",
        *_memory_lines(query),
        f"Threads:\t{len(process.tids)}", f"SigQ:\t{process.signals_waiting()}/{process.limits[RLIMIT_SIGPENDING][0]}",
    ]  # fmt: skip
    pending = thread.sig_pending if query.is_task else process.sig_pending
    blocked = thread.sig_blocked if query.is_task else process.sig_blocked
    for name, mask in (
        ("SigPnd", pending), ("ShdPnd", process.sig_shared_pending), ("SigBlk", blocked),
        ("SigIgn", process.sig_ignored), ("SigCgt", process.sig_caught), ("CapInh", process.cap_inheritable),
        ("CapPrm", process.cap_permitted), ("CapEff", process.cap_effective), ("CapBnd",
        process.cap_bounding),
        ("CapAmb", process.cap_ambient),
    ):  # fmt: skip
        lines.append(f"{name}:\t{mask & MASK64:016x}")
    nodes = ",".join(["00000000"] * (NODE_WORDS - 1) + ["00000001"])
    lines += [
        f"NoNewPrivs:\t{process.no_new_privs}",
        f"Seccomp:\t{1 if thread.strict else 2 if process.filters else 0}",
        f"Seccomp_filters:\t{process.filters}",
        "Speculation_Store_Bypass:\tnot vulnerable", "SpeculationIndirectBranch:\talways enabled",
        f"Cpus_allowed:\t{cpu_mask(view.cpus)}", f"Cpus_allowed_list:\t{cpu_list(view.cpus)}",
        f"Mems_allowed:\t{nodes}", "Mems_allowed_list:\t0",
        "voluntary_ctxt_switches:\t0", "nonvoluntary_ctxt_switches:\t0",
    ]  # fmt: skip
    return b"Name:\t" + _escaped_comm(query) + b"\n" + ("\n".join(lines) + "\n").encode()


def _cpu_ns(query: Query) -> int:
    used = query.thread if query.is_task else query.process
    return (used.utime + used.stime) * NS_PER_TICK


def sched(query: Query) -> bytes:
    """The scheduler's view: CPU time is virtual, switches and migrations are not counted."""
    process, ns = query.process, _cpu_ns(query)
    number = query.thread.tid if query.of_thread else process.pid
    nice = query.thread.nice if query.of_thread else process.nice
    milliseconds = f"{ns // 1_000_000}.{ns % 1_000_000:06d}"
    rows: list[tuple[str, object]] = [
        ("se.exec_start", milliseconds), ("se.vruntime", milliseconds), ("se.sum_exec_runtime", milliseconds),
        ("se.nr_migrations", 0), ("nr_switches", 0), ("nr_voluntary_switches", 0),
        ("nr_involuntary_switches", 0), ("se.load.weight", 1048576), ("policy", 0), ("prio", 120 + nice),
        ("clock-delta", 0),
    ]  # fmt: skip
    head = b"%s (%d, #threads: %d)\n" % (_comm(query), number, len(process.tids))
    lines = ["-" * 67, *(f"{name:<45s}:{value!s:>21s}" for name, value in rows)]
    return head + ("\n".join(lines) + "\n").encode()


def schedstat(query: Query) -> bytes:
    """CPU time in ns, time waiting for a CPU, slices."""
    return b"%d 0 0\n" % _cpu_ns(query)


def children(query: Query) -> bytes:
    """The children of the thread's process, in order of their numbers, shown at its first thread."""
    if query.thread.tid != query.process.pid:
        return b""
    pids = sorted(p.pid for p in query.view.processes.values() if p.ppid == query.process.pid)
    return b"".join(b"%d " % pid for pid in pids)


def fdinfo(query: Query) -> bytes:
    """The kernel's text with mount and inode numbers replaced.

    eventfd, epoll, timerfd and others add lines of their own; of those, clocks and host numbers are dropped.
    """
    raw = query.reader(query.path)
    mount_id = next((m.mount_id for m in query.view.mounts if m.point == b"/"), 1)
    lines = []
    for line in raw.splitlines():
        key = line.split(b":", 1)[0]
        if key == b"mnt_id":
            lines.append(b"mnt_id:\t%d" % mount_id)
        elif key in (b"ino", b"it_value", b"settime flags", b"eventfd-id") or line.startswith(b"inotify"):
            continue
        elif key == b"tfd":  # epoll: "tfd: 5 events: 19 data: 5  pos:0 ino:1 sdev:6"
            lines.append(line.split(b"  pos:", 1)[0])
        else:
            lines.append(line)
    return b"".join(line + b"\n" for line in lines)


def limits(query: Query) -> bytes:
    """The virtual limits; the kernel's own are wider."""
    return text(query.process.limits).encode()


def id_map(query: Query) -> bytes:
    """What users are called in the process's user namespace, and whether setgroups(2) is allowed there."""
    return query.process.id_map(query.path.rpartition(b"/")[2].decode())


def auxv(query: Query) -> bytes:
    """What is on the program's stack; the kernel's saved copy shows the host's processor and kernel."""
    return query.process.auxv
