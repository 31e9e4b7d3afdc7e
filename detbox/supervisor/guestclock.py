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
from detbox.guest.vdso import BOOT, ENOUGH, PAGE, WALL
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.machine.clock import BOOT_NS, TURNS

if TYPE_CHECKING:
    from detbox.machine.clock import Clock

#: The shared page, and the code above it.
SIZE = 2 * PAGE
_READ_WRITE, _READ_EXECUTE = 3, 5
# MAP_SHARED or MAP_PRIVATE, each with MAP_FIXED_NOREPLACE (Linux 4.17).
_SHARED, _PRIVATE = 0x100001, 0x100002


class GuestClock(_native.ClockPage):
    """The shared page of one run.

    ``looks``: made in the guest so far.  ``open``: whether the page allows looks, so that there may be some to account
    for.  ``grant(cpu, allowed)`` prepares the page for a thread that is about to go on, and ``settle()`` accounts for
    the looks that it has made: what every call pays for, in kernel/clocks.c.
    """

    __slots__ = ("_page", "enabled", "fd", "ticks")

    def __init__(self, clock: Clock, enabled: bool) -> None:
        """``enabled``: whether programs are given the page."""
        self.enabled = enabled
        # The name keeps the mapping out of /proc/PID/maps (machine.constants).
        self.fd = os.memfd_create("detbox-clock")
        code, functions, ticks = _native.guest_code()
        page = vdso.image(code, functions)
        os.pwrite(self.fd, page, PAGE)
        #: Where in the vDSO the code is that stands for rdtsc.
        self.ticks = page.index(code) + ticks
        self._page = memoryview(mmap.mmap(self.fd, PAGE)).cast("q")
        super().__init__(clock, self._page)
        self._page[WALL], self._page[BOOT], self._page[ENOUGH] = clock.realtime(0), BOOT_NS, TURNS

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
