"""Which nameless inodes the guest can still look at: those that a descriptor, a directory or a program keeps.

It can look at nothing else without a name.  A mapping keeps a file alive too, but shows neither its number nor a way
to it: `maps` has a constant for files without a name, and `map_files` is not to be followed (proc(5)).
"""

from __future__ import annotations

import os
from stat import S_ISSOCK
from typing import TYPE_CHECKING

from detbox.handlers.waiting import carries_descriptors, proc_names, proc_text

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine

_LINKS = ("cwd", "root", "exe")
#: What mountinfo has behind the root of a mount of something that has been removed.
_REMOVED = "//deleted "


class Unclear(Exception):
    """Something is kept in a way that cannot be looked into."""


def reachable(m: Machine) -> tuple[set[tuple[int, int]] | None, int]:
    """(device, inode) of all that any process has open, and how many things were looked at.

    The set is None when it cannot be told: descriptors are on their way in messages, or something removed is mounted.
    The supervisor's own descriptors count, since it may be about to hand them over.
    """
    found: set[tuple[int, int]] = set()
    looks = 0
    try:
        # All numbers, and not those of ``m.tasks``: a child may not have been met yet.
        for number in filter(str.isdigit, proc_names(m, ".")):
            for tid in proc_names(m, f"{number}/task"):
                looks += _thread(m, f"{number}/task/{tid}", found)
        for pid, process in m.processes.items():
            if process.namespaces and _REMOVED in proc_text(m, f"{pid}/mountinfo"):
                raise Unclear
    except Unclear:
        return None, looks
    return found, looks


def _thread(m: Machine, place: str, found: set[tuple[int, int]]) -> int:
    # Threads can have descriptors of their own, and outlive the process's first one.
    descriptors = proc_names(m, f"{place}/fd")
    for name in (*_LINKS, *(f"fd/{number}" for number in descriptors)):
        try:
            st = os.stat(f"{place}/{name}", dir_fd=m.proc_fd)
        except OSError:
            continue  # a zombie has none
        found.add((st.st_dev, st.st_ino))
        if S_ISSOCK(st.st_mode) and name.startswith("fd/"):
            if carries_descriptors(proc_text(m, f"{place}/fdinfo/{name[3:]}")):
                raise Unclear
    return len(_LINKS) + len(descriptors)
