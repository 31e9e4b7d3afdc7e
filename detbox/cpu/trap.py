"""The values that a trapped instruction of one thread is answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.cpu import model
from detbox.machine.clock import BOOT_NS

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task


class TrapValues:
    """Implements :class:`detbox.cpu.emulate.Callbacks` for a thread."""

    __slots__ = ("m", "task")

    def __init__(self, m: Machine, task: Task) -> None:
        self.m = m
        self.task = task

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """From the run's CPU model."""
        return model.cpuid(self.m.cpu_model, self.m.spec.cpus, self.cpu(), leaf, subleaf)

    def xcr0(self) -> int:
        """From the run's CPU model."""
        return self.m.cpu_model.xcr0

    def tsc(self) -> int:
        """One tick per virtual nanosecond.  Costs what a call that looks at the clock does."""
        self.m.clock.charge(self.task.cpu, looking=True)
        # What is done between such looks is not measured: that begins behind a call.
        self.task.cpu.unmeasured()
        return self.m.clock.look(self.task.cpu) - BOOT_NS

    def random(self, size: int) -> bytes:
        """From the process's stream."""
        return self.task.rng.bytes(size)

    def cpu(self) -> int:
        """Every thread seems to run on the first processor: it is where a single one would run."""
        return 0
