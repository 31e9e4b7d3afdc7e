"""Starts a program whose like has been started before: its memory is put in order on the way to its first instruction.

The first start of a program (image.py) comes to a stop, in which it is looked at what has become of the calls that
the thread has made.  The same file under the same interpreter at the same addresses gets the same results, so that
later ones need no stop.  The thread makes room for trampolines, and goes on there: one of its calls is trapped, which
gives the descriptor of the guest's clock, and meanwhile the code that it began with is what it was before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from detbox.cpu import auxv, stub
from detbox.cpu.edits import Edit
from detbox.errors import InternalError
from detbox.handlers.limits import may_refuse_mappings
from detbox.kernel import _native, registers
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import BOOT_NS
from detbox.records import NamedTuple
from detbox.supervisor import injection, memory, placing
from detbox.supervisor.patching import AREA, ORIGINALS, ExecPlan

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.task import Task

#: What tells one start from another: the file, and where the kernel has put it, its interpreter and the vDSO.
Key = tuple[int, ...]
_PAGE = 4096
_SIG_SETMASK, _MASK_SIZE = 2, 8


class Own(NamedTuple):
    """What a program has of ours.

    ``area``: where the room for trampolines begins, directly below the ``interpreter``.  ``shown``: its vDSO's address.
    """

    area: int
    interpreter: int
    shown: int


class Again(NamedTuple):
    """How programs are started that are like one that has been.

    ``lead``: the code that makes room and goes on there, ``at`` the place behind the trampolines; it is put to
    ``lead_at``, instead of the bytes ``old``.  ``ending``: what is executed there; the signal mask has to be behind it.
    """

    own: Own
    plan: ExecPlan
    entry: int
    lead_at: int
    old: bytes
    lead: bytes
    at: int
    ending: bytes

    def begin(self, sup: Supervisor, task: Task, rewritten: Callable[[int], auxv.Rewrite]) -> bool:
        """Start the program of a thread that is in its PTRACE_EVENT_EXEC stop; False: as if it were the first.

        ``rewritten``: its stack, for an address of the guest's vDSO.
        """
        m, process, tid, plan = sup.m, task.process, task.tid, self.plan
        if may_refuse_mappings(process):
            return False
        if registers.get(tid).rip != self.entry:
            return False
        if not memory.apply(tid, [Edit(self.lead_at, self.old, self.lead), *plan.edits]):
            return False
        result, mask = rewritten(self.own.shown), _native.get_sigmask(tid)
        notif, _, _, given, address = injection.up_to_call(task, self.lead_at, result.rsp, m.listener)
        if given[0] or not self.at < address < self.own.interpreter:
            raise InternalError(f"a program's start came to {address:#x}, with {given[0]}")
        number = _native.add_fd(m.listener, notif, sup.guest_clock.fd, -1, True, False)
        if number < 0:
            result = rewritten(0)  # it has no room for a descriptor
        trampolines = self.own.area, plan.code_from(m.clock.now - BOOT_NS)
        _native.write_places(tid, [*result.edits, trampolines, self._blocked(mask)])
        memory.apply(tid, [Edit(self.lead_at, b"", self.old)])
        process.data.pop(placing.MOVED_DOWN, None)
        process.data[ORIGINALS] = plan.originals
        sup.grant(task)
        _native.reply(m.listener, notif, max(number, 0), min(number, 0), 0)
        sup.released(task)
        task.exposed = True
        return True

    def _blocked(self, mask: int) -> tuple[int, bytes]:
        return self.at + len(self.ending), mask.to_bytes(_MASK_SIZE, "little")

    def leave_alike(self, task: Task) -> None:
        """Let a program that was started as if it were the first find the same in its memory as later ones."""
        _native.write_places(task.tid, [(self.at, self.ending), self._blocked(_native.get_sigmask(task.tid))])


def learn(
    task: Task, own: Own, plan: ExecPlan, first: Sequence[stub.Call], calls: Sequence[stub.Call]
) -> Again | None:
    """How to start programs like the one that is about to execute its first instruction; None: there is no room.

    ``first``: the calls that make room.  ``calls``: those that are made there; one is trapped, which has the result of
    the one before, if there is one.
    """
    entry = registers.get(task.tid).rip
    at = own.area + (len(plan.code) + 15) // 16 * 16
    size = len(_ending(calls, entry, 0))
    ending = _ending(calls, entry, at + size)
    lead = stub.leading_on(tuple(first), ending, at)
    lead_at = _free_page(entry, plan)
    if lead_at is None or at + size + _MASK_SIZE > own.area + AREA or len(lead) > _PAGE:
        return None
    old = memory.peek(task.tid, lead_at, len(lead))
    return Again(own, plan, entry, lead_at, old, lead, at, ending)


def _ending(calls: Sequence[stub.Call], entry: int, blocked_at: int) -> bytes:
    """Makes the calls, and opens the signals again that are not in the mask."""
    open_signals = (NUMBERS["rt_sigprocmask"], _SIG_SETMASK, blocked_at, 0, _MASK_SIZE)
    return stub.ending((*calls, open_signals), entry)


def _free_page(entry: int, plan: ExecPlan) -> int | None:
    """A page of the interpreter's code in which the plan changes nothing."""
    changed = {end // _PAGE for edit in plan.edits for end in (edit.address, edit.address + len(edit.old))}
    last = max((edit.address for edit in plan.edits), default=entry)
    pages = range(entry - entry % _PAGE, max(last, entry) + 1, _PAGE)
    return next((page for page in pages if page // _PAGE not in changed), None)


def key(st: os.stat_result, found: dict[int, int]) -> Key:
    """Of a start.  ``found``: the auxiliary vector."""
    where = (found.get(kind, 0) for kind in (auxv.AT_SYSINFO_EHDR, auxv.AT_BASE, auxv.AT_ENTRY))
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, *where
