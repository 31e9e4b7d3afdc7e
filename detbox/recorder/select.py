"""Which events of a trace are wanted: by process, call, path and virtual time."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from fnmatch import translate

from detbox.errors import UserError
from detbox.kernel.numbers import NUMBERS
from detbox.recorder.calls import parameters, path_arguments
from detbox.recorder.files import Files
from detbox.recorder.format import Event, Kind
from detbox.recorder.read import Thread, Threads

_NS = 1_000_000_000


def _named(text: str) -> frozenset[int]:
    return frozenset(NUMBERS[name] for name in text.split() if name in NUMBERS)


#: Classes of calls, in the manner of strace.
CLASSES: dict[str, frozenset[int]] = {
    "%file": frozenset(path_arguments()) | _named("getcwd fchdir"),
    "%desc": frozenset(
        number for number, labels in parameters().items() if any(label in ("fd", "dfd", "dirfd") for _, label in labels)
    ) | _named("dup dup2 dup3 pipe pipe2 select pselect6 poll ppoll close_range copy_file_range sendfile splice"),
    "%process": _named("fork vfork clone clone3 execve execveat exit exit_group wait4 waitid kill tkill tgkill "
                       "pidfd_open pidfd_send_signal set_tid_address"),
    "%network": _named("socket socketpair bind listen accept accept4 connect getsockname getpeername sendto recvfrom "
                       "sendmsg recvmsg sendmmsg recvmmsg setsockopt getsockopt shutdown"),
    "%signal": frozenset(number for name, number in NUMBERS.items() if name.startswith(("rt_sig", "signalfd")))
    | _named("kill tkill tgkill sigaltstack pause alarm setitimer getitimer pidfd_send_signal"),
    "%memory": _named("mmap munmap mremap mprotect brk madvise msync mlock munlock shmat shmdt"),
    "%time": _named("clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times alarm setitimer "
                    "getitimer timer_create timer_settime timer_gettime timerfd_create timerfd_settime "
                    "timerfd_gettime getrusage"),
    "%ipc": frozenset(number for name, number in NUMBERS.items() if name.startswith(("shm", "sem", "msg", "mq_"))),
    "%thread": _named("futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list gettid"),
}  # fmt: skip
CLASSES["%net"] = CLASSES["%network"]


@dataclass
class Selection:
    """Asked about every event in order, since it follows descriptors.  None: everything fits."""

    lineage: str | None = None
    pid: int | None = None
    command: re.Pattern[str] | None = None
    numbers: frozenset[int] | None = None
    path: re.Pattern[str] | None = None
    start_ns: int = 0
    end_ns: int | None = None
    _files: Files = field(default_factory=Files)

    @classmethod
    def of(
        cls, process: str | None, command: str | None, call: str | None, path: str | None, time: str | None
    ) -> Selection:
        """A selection as the command line spells it.  Raises UserError."""
        chosen = cls()
        if process is not None:
            chosen.lineage, chosen.pid = _process(process)
        if command is not None:
            chosen.command = _pattern(command)
        if call is not None:
            chosen.numbers = _calls(call)
        if path is not None:
            chosen.path = _pattern(path)
        if time is not None:
            chosen.start_ns, chosen.end_ns = _times(time)
        return chosen

    def fits(self, event: Event, threads: Threads) -> bool:
        """Whether the event is wanted."""
        paths = self._files.learn(event, threads) if self.path is not None else ()
        thread = threads.of(event)
        return (
            self._fits_process(thread)
            and (self.numbers is None or (event.kind is Kind.CALL and event.nr in self.numbers))
            and (self.path is None or self._fits_path(event, paths))
            and self._fits_time(event)
        )

    def _fits_process(self, thread: Thread) -> bool:
        if self.lineage is not None and not (thread.lineage + ".").startswith((self.lineage + ".", self.lineage + "/")):
            return False
        if self.pid is not None and thread.pid != self.pid:
            return False
        return self.command is None or self.command.match(thread.command) is not None

    def _fits_path(self, event: Event, paths: tuple[bytes, ...]) -> bool:
        assert self.path is not None
        texts = {*paths, *filter(None, (event.path, event.path2))}
        return any(self.path.match(os.fsdecode(text)) for text in texts)

    def _fits_time(self, event: Event) -> bool:
        if not self.start_ns and self.end_ns is None:
            return True
        if event.kind not in (Kind.CALL, Kind.EXEC, Kind.EXIT):
            return False
        return event.time_ns >= self.start_ns and (self.end_ns is None or event.time_ns <= self.end_ns)


def _process(text: str) -> tuple[str | None, int | None]:
    if text.startswith("pid:"):
        text = text.removeprefix("pid:")
        if not text.isdigit():
            raise UserError(f"--process pid:{text}: not a number")
        return None, int(text)
    if not re.fullmatch(r"\d+(\.\d+)*(/\d+)?", text):
        raise UserError(f"--process {text}: not a lineage such as 1.2", "pid:N chooses a process by its number")
    return (text, None) if text == "1" or "." in text or "/" in text else (None, int(text))


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


def _calls(text: str) -> frozenset[int]:
    numbers: set[int] = set()
    for name in filter(None, text.split(",")):
        if name in CLASSES:
            numbers |= CLASSES[name]
        elif name in NUMBERS:
            numbers.add(NUMBERS[name])
        else:
            known = "the classes are " + ", ".join(sorted(CLASSES)) if name.startswith("%") else ""
            raise UserError(f"--call: no such system call: {name}", known)
    return frozenset(numbers)


def _times(text: str) -> tuple[int, int | None]:
    start, dash, end = text.partition("-")
    try:
        if not dash or not (start or end):
            raise ValueError
        limits = int(float(start or 0) * _NS), int(float(end) * _NS) if end else None
    except ValueError:
        raise UserError(f"--time {text}: not a range of seconds", "for example 0.5-2, -2 or 0.5-") from None
    return limits
