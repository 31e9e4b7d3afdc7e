"""Connects the parts of a run: the first process, and what handlers want to hear of."""

from __future__ import annotations

import contextlib
import os
from stat import S_IFREG
from typing import TYPE_CHECKING, Any

from detbox.decision import CONTINUE, Decision, Park
from detbox.errors import HostError, UserError
from detbox.handlers import identity, limits, sysvipc, timers
from detbox.kernel.numbers import NAMES, NUMBERS
from detbox.machine import tracees
from detbox.machine.constants import NAMESPACE_INODES
from detbox.machine.creds import Creds
from detbox.machine.files import NSFS, FileTable, FsContext
from detbox.machine.inodes import VInode
from detbox.machine.program import Program
from detbox.machine.rng import RandomStream
from detbox.recorder.interleaving import Interleaving
from detbox.supervisor.task import Process, State, Task

if TYPE_CHECKING:
    from detbox.recorder.log import Recorder
    from detbox.recorder.real_times import RealTimes
    from detbox.spec import RunSpec
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine

_NSFS_DEV = 0x4


def first_process(sup: Supervisor, pid: int) -> None:
    """Register the guest's first process, which is about to make its first call (execve)."""
    m = sup.m
    process = Process(pid, None, "1")
    process.files = FileTable(m, pid)
    process.fs = FsContext(m, pid)
    uid, gid = user_ids(m.spec.user)
    process.creds = Creds.of(uid, gid, (gid,))
    process.program = Program("run")
    process.rng = RandomStream(m.spec.seed, process.program.name)
    process.start_ns = m.clock.now
    process.argv = tuple(m.spec.command)
    process.comm = os.path.basename(m.spec.command[0])[:15]
    task = Task(pid, process, "1")
    task.state = State.RUNNING
    process.tasks[pid] = task
    m.processes[pid] = process
    m.tasks[pid] = task
    sup.main_pid = pid
    sup.running = 1
    for name, number in NAMESPACE_INODES.items():
        number_namespace(m, pid, name, number)


def number_namespace(m: Machine, pid: int, name: str, number: int) -> None:
    """Give one of a process's namespaces a number, whatever was known of the inode: the kernel uses those again."""
    with contextlib.suppress(OSError):
        st = os.stat(f"{pid}/ns/{name}", dir_fd=m.proc_fd)
        m.data[NSFS], key = st.st_dev, (st.st_dev, st.st_ino)
        m.inodes.table[key] = VInode(key, _NSFS_DEV, number, S_IFREG, m.inodes.epoch_ns)


def user_ids(user: str) -> tuple[int, int]:
    """(uid, gid) of a user as the container's /etc/passwd names it, or as numbers.  Raises UserError."""
    if user == "root":
        return 0, 0
    name, _, group = user.partition(":")
    if name.isdigit():
        return int(name), int(group or name)
    with open("/etc/passwd", "rb") as lines:
        for line in lines:
            fields = line.split(b":")
            if fields[0] == name.encode() and len(fields) > 3:
                return int(fields[2]), int(fields[3])
    raise UserError(f"there is no user {user} in the container", "give --user UID[:GID]")


def install_hooks(sup: Supervisor) -> None:
    """Let handler modules hear of forks, execs and exits."""
    sup.fork_hooks.append(limits.after_fork)
    sup.fork_hooks.append(identity.after_fork)
    sup.exec_hooks.append(timers.after_exec)
    sup.exit_hooks.append(timers.after_exit)
    sup.exit_hooks.append(sysvipc.after_exit)
    sup.exit_hooks.append(tracees.after_exit)
    if sup.m.spec.verbose >= 2:
        sup.observers.append(_print_call)


def _print_call(task: Task, decision: Decision) -> Decision:
    """One line per decision on standard error (``-vv``)."""
    shown = type(decision).__name__ if not isinstance(decision, int) else str(decision)
    if isinstance(decision, Park):
        shown = f"park: {decision.why} until {decision.deadline}"
    arguments = ", ".join(f"{value:#x}" if value > 9 else str(value) for value in task.args)
    line = f"detbox: {task.process.pid}/{task.tid} {NAMES.get(task.nr, task.nr)}({arguments}) = {shown}\n"
    os.write(2, line.encode())
    return decision


def before_record() -> None:
    """Import what a recorded run needs, in the process that starts everything.

    python-ptrace asks ldconfig where the C library is: that process must not be the guest's first.
    """
    from detbox.recorder.calls import parameters

    parameters()


class Observation:
    """What is noted about a run besides its outputs.

    It is made while the host's files are still in reach: the trace is opened then.  Raises HostError.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.leak = NUMBERS[spec.leak] if spec.leak else -1
        self.interleaving = Interleaving()
        self.recorder: Recorder | None = None
        if spec.record is not None:
            self.recorder = self._recorder(spec, spec.record)
        self.real_times: RealTimes | None = None
        if spec.record_times is not None:
            from detbox.recorder.real_times import RealTimes

            self.real_times = RealTimes(_create(spec.record_times, "the file of real times"))

    @staticmethod
    def _recorder(spec: RunSpec, path: str) -> Recorder:
        from detbox.recorder.log import Recorder

        command = [os.fsdecode(word) for word in spec.command]
        described = {"command": command, "epoch_ns": spec.epoch_ns, "seed": spec.seed, "cpus": spec.cpus}
        return Recorder(_create(path, "the trace"), described, spec.record_results)

    def handlers(self, table: dict[int, Any]) -> dict[int, Any]:
        """The handlers of the policy, without the one that a test has taken away."""
        if self.leak >= 0:
            table[self.leak] = lambda m, t, a: CONTINUE
        return table

    def connect(self, sup: Supervisor) -> None:
        """Let the recorder hear of everything."""
        recorder = self.recorder
        if recorder is not None:
            recorder.bind(sup.m)
            sup.observers.append(recorder.on_call)
            sup.fork_hooks.append(recorder.on_fork)
            sup.thread_hooks.append(recorder.on_thread)
            sup.exec_hooks.append(recorder.on_exec)
            sup.exit_hooks.append(recorder.on_exit)
        if self.real_times is not None:
            sup.fork_hooks.append(self.real_times.on_fork)
            sup.exit_hooks.append(self.real_times.on_exit)
        sup.m.console.observer = self._on_output

    def _on_output(self, stream: int, data: bytes) -> None:
        self.interleaving.on_output(stream, data)
        if self.recorder is not None:
            self.recorder.on_output(stream, data)

    def end(self, ended: bool) -> str:
        """The run is over (``ended``: by itself).  Returns why something could not be written, "" if all could."""
        writers = [writer for writer in (self.recorder, self.real_times) if writer is not None]
        return "; ".join(filter(None, [writer.close(ended) for writer in writers]))


def _create(path: str, what: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise HostError(f"{what} {path} cannot be written: {error.strerror}", "give another name") from None
