"""Which threads are counted for the sake of others of their process, and how much that may cost.

Virtual time stands still while a thread computes without a call.  If another thread of its process waits for a time to
come, or for its turn, it is executed as copies that count (counting.py), up to that time or for a :data:`TURN`; then
the others go on first.  Each process has a budget for that.  All that it consists of is determined by the guest.  See
docs/counting.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.records import field, record
from detbox.scheduler.core import FAR, FAR_MOST
from detbox.supervisor.copying import FEW_STEPS
from detbox.supervisor.lifecycle import CLONE_CHILD_CLEARTID, clone_arguments
from detbox.supervisor.looks import SPINS, looks_of
from detbox.supervisor.stretch import GAVE_WAY, PER_NS, PER_NS_LIMIT, Stretch
from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.supervisor.copying import Copying
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: After so many ns others that are ready have their turns, and no sooner those that wait for a time.  When a thread has
#: given way to others that have not, its next turns are that short: enough to see what they have done meanwhile.
TURN, GLANCE = 1_000_000, 50_000
#: Who has had so many turns without a call has longer ones, twice as long each time. With long turns the budget is over
#: before each has often seen what the others have done; where all wait for a time, short ones are dear.
TURNS = 16
#: When nothing is left for those that are ready, but a thread is counted since somebody waits for a time, they have
#: their turns after so many ns.
LATE = 128_000_000
#: A thread stays in its copies for so many calls without a reason, and for so many ns after each of them, lest it
#: goes in and out with each call.
LINGER, LINGER_NS = 64, 10_000_000
#: What a process may spend, in us by the figures below: at first, for each call, and for each signal that it handles (a
#: handler begins with a stop, which costs as much as a beginning).  The reserve is for the sake of threads that wait
#: for a time or are new: the ready ones would leave nothing for a limit of time that is set later on.
ALLOWED, RESERVE, EARNED, EARNED_BY_SIGNAL = 150_000, 50_000, 5, 150
#: The same where a runtime takes the processor from its threads, for each so many instructions of turns that came to
#: their end: they have taken some ten times as long.
EARNED_BY_TURNS = 40_000
#: What a turn has cost that others waited for to its end is given back, and as much again as a quarter of the time that
#: it stands for, up to what there was at first: a program that natively takes that long may take a little longer here,
#: and who waits for a time would wait for ever when all is spent.
EARNED_BY_WAITS = 4_000 * PER_NS
COPY_US, BEGIN_US, CALL_US, STEP_US = 12, 150, 12, 30
#: When all of that is spent, so much has to be earned before the thread is counted again, for many calls in a row: to
#: begin for each single one would cost as much, and a loop without end comes behind one that is not counted mostly.
REGAINED = 20_000
#: Till then each kind of call of each thread is counted so many times, so many calls in all, and so many of each thread
#: all the same: a loop without end mostly comes behind one that has not been made before, and maybe in a new thread.
RARE, RARE_CALLS, RARE_OF_THREAD = 2, 256, 8
#: Instructions that may be counted of a process whose runtime does so: they run at a third to nine tenths of their
#: speed.  Of a stretch that others have waited for to its end, no more than :data:`WAITED` are taken: an endless loop
#: takes as long natively.  There is no such limit for others: who waits for a time would wait for ever.
COUNTED, WAITED = 1 << 35, 1 << 32
#: Those that may be counted for the sake of threads that are ready, and as many again for new ones: others always are
#: ready where several compute.  Of a stretch that came to its end a quarter is taken.
FOR_READY = 1 << 28
#: Who has computed for so many instructions up to a call, while others wait for a time, is worth more copies: 1 us is
#: earned by each so many of them, up to so many us in all.  Else a large program is given up while it makes its copies.
LONG, EARNING, MOST_EARNED = 1 << 24, 256, 1_000_000
#: A wait for a time that is far away is mostly a watchdog's, or of who looks after the others from time to time.
#: Threads are counted for its sake from an account of its own: so many us at first, of which each so many instructions
#: up to a call take one; nothing is earned by calls.  A stretch makes copies for what is left, or this at least.
FAR_ALLOWED, FAR_INSTRUCTIONS, FAR_LEAST = 30_000, 1 << 15, 12_000
#: When nothing is left for the sake of threads that are ready, those that a new thread wakes go first, the first so
#: many times: what they do first may be to wait for a time, in an interpreter's lock say.
NEW = 8
#: A runtime's monitor takes the processor from a thread that has computed for so many ns (Go's: forcePreemptNS).
TURN_OF_RUNTIME = 10_000_000
#: Spins end without being counted, too, where they have been found before, and much sooner.  So the first so many that
#: a process's threads are found at (looks.py) are free, and each further one costs so many us.
SPIN_US = 2_000
_ACCOUNT, _FAR_ACCOUNT = "giving_way", "giving_way_far"  # in a process's data
_NEW = "new threads"  # in a process's data: how often those that they wake may still go first, by their numbers
_MANY = 1_000  # so many of them are remembered
_OWN_RUNTIME = "own_runtime"  # in a process's data: it has threads that are not made as pthreads are
_LONG_LOOPS = "long_loops"  # in a process's data: its threads compute for long without a call


@record
class _Account:
    """What has been spent on a process.  ``far``: for the sake of those that wait for a time that is far away."""

    made: int  # copies of its code when they were looked at last, by the account that is not for those
    far: bool = False
    stepped: int = 0  # calls that were stepped over, then
    handled: int = 0  # signals, then
    calls: int = 0
    earned: int = 0
    waited: int = 0
    spent: int = 0
    counted: int = 0
    for_ready: int = 0
    spins: int = 0
    lingers: int = 0
    allowed: int = ALLOWED
    reserve: int = RESERVE
    over: bool = False  # all has been spent, and not enough earned since
    rare: int = 0  # calls that were counted all the same
    kinds: dict[tuple[int, ...], int] = field(default_factory=dict)  # those of them of each kind
    of_threads: dict[int, int] = field(default_factory=dict)  # and of each thread

    @property
    def left(self) -> int:
        """What may be spent."""
        return self.allowed + self.reserve + EARNED * self.calls + self.earned + self.waited - self.spent

    @property
    def enough(self) -> bool:
        """Whether some may be spent now."""
        return self.left > (REGAINED if self.over else 0)

    def has_rare(self, task: Task) -> bool:
        """Whether a thread's call is one that is counted although all has been spent, if there is a reason."""
        if self.rare >= RARE_CALLS and self.of_threads.get(task.tid, 0) >= RARE_OF_THREAD:
            return False
        return self.kinds.get((task.tid, task.nr, task.args[0]), 0) < RARE

    def made_rare(self, task: Task) -> None:
        """It has been."""
        for counts in (self.kinds, self.of_threads):
            if len(counts) >= _MANY:
                counts.clear()
        kind = (task.tid, task.nr, task.args[0])
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.of_threads[task.tid] = self.of_threads.get(task.tid, 0) + 1
        self.rare += 1


