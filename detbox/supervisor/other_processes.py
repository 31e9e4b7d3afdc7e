"""Which threads are counted for the sake of other processes, and how much that may cost in a whole run.

Virtual time stands still while a thread computes without a call, for other processes as well.  To count all threads
while anybody else could run would make everything dearer, so there are a few reasons only, and each of them has an
account of its own for the whole run.  All that the accounts consist of is determined by the guest.  See
docs/counting.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING

from detbox.handlers import timers
from detbox.kernel.numbers import NUMBERS
from detbox.records import record
from detbox.scheduler.core import FAR, NAP, Awaited
from detbox.supervisor import signals
from detbox.supervisor.copying import FEW_STEPS
from detbox.supervisor.giving_way import (
    BEGIN_US,
    COPY_US,
    EARNED_BY_WAITS,
    LINGER,
    LINGER_NS,
    SPIN_US,
    TURN,
    WAITED,
)
from detbox.supervisor.looks import SPINS, looks_of
from detbox.supervisor.stretch import GAVE_WAY, PER_NS, PER_NS_LIMIT, Stretch
from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.decision import Decision, Park
    from detbox.supervisor.copying import Copying
    from detbox.supervisor.loop import Handler, Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task


class Reason(Enum):
    """Why a thread is counted."""

    NAP = "a process above it sleeps for 10 ms at most, again and again: it looks whether something is done"
    SHORT = "another process sleeps for 100 ms at most, or one above it waits with such a timeout"
    LONG = "another process sleeps, or one above it waits with a timeout or a timer"
    FAR = "a process above it sleeps for 10 s or more, and has begun to when this one was there"
    WATCHED = "the same, of another process: mostly a watchdog"
    BACKGROUND = (
        "it is a shell's background job, and that shell, or what it runs in the foreground, is ready; "
        "or its parent waits for another child, and that one is ready"
    )
    FIRST = "it is the run's first process, and another one is ready"


#: For their sake all the time passes that a turn stands for, also behind times that come meanwhile, and what was spent
#: on it is given back: natively it takes as long, and who sleeps would wait for ever when all is spent.
WAITED_FOR = frozenset((Reason.SHORT, Reason.LONG, Reason.FAR, Reason.WATCHED))
#: Those for which waits for a time are heeded.
HEEDED = WAITED_FOR | {Reason.NAP}
#: What may be spent for each of them in a run: us by the figures below and in giving_way.py, and instructions.
LIMITS = {
    Reason.NAP: (40_000, 1 << 28),
    Reason.SHORT: (600_000, 1 << 34),
    Reason.LONG: (1_000_000, 1 << 35),
    Reason.FAR: (500_000, 1 << 33),
    Reason.WATCHED: (50_000, 1 << 31),
    Reason.BACKGROUND: (600_000, 1 << 33),
    Reason.FIRST: (30_000, 1 << 30),
}
SHORT = 100_000_000
#: Others that are ready have their turns after so many ns: what a shell has started first is done first, unless that
#: takes for ever.  After the first turn they come sooner, and then after twice as long each time.
TURN_FIRST, TURN_BACKGROUND, LONGEST_TURN = 10_000_000, 250_000_000, 7
#: A stretch that a call has ended takes time if it had so many instructions.
LONG_WORK = 20_000_000 * PER_NS
#: What a call in a copy costs, in us.
CALL_US = 2
#: What a beginning costs, with the end that it comes to soon in a script's short programs.
ENTRY_US = 600
#: What each further process costs: it is given what its like have of copies, and executes them.
PROCESS_US = 20_000
_STATE = "other_processes"  # in a process's data
_SINCE = "since"  # likewise: when it was forked, or has executed its program
#: In a process's data: the shell whose background job it is, or None.
BACKGROUND = "background"
#: Likewise: it has had a timer that expires soon.
_HAS_TIMER = "has_timer"
#: Likewise: the thread that waits for another child than its ancestor, and that child; and the job of a shell with job
#: control that it belongs to.
_ASIDE, OWN_GROUP = "aside", "own_group"
_FIRST_CALLS = ("open", "openat", "ioctl")
#: Who has more children than that is not looked at.
MANY = 64
_READS = frozenset(NUMBERS[name] for name in ("read", "readv", "recvfrom", "recvmsg"))
_JOB_SIGNALS = signals.bit(2) | signals.bit(3)  # SIGINT and SIGQUIT

#: When others are to go on, in ns from now, why, and how many instructions stand for a nanosecond.
_Candidate = tuple[int, Reason, int]


@record
class _Account:
    """What has been spent for one reason, and may be."""

    most: int
    most_counted: int
    spent: int = 0
    counted: int = 0

    @property
    def open(self) -> bool:
        return self.spent < self.most and self.counted < self.most_counted

    def give_back(self, ns: int) -> None:
        """So much time has passed, of which a quarter may be spent."""
        self.spent = max(self.spent - ENTRY_US - ns * PER_NS // EARNED_BY_WAITS, 0)


@record
class _State:
    """What is known of a process: ``made`` copies in its memory ``mm``."""

    mm: object
    made: int
    spins: int = 0
    lingers: int = 0
    reason: Reason | None = None


class OtherProcesses:
    """The accounts of one run.

    ``heard(task)``: called when a thread is counted (the first process: when it gives way), for who keeps the results
    of programs.
    """

    def __init__(self, sup: Supervisor, copying: Copying) -> None:
        self.sup = sup
        self.copying = copying
        self.accounts = {reason: _Account(*limits) for reason, limits in LIMITS.items()}
        self.heard: Callable[[Task], None] = lambda task: None
        sup.fork_hooks.append(self._on_fork)
        sup.exec_hooks.append(self._on_exec)
        sup.m.scheduler.parent_waits = self._parent_waits
        for number in map(NUMBERS.__getitem__, _FIRST_CALLS):
            handler = sup.table[number]
            if handler is not None:
                sup.table[number] = self._watched(handler)

    # -- who may be concerned ------------------------------------------------------------

    def _on_fork(self, m: Machine, parent: Process, child: Process) -> None:
        child.data[_SINCE] = m.clock.now
        for key in (BACKGROUND, _ASIDE, OWN_GROUP):
            if parent.data.get(key) is not None:
                child.data[key] = parent.data[key]
                child.counted = True
        if parent.pid == self.sup.main_pid and self.accounts[Reason.FIRST].open:
            parent.counted = True
        if any(self._timer(each) is not None for each in child.ancestors() if each.counted):
            child.counted = True

    def _parent_waits(self, task: Task, park: Park) -> None:
        """A thread waits without a limit of time while several children of its process live.

        If it is for one of them (or it reads, most likely what the last one writes), the others are computing aside.
        """
        if len(task.process.children) > MANY or not self.accounts[Reason.BACKGROUND].open:
            return
        children = [child for child in task.process.children if child.status is None]
        awaited = None
        if park.extra.get("child"):
            awaited = next((child for child in children if child.pid == park.extra["child"]), None)
        elif park.fds and task.nr in _READS and children:
            awaited = children[-1]
        if awaited is None or len(children) == 1:
            return
        aside = [child for child in children if child is not awaited]
        for other in self.sup.m.processes.values():
            if other in aside or any(each in aside for each in other.ancestors()):
                other.data[_ASIDE] = task, awaited
                other.counted = True

    def armed(self, process: Process) -> None:
        """A process has got a timer: what is below it may have to give way."""
        if self._timer(process) is not None:
            process.data[_HAS_TIMER] = True
            for other in self.sup.m.processes.values():
                if process in other.ancestors():
                    other.counted = True

    def _watched(self, handler: Handler) -> Handler:
        def call(m: Machine, task: Task, arguments: Args) -> Decision:
            process = task.process
            if process.path != "1" and BACKGROUND not in process.data:
                self._look_at_job(m, task)
            return handler(m, task, arguments)

        return call

    def _on_exec(self, m: Machine, task: Task) -> None:
        task.process.data[_SINCE] = m.clock.now
        if task.process.path != "1" and task.process.vfork_parent is None:
            self._look_at_job(m, task)

    @staticmethod
    def _look_at_job(m: Machine, task: Task) -> None:
        """A forked process opens its first file, or asks for its terminal, or executes a program: is it a shell's job?

        A background job ignores the signals of the keyboard (POSIX, Asynchronous AND-OR Lists), before that or after;
        where the shell has job control each job has a process group of its own.
        """
        process, shell = task.process, task.process.parent
        job = process.data.setdefault(BACKGROUND, None)
        if job is not None or shell is None or not shell.tasks or not (m.scheduler.ready or m.scheduler.deferred):
            return
        if signals.pending(m, task).ignored & _JOB_SIGNALS != _JOB_SIGNALS:
            if process.path != "1" and os.getpgid(process.pid) == process.pid:
                process.data[OWN_GROUP] = process
                process.counted = True
            return
        if signals.pending(m, next(iter(shell.tasks.values()))).ignored & _JOB_SIGNALS != _JOB_SIGNALS:
            process.data[BACKGROUND] = shell
            process.counted = True

    # -- the reasons ---------------------------------------------------------------------

    def concerned(self, task: Task) -> bool:
        """Whether there may be a reason to count a thread: the first question, and a cheap one."""
        return task.process.counted or bool(self.sup.m.scheduler.awaited)

    def waits(self, task: Task) -> bool:
        """Whether a thread is to be counted, since other processes wait."""
        return self._found(task) is not None

    def begin(self, task: Task) -> Stretch | None:
        """The stretch that a thread whose call is about to be answered is counted for; None: it is not."""
        found, inside, new = self._found(task), self.copying.inside(task), _STATE not in task.process.data
        if found is None and not inside:
            return None
        state = self._state(task)
        if found is None:
            if not state.lingers:
                return None
            state.lingers -= 1
            total = LINGER_NS * PER_NS
            return Stretch(total, min(total, looks_of(task, state.spins).left), others=True, idle=True)
        ns, reason, per_ns = found
        state.lingers, state.reason = 0 if reason is Reason.FIRST else LINGER, reason
        state.made = self.copying.made(task)
        account = self.accounts[reason]
        if not inside:
            account.spent += BEGIN_US if reason is Reason.FIRST else ENTRY_US
        if new and reason is not Reason.FIRST:
            account.spent += PROCESS_US
        if reason is not Reason.FIRST:
            self.heard(task)
        clock = self.sup.m.clock
        deadline = clock.next_deadline()
        if deadline is not None:
            ns = min(ns, deadline - clock.now)
        total = max(ns, TURN) * per_ns
        most = self.copying.made(task) + (account.most - account.spent) // COPY_US
        piece = min(total, looks_of(task, state.spins).left)
        whole = reason in WAITED_FOR
        return Stretch(total, piece, others=True, reason=reason, most=most, per_ns=per_ns, whole=whole)

    def _found(self, task: Task) -> _Candidate | None:
        """The reason to count a thread; None: nobody waits."""
        process = task.process
        state: _State | None = process.data.get(_STATE)
        if process.vfork_parent is not None or self.copying.stepped(process)[0] >= FEW_STEPS:
            return None
        found = None
        for each in self._candidates(task, state):
            if self.accounts[each[1]].open and (found is None or each[0] < found[0]):
                found = each
        return found

    def _candidates(self, task: Task, state: _State | None) -> Iterator[_Candidate]:
        process, scheduler = task.process, self.sup.m.scheduler
        if scheduler.awaited:
            yield from self._awaited(task)
        if not process.counted:
            return
        each = process.parent
        while each is not None:
            if each.counted and each.mm is not process.mm and (due := self._timer(each)) is not None:
                yield due, Reason.LONG, PER_NS_LIMIT
            each = each.parent
        if scheduler.ready or scheduler.deferred:
            yield from self._turns(task, state)

    def _awaited(self, task: Task) -> Iterator[_Candidate]:
        """When times come that others wait for."""
        process, scheduler, now = task.process, self.sup.m.scheduler, self.sup.m.clock.now
        spent = []
        for other, awaited in scheduler.awaited.items():
            if other.process is process:
                continue
            far = awaited.length >= FAR
            above = (far or not self._heeded_by_all(awaited)) and other.process in process.ancestors()
            if far and awaited.deadline - awaited.length < process.data.get(_SINCE, 0):
                continue  # it has nothing to do with this one, or is its watchdog
            if above or self._heeded_by_all(awaited):
                left = awaited.deadline - now if other.state is State.PARKED else 0
                if not (awaited.sleeps or awaited.told) and GAVE_WAY not in task.data:
                    left = min(left, TURN_FIRST)  # what it waits for may be there
                reason = Reason.SHORT if awaited.length <= SHORT else Reason.LONG
                if awaited.nap or far:
                    reason = Reason.NAP if awaited.nap else Reason.FAR if above else Reason.WATCHED
                if self.accounts[reason].open:
                    yield left, reason, PER_NS if awaited.sleeps and not far else PER_NS_LIMIT
                elif reason is not Reason.WATCHED or not other.process.children:
                    spent.append(other)
        # Thousands may sleep, and all are gone through at each call.
        for other in spent:
            del scheduler.awaited[other]

    @staticmethod
    def _heeded_by_all(awaited: Awaited) -> bool:
        return awaited.sleeps and (awaited.length > NAP or awaited.first)

    def _turns(self, task: Task, state: _State | None) -> Iterator[_Candidate]:
        """When others that are ready have their turns."""
        process, times = task.process, task.data.get(GAVE_WAY, 0)
        scheduler, shell = self.sup.m.scheduler, process.data.get(BACKGROUND)
        limited = [each for each in process.ancestors() if _HAS_TIMER in each.data]
        first = process.pid == self.sup.main_pid and self.accounts[Reason.FIRST].open
        aside, job = process.data.get(_ASIDE), process.data.get(OWN_GROUP)
        if not (times or shell or limited or first or aside or job):
            return
        others = [each.process for each in (*scheduler.ready, *scheduler.deferred) if each.process is not process]
        again = TURN << min(times, LONGEST_TURN)
        if not others:
            return
        if times and state is not None and state.reason is not None:
            yield again, state.reason, PER_NS
        if limited and any(each in limited or process in each.ancestors() for each in others):
            yield again if times else TURN_FIRST, Reason.LONG, PER_NS
        if first:
            yield min(again, TURN_FIRST) if times else TURN_FIRST, Reason.FIRST, PER_NS
        if not self.accounts[Reason.BACKGROUND].open:
            return
        if shell is not None and (
            any(each.process is shell for each in scheduler.ready) or any(_foreground(each, shell) for each in others)
        ):
            yield again if times else TURN_BACKGROUND, Reason.BACKGROUND, PER_NS
        elif job is not None and any(_before(job, each) for each in others):
            yield again if times else TURN_BACKGROUND, Reason.BACKGROUND, PER_NS
        elif aside is not None:
            waiting, child = aside
            if waiting.state is State.PARKED and any(each is child or child in each.ancestors() for each in others):
                yield again if times else TURN_BACKGROUND, Reason.BACKGROUND, PER_NS

    @staticmethod
    def _timer(process: Process) -> int | None:
        """In how many ns a process's timer sends its signal, if that is soon."""
        due = timers.next_signal(process)
        return due[0] if due is not None and due[0] < FAR else None

    # -- what has been spent -------------------------------------------------------------

    def _state(self, task: Task) -> _State:
        data, mm = task.process.data, task.process.mm
        state: _State | None = data.get(_STATE)
        if state is None or state.mm is not mm:
            state = data[_STATE] = _State(mm, self.copying.made(task))
        return state

    def counted(self, task: Task, stretch: Stretch, instructions: int) -> None:
        """So many were counted, and a call came first."""
        passed = instructions >= LONG_WORK and stretch.reason not in (Reason.FAR, Reason.WATCHED)
        self._spend(task, CALL_US, instructions, stretch.per_ns if passed else 0)

    def reached(self, task: Task, stretch: Stretch) -> None:
        """The whole stretch was counted."""
        self.heard(task)
        self._spend(task, BEGIN_US, stretch.total, stretch.per_ns)
        self.sup.m.scheduler.collect()
        task.data[GAVE_WAY] = task.data.get(GAVE_WAY, 0) + 1
        task.process.counted = True

    def spins(self, task: Task, stretch: Stretch) -> None:
        """The thread was found to spin."""
        state = self._state(task)
        state.spins += 1
        if state.spins > SPINS and state.reason is not None:
            self.accounts[state.reason].spent += SPIN_US

    def _spend(self, task: Task, spent: int, instructions: int, per_ns: int = 0) -> None:
        """``per_ns``: how many of them stand for a nanosecond that has passed, if it has."""
        state = self._state(task)
        if state.reason is None:
            return
        account, made = self.accounts[state.reason], self.copying.made(task)
        account.spent += spent + COPY_US * (made - state.made)
        if per_ns and state.reason in WAITED_FOR:
            account.give_back(instructions // per_ns)
        else:
            account.counted += min(instructions, WAITED)
        state.made = made
        if not any(self.accounts[each].open for each in HEEDED):
            self.sup.m.scheduler.heed_nobody()


def _foreground(process: Process, shell: Process) -> bool:
    """Whether a process is what a shell has started other than as a background job."""
    return process.data.get(BACKGROUND) is not shell and shell in process.ancestors()


def _before(job: Process, process: Process) -> bool:
    """Whether a shell is ready that has started a job with a process group of its own, or what it has started since."""
    shell, other = job.parent, process.data.get(OWN_GROUP, process)
    if shell is None or process is shell:
        return shell is not None
    return other is not job and other.pid > job.pid and shell in process.ancestors()
