"""The modules of ``detbox.handlers`` for the tables: each is loaded at the first call that one of its handlers gets.

Most programs make calls of a few kinds only, and loading all handlers takes a fifth of a start.  Those of the calls
that nearly every program makes are loaded while the container is assembled.  That the named handlers exist is what
tests/unit/policy/test_table.py says.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.policy.row import Args, Handler


_PACKAGE = "detbox.handlers."
#: Modules for what every dynamically linked program does before its own code, and for what shells and interpreters do.
_OF_ALL = ("opening", "access", "readwrite", "random")
_OF_MANY = ("dirs", "descriptors", "futex", "ioctls", "namespaces", "locks")


class Later:
    """Stands for a handler."""

    __slots__ = ("_found", "_module", "_name", "places")

    def __init__(self, module: str, name: str) -> None:
        self._module = module
        self._name = name
        self._found: Handler | None = None
        #: Where the handler itself is to be put when it has been loaded.
        self.places: list[tuple[list[Handler | None], int]] = []

    def __call__(self, m: Any, t: Any, args: Args) -> Decision:
        found = self._found or self.load()
        while self.places:
            table, number = self.places.pop()
            if table[number] is self:
                table[number] = found
        return found(m, t, args)

    def load(self) -> Handler:
        """The handler itself.  Raises ImportError or AttributeError."""
        if self._found is None:
            self._found = getattr(importlib.import_module(_PACKAGE + self._module), self._name)
        return self._found


def load_ahead(has_time: Callable[[], bool]) -> None:
    """Load what every program needs, and as long as there ``has_time`` also what many do."""
    for name in _OF_ALL:
        importlib.import_module(_PACKAGE + name)
    for name in _OF_MANY:
        if not has_time():
            return
        importlib.import_module(_PACKAGE + name)


def call_table(handlers: dict[int, Handler], size: int) -> list[Handler | None]:
    """The handlers by the numbers of their calls, each without what stands for it as soon as it has been called."""
    table = [handlers.get(number) for number in range(size)]
    for number, handler in enumerate(table):
        if isinstance(handler, Later):
            handler.places.append((table, number))
    return table


class _Module:
    """Stands for a module: its attributes are handlers."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Handler:
        return Later(self._name, name)


access = _Module("access")
clocks = _Module("clocks")
content = _Module("content")
descriptors = _Module("descriptors")
dirs = _Module("dirs")
epoll = _Module("epoll")
futex = _Module("futex")
futex2 = _Module("futex2")
futex_exit = _Module("futex_exit")
identity = _Module("identity")
inotify = _Module("inotify")
ioctls = _Module("ioctls")
limits = _Module("limits")
locked_memory = _Module("locked_memory")
locks = _Module("locks")
memory = _Module("memory")
metadata = _Module("metadata")
mounts = _Module("mounts")
mqueue = _Module("mqueue")
namespaces = _Module("namespaces")
namespace_ops = _Module("namespace_ops")
openat2 = _Module("openat2")
opening = _Module("opening")
other_memory = _Module("other_memory")
pipes = _Module("pipes")
polling = _Module("polling")
prctl = _Module("prctl")
processes = _Module("processes")
random = _Module("random")
readwrite = _Module("readwrite")
scheduling = _Module("scheduling")
seccomp = _Module("seccomp")
signals = _Module("signals")
socket_names = _Module("socket_names")
socket_options = _Module("socket_options")
sockets = _Module("sockets")
splice = _Module("splice")
stat = _Module("stat")
statfs = _Module("statfs")
storage = _Module("storage")
sysvipc = _Module("sysvipc")
tracing = _Module("tracing")
timerfd = _Module("timerfd")
timers = _Module("timers")
xattr = _Module("xattr")