class GivingWay:
    """The accounts of one run's processes."""

    def __init__(self, sup: Supervisor, copying: Copying) -> None:
        self.sup = sup
        self.copying = copying
        sup.exec_hooks.append(self._on_exec)
        sup.thread_hooks.append(self._on_thread)

    @staticmethod
    def _on_exec(m: Machine, task: Task) -> None:
        for key in (_ACCOUNT, _FAR_ACCOUNT, _OWN_RUNTIME, _NEW, _LONG_LOOPS):
            task.process.data.pop(key, None)

    @staticmethod
    def _on_thread(parent: Task, child: Task) -> None:
        """Go's runtime has threads that are ready most of the time, and takes the processor from others by itself."""
        if not clone_arguments(parent)[0] & CLONE_CHILD_CLEARTID:
            parent.process.data[_OWN_RUNTIME] = True
        new = parent.process.data.setdefault(_NEW, {})
        if len(new) >= _MANY:
            new.clear()
        new[child.tid] = NEW

    def _account(self, task: Task) -> _Account:
        account: _Account | None = task.process.data.get(_ACCOUNT)
        if account is None:
            account = task.process.data[_ACCOUNT] = _Account(self.copying.made(task))
        return account

    @staticmethod
    def _far_account(task: Task) -> _Account:
        account: _Account | None = task.process.data.get(_FAR_ACCOUNT)
        if account is None:
            account = task.process.data[_FAR_ACCOUNT] = _Account(0, far=True, allowed=FAR_ALLOWED, reserve=0)
        return account

    def _account_of(self, task: Task, stretch: Stretch) -> _Account:
        """The account from which a thread is counted for a stretch."""
        return self._far_account(task) if stretch.far else self._account(task)

    def _able(self, process: Process, account: _Account) -> bool:
        return account.enough and self._worthwhile(process, account)

    def _worthwhile(self, process: Process, account: _Account) -> bool:
        if account.counted >= COUNTED and _LONG_LOOPS in process.data:
            return False
        return self.copying.stepped(process)[0] < FEW_STEPS

    def _is_rare(self, task: Task, account: _Account) -> bool:
        """Whether a call is counted although all has been spent."""
        if not account.over or not account.has_rare(task) or not self._worthwhile(task.process, account):
            return False
        if self._reason(task, account) is None:
            return False
        account.made_rare(task)
        return True

    def went_on(self, task: Task, times: int) -> None:
        """The same as to begin so often, when there was no reason to count the thread."""
        process = task.process
        if not times or not process.counted or len(process.tasks) == 1:
            return
        account = self._account(task)
        for calls in (1, times - 1):
            account.calls += calls
            account.over = not account.enough and _LONG_LOOPS not in process.data

    def uncounted(self, tasks: list[Task]) -> int:
        """How often a process's threads can begin now, and not be counted although others of them are ready."""
        process = tasks[0].process
        account: _Account | None = process.data.get(_ACCOUNT)
        if account is None:
            return 0
        if not self._worthwhile(process, account):
            return _MANY
        if account.enough:  # but not for those that are ready
            if any(each.nr < 0 for each in tasks):
                return 0
            if account.for_ready >= FOR_READY:
                return _MANY
            return min(max((account.spent - account.allowed) // EARNED - account.calls, 0), _MANY)
        return 0 if any(map(account.has_rare, tasks)) else (REGAINED - account.left) // EARNED

    def lets_go_first(self, task: Task) -> bool:
        """Whether those that a thread has woken go first: it is new, and not counted for the sake of ready ones."""
        new: dict[int, int] = task.process.data.get(_NEW, {})
        left = new.pop(task.tid, 0)
        if not left:
            return False
        if left > 1:
            new[task.tid] = left - 1
        account: _Account | None = task.process.data.get(_ACCOUNT)
        if account is None or not self._ready_ones_spent(account) or not self._worthwhile(task.process, account):
            return False
        return account.enough or (account.over and account.has_rare(task))

    @staticmethod
    def _ready_ones_spent(account: _Account) -> bool:
        return account.for_ready >= FOR_READY or account.spent >= account.allowed + EARNED * account.calls

    def waits(self, task: Task) -> bool:
        """Whether a thread is to be counted, since others of its process wait."""
        process = task.process
        if len(process.tasks) == 1:
            return False
        account = self._account(task)
        if self._able(process, account) and self._reason(task, account) is not None:
            return True
        return self._far(task) is not None and self._able(process, self._far_account(task))

    def begin(self, task: Task) -> Stretch | None:
        """The stretch that a thread whose call is about to be answered is counted for; None: it is not."""
        process = task.process
        if len(process.tasks) == 1:
            return None
        account = self._account(task)
        account.calls += 1
        stretch = self._begin(task, account)
        if stretch is None and self._far(task) is not None:
            stretch = self._begin(task, self._far_account(task))
        return stretch

    def _begin(self, task: Task, account: _Account) -> Stretch | None:
        process, enough = task.process, account.enough
        if account.over is enough or _LONG_LOOPS in process.data:
            account.over = not enough and _LONG_LOOPS not in process.data
            enough = account.enough  # which depends on that
        if not (enough and self._worthwhile(process, account)) and not self._is_rare(task, account):
            return None
        reason, inside = self._reason(task, account), self.copying.inside(task)
        if reason is not None:
            account.lingers = LINGER
        elif inside and account.lingers:
            account.lingers -= 1
            reason = LINGER_NS, False
        else:
            return None
        if not inside:
            account.spent += BEGIN_US
        ns, ready = reason
        whole = _LONG_LOOPS not in process.data
        deadline = self.sup.m.clock.next_deadline() if whole else None
        if deadline is not None:  # another process's, maybe
            ns = min(ns, max(deadline - self.sup.m.clock.now, TURN))
        per_ns = PER_NS_LIMIT if account.far else PER_NS
        total = ns * per_ns
        piece = min(total, looks_of(task, self._account(task).spins).left)
        stretch = Stretch(total, piece, others=True, ready=ready, per_ns=per_ns, whole=whole, far=account.far)
        if account.far:
            stretch.most = self.copying.made(task) + max(account.left, FAR_LEAST) // COPY_US
        return stretch

    def _timed(self, process: Process) -> bool:
        """Whether threads of a process wait for a time that is not too far away, but for naps."""
        return bool(process.timed) and self._left(process) <= FAR_MOST

    def _left(self, process: Process) -> int:
        """In how many ns the first time comes that threads of a process wait for."""
        return min(process.timed.values()) - self.sup.m.clock.now

    def _far(self, task: Task) -> int | None:
        """In how many ns the time comes that others of the process wait for, if it is far away, but not too far."""
        process = task.process
        if not process.timed or _OWN_RUNTIME in process.data:
            return None
        left = self._left(process)
        return left if FAR <= left <= FAR_MOST else None

    def _reason(self, task: Task, account: _Account) -> tuple[int, bool] | None:
        """When others of the process are to go on, in ns from now, and whether they are ready; None: nobody waits."""
        process, m = task.process, self.sup.m
        if account.far:
            far = self._far(task)
            if far is not None and any(other.state is State.READY for other in process.tasks.values()):
                far = LATE
            return None if far is None else (far, False)
        left = self._left(process) if process.timed else FAR
        if _LONG_LOOPS in process.data:
            return self._reason_of_runtime(task, account, left)
        used_up = left >= FAR and account.for_ready >= FOR_READY
        counts = left < FAR or (account.for_ready < 2 * FOR_READY and _OWN_RUNTIME not in process.data)
        if left > TURN and m.scheduler.ready and counts:
            others = [other for other in process.tasks.values() if other.state is State.READY]
            if used_up or account.spent >= account.allowed + EARNED * account.calls:
                if LATE < left < FAR and others:
                    left = LATE
                others = [other for other in others if other.nr < 0]
            ready = [GAVE_WAY in other.data for other in others]
            times = task.data.get(GAVE_WAY, 0)
            if not all(ready):
                return GLANCE if times else TURN, True
            if ready:
                return min(TURN << times // TURNS, left), True
        if left >= FAR:
            return None
        return max(left, TURN) if left > 0 else GLANCE, False

    def _reason_of_runtime(self, task: Task, account: _Account, left: int) -> tuple[int, bool] | None:
        """The same where a runtime takes the processor from threads by itself: its monitor's naps come to an end."""
        process, m = task.process, self.sup.m
        for other in process.tasks.values():
            if other.park is not None and "nap" in other.park.extra and other.park.deadline is not None:
                left = min(left, other.park.deadline - m.clock.now)
        if left > TURN_OF_RUNTIME and m.scheduler.ready:
            if any(other.state is State.READY for other in process.tasks.values()):
                return min(TURN_OF_RUNTIME << task.data.get(GAVE_WAY, 0), left), True
        if left >= FAR:
            return None
        return max(left, TURN) if left > 0 else GLANCE, False

    def long_loop(self, task: Task, allowed: int) -> bool:
        """A thread has computed for long, in a process that has a runtime of its own: it is counted if others wait.

        ``allowed``: what the process may spend from now on.
        """
        process, account = task.process, self._account(task)
        process.data[_LONG_LOOPS] = True
        if self._reason(task, account) is None:
            del process.data[_LONG_LOOPS]
            return False
        account.allowed += allowed - account.left
        return self._able(process, account)

    @staticmethod
    def left_of_long_loops(process: Process) -> int:
        """What a process may still spend for that."""
        account: _Account | None = process.data.get(_ACCOUNT)
        if account is None or _LONG_LOOPS not in process.data:
            return 0
        return max(account.left, 0)

    # -- what has been spent -------------------------------------------------------------

    def counted(self, task: Task, stretch: Stretch, instructions: int) -> None:
        """So many were counted, and a call came first."""
        account = self._account_of(task, stretch)
        account.counted += instructions
        account.spent += CALL_US
        if stretch.far:
            account.spent += instructions // FAR_INSTRUCTIONS
        elif stretch.ready:
            account.for_ready += instructions
        elif instructions >= LONG and _LONG_LOOPS not in task.process.data:
            account.earned = min(account.earned + instructions // EARNING, MOST_EARNED)
        self._copied(task, account)

    def reached(self, task: Task, stretch: Stretch) -> None:
        """The whole stretch was counted."""
        account = self._account_of(task, stretch)
        if not (_LONG_LOOPS in task.process.data and self._timed(task.process)):
            account.counted += min(stretch.total, WAITED)
        if _LONG_LOOPS in task.process.data:
            account.allowed += stretch.total // EARNED_BY_TURNS
        elif stretch.ready:
            account.spent += BEGIN_US
            account.for_ready += stretch.total // 4
        else:
            earned = BEGIN_US + stretch.total // EARNED_BY_WAITS
            account.waited += max(min(earned, account.allowed + account.reserve - account.left), 0)
        task.data[GAVE_WAY] = task.data.get(GAVE_WAY, 0) + 1
        self._copied(task, account)

    def spins(self, task: Task, stretch: Stretch) -> None:
        """The thread was found to spin."""
        found = self._account(task)
        found.spins += 1
        if found.spins > SPINS:
            self._account_of(task, stretch).spent += SPIN_US

    def _copied(self, task: Task, account: _Account) -> None:
        made, (_, stepped, handled) = self.copying.made(task), self.copying.stepped(task.process)
        last = self._account(task)
        account.spent += COPY_US * (made - last.made) + STEP_US * (stepped - last.stepped)
        account.spent -= 0 if account.far else EARNED_BY_SIGNAL * (handled - last.handled)
        last.made, last.stepped, last.handled = made, stepped, handled
