"""Renderers of /proc files about processors and time: cpuinfo, stat, uptime, loadavg, softirqs."""

from __future__ import annotations

from detbox.cpu import model
from detbox.machine.constants import USER_HZ
from detbox.synth.table import Query
from detbox.synth.view import MachineView

NS_PER_TICK = 1_000_000_000 // USER_HZ
SOFTIRQS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


def cpuinfo(query: Query) -> bytes:
    """The CPU model's own text, so that it agrees with the ``cpuid`` instruction."""
    return model.cpuinfo(query.view.cpu, query.view.cpus).encode()


def cpu_ticks(view: MachineView) -> tuple[int, int, int]:
    """User, system and idle ticks (1/100 second) of all CPUs together.

    Reaped children count through their parents: nothing disappears with a process.
    """
    processes = view.processes.values()
    user = sum(p.utime + p.cutime for p in processes)
    system = sum(p.stime + p.cstime for p in processes)
    if view.idle_ns is not None:
        return user, system, view.idle_ns // NS_PER_TICK
    return user, system, max(0, view.uptime_ns // NS_PER_TICK * view.cpus - user - system)


def stat(query: Query) -> bytes:
    """CPU times in ticks, split evenly over the CPUs, the first one taking the remainders."""
    view = query.view
    totals = cpu_ticks(view)
    lines = ["cpu  {} 0 {} {} 0 0 0 0 0 0".format(*totals)]
    for number in range(view.cpus):
        user, system, idle = (
            total // view.cpus + (total % view.cpus if number == 0 else 0) for total in totals
        )
        lines.append(f"cpu{number} {user} 0 {system} {idle} 0 0 0 0 0 0")
    lines += [
        "intr 0" + " 0" * 64,
        f"ctxt {last_pid(view) * 10}",
        f"btime {view.boot_time_s}",
        f"processes {last_pid(view)}",
        f"procs_running {max(1, running(view))}",
        "procs_blocked 0",
        "softirq 0" + " 0" * len(SOFTIRQS),
    ]
    return ("\n".join(lines) + "\n").encode()


def last_pid(view: MachineView) -> int:
    """The process number given last."""
    return view.last_pid or max((p.tids[-1] for p in view.processes.values()), default=1)


def running(view: MachineView) -> int:
    """How many processes show state R."""
    return sum(1 for p in view.processes.values() if p.state == "R")


def uptime(query: Query) -> bytes:
    """Seconds since boot, and idle seconds of all CPUs together."""
    up = query.view.uptime_ns // 10_000_000
    idle = cpu_ticks(query.view)[2] * 100 // USER_HZ
    return f"{up // 100}.{up % 100:02d} {idle // 100}.{idle % 100:02d}\n".encode()


def loadavg(query: Query) -> bytes:
    """An idle machine: a load would be a measurement of the host."""
    threads = sum(len(p.tids) for p in query.view.processes.values())
    return f"0.00 0.00 0.00 {max(1, running(query.view))}/{threads} {last_pid(query.view)}\n".encode()


def version(query: Query) -> bytes:
    """uname's values in the kernel's banner."""
    view = query.view
    text = f"Linux version {view.release} (detbox@{view.hostname}) (gcc, GNU ld) {view.version}\n"
    return text.encode()


def _cpu_header(query: Query, indent: int) -> str:
    return " " * indent + "".join(f"CPU{number:<8d}" for number in range(query.view.cpus)) + "\n"


def interrupts(query: Query) -> bytes:
    """No interrupt has ever been counted."""
    zeros = f" {0:10d}" * query.view.cpus
    rows = (("NMI", "Non-maskable interrupts"), ("LOC", "Local timer interrupts"),
            ("RES", "Rescheduling interrupts"), ("CAL", "Function call interrupts"),
            ("TLB", "TLB shootdowns"))  # fmt: skip
    body = "".join(f"{name}:{zeros}   {text}\n" for name, text in rows)
    return (_cpu_header(query, 11) + body + "ERR:          0\nMIS:          0\n").encode()


def softirqs(query: Query) -> bytes:
    """No deferred interrupt has ever been counted."""
    zeros = f" {0:10d}" * query.view.cpus
    return (_cpu_header(query, 20) + "".join(f"{name:>12s}:{zeros}\n" for name in SOFTIRQS)).encode()


def schedstat(query: Query) -> bytes:
    """Version 15 of the format with all counters at zero."""
    jiffies = 4294937296 + query.view.uptime_ns // NS_PER_TICK  # jiffies start five minutes before they wrap
    lines = ["version 15", f"timestamp {jiffies}"]
    lines += [f"cpu{number} 0 0 0 0 0 0 0 0 0" for number in range(query.view.cpus)]
    return ("\n".join(lines) + "\n").encode()


def softnet_stat(query: Query) -> bytes:
    """One line of zero counters per CPU; column 13 is the CPU's number."""
    zeros = "00000000 " * 12
    return "".join(f"{zeros}{number:08x} 00000000 00000000\n" for number in range(query.view.cpus)).encode()
