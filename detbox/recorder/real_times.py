"""How long a run's processes really took: kept apart from the trace, since it differs each time."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process


class RealTimes:
    """Hears of forks and exits; writes JSON to the descriptor ``fd``, which it owns: seconds by lineage."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begun = {"1": time.monotonic()}
        self._seconds: dict[str, float] = {}

    def on_fork(self, _machine: Machine, _parent: Process, child: Process) -> None:
        """A process has been created."""
        self._begun[child.lineage] = time.monotonic()

    def on_exit(self, _machine: Machine, process: Process) -> None:
        """A process is gone."""
        begun = self._begun.pop(process.lineage, None)
        if begun is not None:
            self._seconds[process.lineage] = round(time.monotonic() - begun, 6)

    def close(self, _ended: bool) -> str:
        """Write the file.  Returns why that failed, "" if it did not."""
        text = json.dumps({"version": 1, "seconds": self._seconds}, indent=0) + "\n"
        try:
            with open(self._fd, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            return f"the file of real times cannot be written: {error.strerror}"
        return ""
