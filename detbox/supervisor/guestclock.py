"""The page that all guest processes share with the supervisor, and in which they look at the clock by themselves.

A look is what `machine.clock` says that it is, wherever it is made: it costs the same, and the supervisor accounts
for it when it next hears of the thread.  One thread runs at a time, so the page is that thread's: before it
goes on, the page gets the time, its CPU time, what a look costs, and the latest time that the thread may see without
asking.  That is where the next timer expires, or where the thread will have looked so often in a row that its looks
get dearer.

Most threads never look at a clock, and pay nothing for this: a thread's first look is a call, and the page is
prepared for it until it has made a number of other calls without a look.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

from detbox.cpu.stub import Call, Result
from detbox.guest import vdso
from detbox.guest.vdso import (
    BOOT,
    COST,
    DAY,
    DULL,
    ENOUGH,
    LIMIT,
    NOW,
    OTHER,
    PAGE,
    PLACE,
    PROCESS,
    THREAD,
    TURNED,
    WALL,
    WORK,
)
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.machine.clock import (
    BOOT_NS,
    CALL_NS,
    FIRST_MEASURE,
    LOOK_NS,
    NEVER,
    TURNS,
    WATCHING,
    WORK_LOOKS,
    alike,
    price,
)

if TYPE_CHECKING:
    from detbox.machine.clock import Clock, CpuTime, Timers

#: Before every time: no look is allowed.
_NEVER = -1
#: The shared page, and the code above it.
SIZE = 2 * PAGE
_READ_WRITE, _READ_EXECUTE = 3, 5
# MAP_SHARED or MAP_PRIVATE, each with MAP_FIXED_NOREPLACE (Linux 4.17).
_SHARED, _PRIVATE = 0x100001, 0x100002


class GuestClock:
    """The shared page of one run."""

    def __init__(self, clock: Clock, enabled: bool) -> None:
        """``enabled``: whether programs are given the page."""
        self._clock = clock
        self.enabled = enabled
        self.looks = 0  # made in the guest so far
        # The name keeps the mapping out of /proc/PID/maps (machine.constants).
        self.fd = os.memfd_create("detbox-clock")
        code, functions, ticks = _native.guest_code()
        page = vdso.image(code, functions)
        os.pwrite(self.fd, page, PAGE)
        #: Where in the vDSO the code is that stands for rdtsc.
        self.ticks = page.index(code) + ticks
        self._page = memoryview(mmap.mmap(self.fd, PAGE)).cast("q")
        self._page[COST], self._page[WALL] = CALL_NS + LOOK_NS, clock.realtime(0)
        self._page[BOOT], self._page[ENOUGH] = BOOT_NS, TURNS
        self._page[NOW] = self._given = clock.now
        self._page[LIMIT] = _NEVER
        #: Whether the page allows looks, so that there may be some to account for.
        self.open = False
        self._cpu: CpuTime | None = None  # of the thread that the page was prepared for
        self._turns = (0, 0, 0)  # what the page has told of these, or was given

    def settle(self) -> None:
        """Account for the looks that the running thread has made.  Without effect if there were none."""
        page, cpu = self._page, self._cpu
        if cpu is None:
            return
        # These are the thread's until it makes a call, which may change them here, and not in the page.
        if self.open and (turns := (page[PLACE], page[OTHER], page[TURNED])) != self._turns:
            cpu.place, cpu.other, cpu.turns = self._turns = turns
        gone = page[NOW] - self._given
        if gone:
            looks = gone // page[COST]
            self.looks += looks
            self._given += gone
            self._clock.now += gone
            cpu.looks += looks
            cpu.looked += looks
            cpu.watching = WATCHING
            cpu.spend(gone)

    def grant(self, cpu: CpuTime, allowed: bool) -> None:
        """Prepare the page for a thread that is about to go on."""
        page, clock = self._page, self._clock
        if page[NOW] != self._given:
            self.settle()
        now = clock.now
        self.open = allowed = allowed and cpu.watching > 0
        if allowed:
            # As when the supervisor answers it.
            page[COST] = cost = CALL_NS + price(cpu)
            limit = now + alike(cpu) * cost
            limit = _before(clock.timers, 0, limit)
            time: CpuTime | None = cpu
            while time is not None:
                if time.timers is not None:
                    limit = _before(time.timers, now - time.ns, limit)
                time = time.parent
            page[THREAD] = cpu.ns - now
            page[PROCESS] = (cpu.parent or cpu).ns - now
            # The same look is left to a call whenever this is asked.
            page[WORK] = now + max(WORK_LOOKS - cpu.looks, 0) * cost
            page[DAY] = 0 if cpu.timing >= FIRST_MEASURE or (cpu.parent or cpu).rest else NEVER - 1
            page[PLACE], page[OTHER], page[TURNED] = self._turns = cpu.place, cpu.other, cpu.turns
            page[DULL] = cpu.dull
        else:
            limit = _NEVER
        self._cpu = cpu
        page[NOW] = self._given = now
        page[LIMIT] = limit

    def calls(self, place: int, first: int) -> list[Call]:
        """What a program has to call so that the page is mapped at ``place``, and the code above it.

        ``first``: index of the first of these calls.  It is the one that `injection` answers with the
        page's descriptor.
        """
        fd = Result(first, OWN_MAPPING)
        return [
            (NUMBERS["openat"],),
            (NUMBERS["mmap"], place, PAGE, _READ_WRITE, _SHARED, fd, 0),
            (NUMBERS["mmap"], place + PAGE, PAGE, _READ_EXECUTE, _PRIVATE, fd, PAGE),
            (NUMBERS["close"], Result(first)),
        ]


def _before(timers: Timers, ahead: int, limit: int) -> int:
    """``limit``, or the last moment before a timer expires, by a clock that is ``ahead`` of the timers'."""
    if timers.first + ahead > limit:
        return limit
    # `first` may be that of a cancelled timer, until somebody asks: when that is may depend on the machine.
    deadline = timers.next_deadline()
    return limit if deadline is None else min(limit, deadline + ahead - 1)
