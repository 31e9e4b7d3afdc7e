"""What one execution has observed and changed.

An observation counts for the execution that makes it and for those around it, each of which remembers the
*first* state that it met: what an execution has written itself is no fact when it is read again.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
from collections.abc import Callable, Iterator
from stat import S_IFMT, S_ISREG
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.cache import facts
from detbox.cache.facts import CONTENT, IDENTITY, KIND, LIST, PYTIME, SIZE, TIMES, XATTR, Fact
from detbox.cache.pipes import Moves
from detbox.cache.world import join, parent_of

if TYPE_CHECKING:
    from detbox.cache.pipes import Pipe
    from detbox.cache.record import Record
    from detbox.machine.inodes import InodeTable

#: How far an aspect's bit is moved to say that the execution has changed it.
OWN = 8
_ASPECTS = 0xFF
#: Arguments that people are shown, and their letters.
_MANY, _LONG = 12, 200


def owned(aspects: int) -> int:
    """The mark for aspects that the execution has changed itself."""
    return aspects << OWN


def seen_by_guest(
    inodes: InodeTable, path: bytes, st: os.stat_result
) -> tuple[list[int | None] | None, list[int] | None]:
    """(number, user, group, birth) and (access, modification, change) of a file as the guest sees it.

    The number is None for a file that has not been seen yet; its times are the constant ones.  Of a file with holes
    there is a fourth number, which tells how many blocks it lacks.
    """
    entry = inodes.table.get((st.st_dev, st.st_ino))
    if entry is None or entry.fmt != S_IFMT(st.st_mode):
        return [None, *inodes.owner_of((st.st_dev, st.st_ino)), inodes.epoch_ns], [inodes.epoch_ns] * 3
    inodes.find_holes(entry, st, path, None)
    lacks = [entry.missing] if entry.missing else []
    return [entry.ino, entry.uid, entry.gid, entry.btime], [entry.atime, entry.mtime, entry.ctime, *lacks]


def _shown(words: list[bytes]) -> list[str]:
    return [word.decode("utf-8", "replace")[:_LONG] for word in words[:_MANY]]


def _abridged(word: bytes) -> str:
    """An argument for comparisons: the rest of a long one as a digest."""
    text = word[:_LONG].decode("utf-8", "replace")
    return text if len(word) <= _LONG else f"{text}...{xxhash.xxh3_64_hexdigest(word)}"


Learnt = list[tuple[Fact | None, int, int, Fact]]  # see Ledger
#: Entries of a directory: first letter of the KIND, real (device, inode), and type (S_IFREG, …).
Listed = dict[bytes, tuple[str, tuple[int, int], int]]


def numbers_of(inodes: InodeTable, entries: Listed) -> dict[bytes, int | None]:
    """The guest's inode numbers of a directory's entries."""
    found: dict[bytes, int | None] = {}
    for name, (_, place, fmt) in entries.items():
        entry = inodes.table.get(place)
        found[name] = entry.ino if entry is not None and entry.fmt == fmt else None
    return found


class Execution:
    """One execve, up to the end of everything that it started."""

    def __init__(self, parent: Execution | None, name: str) -> None:
        self.parent = parent
        self.name = name
        self.have: dict[bytes, int] = {}  # path → aspects that are known, and marks of those changed
        self.facts: dict[bytes, Fact] = {}
        self.entries: dict[bytes, set[bytes]] = {}  # directory → names in it that were touched for a change
        self.changed: dict[bytes, None] = {}  # paths, in the order of their first change
        self.looked: set[tuple[bytes, bytes, int]] = set()
        self.looked_at = 0
        self.passed: set[tuple[bytes, ...]] = set()  # ways whose steps are facts
        self.told: set[str] = set()  # facts of results that were put in place of executions inside
        self.reasons: dict[str, None] = {}  # why it cannot be cached
        # Of an execution inside of a run:
        self.key = ""
        self.why = ""  # why it was not answered from the cache
        self.words = b""  # number of arguments, arguments and environment
        self.number = 0  # in the order of the starts
        self.directory = ""
        self.process = 0
        self.foreign: dict[tuple[int, int], str] = {}  # what others can use as well, see cache.start
        self.numbers: dict[tuple[int, int], int] = {}
        self.files: dict[int, tuple[bytes, int, bytes]] = {}  # inherited: path, the supervisor's descriptor, times
        self.pipes: dict[tuple[int, int], Pipe] = {}  # those of ``foreign`` whose use is noted in ``moves``
        self.moves = Moves()
        self.flags: dict[int, int] = {}  # that it has set, of the run's standard streams
        self.queue: object = None  # the others that were ready at its start
        self.turns = self.jumps = 0  # of the scheduler, until its start
        self.held = 0  # signals that are blocked or ignored at its start
        self.group = 0
        self.expected: Record | None = None  # the stored result that it is to be compared with
        self.positions: list[tuple[int, int]] = []  # where they stand at the end
        self.first_inode = 1 << 62  # numbers from here on are its own doing
        self.inodes_from = 0  # position in the log of new inodes
        self.output_from = 0  # position in the run's output

    def marks_of_links(self) -> dict[bytes, int]:
        """What is known and has been changed of each changed path that is one of several names of a file.

        What was written through one of them has changed them all.
        """
        names: dict[tuple[int, int], list[bytes]] = {}
        for path in self.changed:
            with contextlib.suppress(OSError):
                st = os.lstat(path)
                if S_ISREG(st.st_mode) and st.st_nlink > 1:
                    names.setdefault((st.st_dev, st.st_ino), []).append(path)
        return {
            path: functools.reduce(operator.or_, (self.have.get(name, 0) for name in paths))
            for paths in names.values() if len(paths) > 1 for path in paths
        }  # fmt: skip

    def arguments(self) -> list[str]:
        """The first words of its command line, for people."""
        return _shown(self._all_words()[0])

    def log(self, result: str, environments: dict[tuple[bytes, ...], int]) -> dict[str, Any]:
        """What is said of it when it is over.  ``environments``: those of all executions, with their numbers."""
        arguments, variables = self._all_words()
        told = {
            "command": _shown(arguments), "result": result, "why": "; ".join(self.reasons) or self.why,
            "number": self.number, "parent": self.parent.number if self.parent is not None else 0,
            "directory": self.directory, "environment": environments.setdefault(variables, len(environments)),
        }  # fmt: skip
        if len(arguments) > _MANY or any(len(word) > _LONG for word in arguments):
            told["arguments"] = [_abridged(word) for word in arguments]
        return told

    def _all_words(self) -> tuple[list[bytes], tuple[bytes, ...]]:
        """Arguments and variables; what follows them is the program's path."""
        words = self.words[8:].rstrip(b"\0").split(b"\0")
        count = int.from_bytes(self.words[:8], "little")
        return words[:count], tuple(words[count:-1])

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

    def __init__(self, owner: Callable[[bytes, object], str] | None = None, inodes: InodeTable | None = None) -> None:
        """``inodes``: the run's, if what only the guest can see is wanted as well."""
        self.root = Execution(None, "run")
        self._inodes = inodes
        self._latest: dict[bytes, Fact] = {}  # of paths that the run has not changed
        self._listed: dict[bytes, Listed] = {}
        self._statuses: dict[bytes, facts.Status] = {}  # of paths that the run has not changed
        self._pending: dict[bytes, list[Fact]] = {}  # content that is still to be hashed
        self._owner = owner

    def touch(self, execution: Execution, path: bytes, wanted: int) -> None:
        """``path`` is being looked at: its state is a fact for whoever does not know it yet."""
        have = execution.have.get(path, 0)
        missing = wanted & ~(have | have >> OWN)
        if not missing:
            return
        root = self.root
        if execution is not root and not missing & (~root.have.get(path, 0) | LIST) and path not in root.changed:
            self._share(execution, path, missing)
        else:
            self._fill(execution, path, missing)

    def _fill(self, execution: Execution, path: bytes, missing: int) -> None:
        root = self.root
        if path not in root.changed and not missing & LIST:
            lacking = missing & ~root.have.get(path, 0)
            if lacking and lacking & KIND and path not in root.facts:
                self._enter(path, lacking)
            elif lacking:
                self._learn(root, path, lacking, self._look(path, lacking))
            if execution is not root:
                self._share(execution, path, missing)
            return
        seen: Fact | None = None
        learnt: Learnt = []
        for one in execution.line():
            have = one.have.get(path, 0)
            lacking = missing & ~(have | have >> OWN)
            if not lacking:
                break  # those further out know at least as much
            if seen is None:
                seen = self._look(path, missing)
            self._learn_together(one, path, lacking, seen, learnt)
            missing = lacking

    def _enter(self, path: bytes, aspects: int) -> None:
        """The first look at a path that the run has not changed, as _learn() would take it down."""
        root, fact = self.root, self._look(path, aspects)
        if not aspects & SIZE:
            fact.size = None
        if fact.signature is not None:
            self._pending.setdefault(path, []).append(fact)
        root.facts[path] = fact
        root.have[path] = root.have.get(path, 0) | aspects

    def _learn(self, one: Execution, path: bytes, aspects: int, seen: Fact) -> None:
        """Take some aspects of what has been ``seen`` down in a fact of its own."""
        have = one.have.get(path, 0)
        fact = one.facts.get(path)
        if fact is None:
            fact = one.facts[path] = Fact()
        elif fact.shared and one is not self.root:
            fact = one.facts[path] = self._copied(path, fact, have & _ASPECTS)
        if one is self.root:
            self._latest.pop(path, None)
        one.have[path] = have | aspects
        self._take(one, path, fact, seen, aspects)

    def _learn_together(self, one: Execution, path: bytes, aspects: int, seen: Fact, learnt: Learnt) -> None:
        """The same; executions around each other, which know the same and learn the same, go on sharing a fact.

        ``learnt``: former facts with the aspects that were known and new, and what became of them, in this look.
        """
        former, have = one.facts.get(path), one.have.get(path, 0)
        shares = one is not self.root and not (have | aspects) & LIST and (former is None or former.shared)
        for known, known_aspects, new_aspects, fact in learnt if shares else ():
            if known is former and known_aspects == have & _ASPECTS and new_aspects == aspects:
                one.facts[path] = fact
                one.have[path] = have | aspects
                return
        self._learn(one, path, aspects, seen)
        if shares:
            fact = one.facts[path]
            fact.shared = True
            learnt.append((former, have & _ASPECTS, aspects, fact))

    def _share(self, execution: Execution, path: bytes, missing: int) -> None:
        """What the run has not changed is one fact for all who look at it; ``have`` tells what is each one's part."""
        known = self._present(path)
        learnt: Learnt = []
        one: Execution | None = execution
        while one is not None:
            have = one.have.get(path, 0)
            missing &= ~have
            if not missing:
                return  # those further out know at least as much
            if one.facts.setdefault(path, known) is known:
                one.have[path] = have | missing
            else:
                self._learn_together(one, path, missing, known, learnt)
            one = one.parent

    def _present(self, path: bytes) -> Fact:
        """The fact of a path that the run has not changed, with what the guest sees of its inode by now."""
        known = self._latest.get(path)
        if known is None:
            known = self._latest[path] = self.root.facts[path]
            known.shared = True
        if self._inodes is not None and known.place is not None:
            entry = self._inodes.table.get(known.place)
            if entry is None or entry.fmt != known.fmt:
                return known
            if entry is not known.entry or entry.times is not known.entry_times:
                known = self._latest[path] = self._copied(path, known, _ASPECTS)
                known.shared = True
                known.entry, known.entry_times = entry, entry.times
                known.identity = [entry.ino, entry.uid, entry.gid, entry.btime]
                known.times = [entry.atime, entry.mtime, entry.ctime]
        return known

    def place_of(self, one: Execution, path: bytes) -> tuple[int, int] | None:
        """Real (device, inode) of what is at a path now, (0, 0) for nothing; None if that takes a look."""
        fact = one.facts.get(path)
        if fact is None or path in self.root.changed:
            return None
        return fact.place if fact.kind != facts.ABSENT else (0, 0)

    def _copied(self, path: bytes, fact: Fact, aspects: int) -> Fact:
        """Some aspects of a fact; a list of entries is never shared."""
        copy = Fact()
        self._take(None, path, copy, fact, aspects & ~LIST)
        return copy

    def status(self, path: bytes) -> facts.Status:
        """The KIND and the status of what is at a path now: the host changes nothing during a run."""
        if path in self.root.changed:
            return self._status(path)
        known = self._statuses.get(path)
        if known is None:
            known = self._statuses[path] = self._status(path)
        return known

    def _status(self, path: bytes) -> facts.Status:
        kind, st = found = facts.kind_of(path)
        return found if self._owner is None or st is None else (kind + self._owner(path, st), st)

    def _look(self, path: bytes, wanted: int) -> Fact:
        kind, st = self.status(path)
        fact = Fact(kind)
        if st is None:
            return fact
        fact.place = (st.st_dev, st.st_ino)
        fact.fmt = S_IFMT(st.st_mode)
        if kind[0] == "f":
            fact.size = st.st_size
            if st.st_nlink > 1:
                fact.inode = (st.st_dev, st.st_ino)
            if wanted & CONTENT:
                fact.signature = facts.signature_of(st)
        if wanted & PYTIME and kind[0] in "fl":
            fact.pytime = facts.python_time(path, st)
        if wanted & XATTR:
            fact.xattrs = facts.xattrs_digest(path)
        if self._inodes is not None and wanted & (IDENTITY | TIMES):
            fact.identity, fact.times = seen_by_guest(self._inodes, path, st)
        return fact

    def _take(self, one: Execution | None, path: bytes, fact: Fact, seen: Fact, aspects: int) -> None:
        if aspects & KIND:
            fact.kind, fact.inode, fact.place, fact.fmt = seen.kind, seen.inode, seen.place, seen.fmt
        if aspects & SIZE:
            fact.size = seen.size
        if aspects & CONTENT:
            fact.content = seen.content
        if aspects & CONTENT and seen.signature is not None:
            if one is self.root and path in one.changed:
                fact.content = facts.content_of(path)  # it gets a time of its own at the end of the run
            else:
                fact.signature = seen.signature
                self._pending.setdefault(path, []).append(fact)
        if aspects & LIST and one is not None:
            self._first_listing(one, path, fact)
        if aspects & XATTR:
            fact.xattrs = seen.xattrs
        if aspects & PYTIME:
            fact.pytime = seen.pytime
        if aspects & IDENTITY:
            fact.identity = seen.identity
        if aspects & TIMES:
            fact.times = seen.times

    def _first_listing(self, one: Execution, directory: bytes, fact: Fact) -> None:
        """What the directory held before the execution's own changes."""
        try:
            listed = self.listed(directory)
        except OSError:
            return
        entries = {name: letter for name, (letter, _, _) in listed.items()}
        numbers = numbers_of(self._inodes, listed) if self._inodes is not None else {}
        for name in one.entries.get(directory, ()):
            first = one.facts[join(directory, name)]
            if first.kind in (None, facts.ABSENT):
                entries.pop(name, None)
                numbers.pop(name, None)
            else:
                entries[name] = str(first.kind)[0]
                numbers[name] = first.identity[0] if first.identity is not None else None
        fact.listing = facts.listing_of(entries.items())
        if self._inodes is not None:
            for name, number in numbers.items():
                if number is not None and number >= one.first_inode:
                    numbers[name] = None
            fact.numbered = facts.numbered_listing(numbers)

    def listed(self, directory: bytes) -> Listed:
        """The present entries of a directory, which are looked at again after a change.  Raises OSError."""
        known = self._listed.get(directory)
        if known is None:
            known = {}
            for name, letter in facts.entries_of(directory):
                st = os.lstat(join(directory, name))
                known[name] = letter, (st.st_dev, st.st_ino), S_IFMT(st.st_mode)
            self._listed[directory] = known
        return known

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

    def mark(self, execution: Execution, path: bytes, aspects: int) -> None:
        """The execution has changed these aspects of ``path``."""
        bits = owned(aspects & _ASPECTS)
        directory, name = parent_of(path), path[path.rindex(b"/") + 1 :]
        self._listed.pop(path, None)
        self._listed.pop(directory, None)
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
