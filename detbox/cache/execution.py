"""What one execution has observed and changed.

An observation counts for the execution that makes it and for those around it, each of which remembers the
*first* state that it met: what an execution has written itself is no fact when it is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from detbox.cache import facts
from detbox.cache.facts import CONTENT, KIND, LIST, PYTIME, SIZE, XATTR, Fact
from detbox.cache.world import join, parent_of

#: How far an aspect's bit is moved to say that the execution has changed it.
OWN = 8
_ASPECTS = 0xFF


def owned(aspects: int) -> int:
    """The mark for aspects that the execution has changed itself."""
    return aspects << OWN


class Execution:
    """One execve, up to the end of everything that it started."""

    def __init__(self, parent: Execution | None, name: str) -> None:
        self.parent = parent
        self.name = name
        self.have: dict[bytes, int] = {}  # path → aspects that are known, and marks of those changed
        self.facts: dict[bytes, Fact] = {}
        self.entries: dict[bytes, set[bytes]] = {}  # directory → names in it that were touched for a change
        self.changed: dict[bytes, None] = {}  # paths, in the order of their first change
        self.reasons: dict[str, None] = {}  # why it cannot be cached

    def line(self) -> Iterator[Execution]:
        """The execution and those around it, outwards."""
        at: Execution | None = self
        while at is not None:
            yield at
            at = at.parent


class Ledger:
    """Facts and changes of all executions of a run.

    ``owner``: tells for a path (and its status) whose it is, where the kernel's permissions depend on that.
    """

    def __init__(self, owner: Callable[[bytes, object], str] | None = None) -> None:
        self._pending: dict[bytes, list[Fact]] = {}  # content that is still to be hashed
        self._owner = owner

    def touch(self, execution: Execution, path: bytes, wanted: int) -> None:
        """``path`` is being looked at: its state is a fact for whoever does not know it yet."""
        have = execution.have.get(path, 0)
        missing = wanted & ~(have | have >> OWN)
        if missing:
            self._fill(execution, path, missing)

    def _fill(self, execution: Execution, path: bytes, missing: int) -> None:
        seen: Fact | None = None
        for one in execution.line():
            have = one.have.get(path, 0)
            lacking = missing & ~(have | have >> OWN)
            if not lacking:
                break  # those further out know at least as much
            if seen is None:
                seen = self._look(execution, path, missing)
            one.have[path] = have | lacking
            fact = one.facts.get(path)
            if fact is None:
                fact = one.facts[path] = Fact()
            self._take(one, path, fact, seen, lacking)
            missing = lacking

    def _look(self, execution: Execution, path: bytes, wanted: int) -> Fact:
        kind, st = facts.kind_of(path)
        fact = Fact(kind)
        if st is None:
            return fact
        if self._owner is not None:
            fact.kind = kind + self._owner(path, st)
        if kind[0] == "f":
            fact.size = st.st_size
            if st.st_nlink > 1:
                fact.inode = (st.st_dev, st.st_ino)
            if wanted & CONTENT:
                fact.signature = facts.signature_of(st)
            if wanted & PYTIME:
                fact.pytime = facts.python_time(path, st.st_size)
        if wanted & XATTR:
            fact.xattrs = facts.xattrs_digest(path)
        return fact

    def _take(self, one: Execution, path: bytes, fact: Fact, seen: Fact, aspects: int) -> None:
        if aspects & KIND:
            fact.kind, fact.inode = seen.kind, seen.inode
        if aspects & SIZE:
            fact.size = seen.size
        if aspects & CONTENT and seen.signature is not None:
            fact.signature = seen.signature
            self._pending.setdefault(path, []).append(fact)
        if aspects & LIST:
            fact.listing = self._first_listing(one, path)
        if aspects & XATTR:
            fact.xattrs = seen.xattrs
        if aspects & PYTIME:
            fact.pytime = seen.pytime

    def _first_listing(self, one: Execution, directory: bytes) -> str | None:
        """What the directory held before the execution's own changes."""
        try:
            entries = dict(facts.entries_of(directory))
        except OSError:
            return None
        for name in one.entries.get(directory, ()):
            first = one.facts[join(directory, name)].kind or facts.ABSENT
            if first == facts.ABSENT:
                entries.pop(name, None)
            else:
                entries[name] = first[0]
        return facts.listing_of(entries.items())

    def settle(self, path: bytes) -> None:
        """The content of ``path`` is about to change: hash it where it is a fact."""
        waiting = self._pending.pop(path, None)
        if waiting:
            digest = facts.content_of(path)
            for fact in waiting:
                fact.content, fact.signature = digest, None

    def settle_below(self, directory: bytes) -> None:
        """The same for everything below a directory."""
        top = directory + b"/"
        for path in [path for path in self._pending if path.startswith(top)]:
            self.settle(path)

    def pending(self) -> dict[bytes, list[Fact]]:
        """Facts about content that is still as it was when they were observed."""
        return self._pending

    def mark(self, execution: Execution, path: bytes, aspects: int) -> None:
        """The execution has changed these aspects of ``path``."""
        bits = owned(aspects & _ASPECTS)
        directory, name = parent_of(path), path[path.rindex(b"/") + 1 :]
        for one in execution.line():
            have = one.have.get(path, 0)
            one.changed.setdefault(path)
            if aspects & KIND and path in one.facts:
                one.entries.setdefault(directory, set()).add(name)
            if have & bits == bits:
                continue
            one.have[path] = have | bits

    def unable(self, execution: Execution, reason: str, *, whole: bool = True) -> None:
        """The execution, and those around it, cannot be cached.

        ``whole``: nor can the whole job; otherwise what happened stays inside of the run.
        """
        for one in execution.line():
            if whole or one.parent is not None:
                one.reasons.setdefault(reason)
