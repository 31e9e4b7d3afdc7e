"""What an execution inside of a run leaves, taken down at its end; ``cache.redo`` does it again for a hit."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

from detbox.cache import facts
from detbox.cache.execution import OWN
from detbox.cache.facts import ABSENT, CONTENT, IDENTITY, LIST
from detbox.cache.record import SMALL, Record, inline
from detbox.cache.summary import data_of, text
from detbox.cache.world import join, parent_of

if TYPE_CHECKING:
    from detbox.cache.common import Common
    from detbox.cache.contents import Contents
    from detbox.cache.execution import Execution
    from detbox.cache.observed import Observed
    from detbox.cache.store import Store
    from detbox.cache.tracker import Tracker
    from detbox.supervisor.task import Process

_DEVICES = [b"/dev", *(b"/dev/" + name for name in (b"null", b"zero", b"full", b"random", b"urandom"))]
_IDENTITY = 6  # its place in a row
_NUMBERED = 8  # the bit beyond the aspects
_FEW = 8  # paths
_encoded = json.JSONEncoder(separators=(",", ":")).encode
_LETTERS = {"f": "file", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket"}


class Unknown(Exception):
    """Something about an execution's effects cannot be told."""


class Effects:
    """Of the executions of one run."""

    def __init__(self, tracker: Tracker, store: Store, common: Common, contents: Contents) -> None:
        self._tracker = tracker
        self._common = common
        self._contents = contents
        self._inodes = tracker.m.inodes
        self._store = store

    def record(self, mine: Execution, process: Process, last_process: int, observed: Observed) -> Record | None:
        """The result of an execution that has just ended; None, with a reason, if it cannot be told."""
        m = self._tracker.m
        try:
            changes, places = self._changes(mine)
            numbered = self._numbered(mine, {data_of(change["path"]) for change in changes}, places)
            rows, common = self._rows(mine)
            output, turns = observed.since(mine.output_from)
            written, moved = self._keep(output), self._keep(bytes(mine.moves.data))
        except Unknown as unknown:
            mine.reasons.setdefault(str(unknown))
            return None
        except OSError as error:
            mine.reasons.setdefault(f"the cache cannot keep it: {error.strerror}")
            return None
        marks = {text(path): mine.have.get(path, 0) >> OWN for path in mine.changed}
        return Record(
            mine.key, rows, common, changes, marks, numbered, written, turns, mine.positions,
            process.status or 0, m.clock.now, self._inodes.next_number, last_process,
            process.cpu.ns, process.cpu.children_ns, m.scheduler.turns - mine.turns, m.scheduler.jumps > mine.jumps,
            [pipe.row() for pipe in mine.pipes.values() if pipe.used], mine.moves.steps, moved,
            list(mine.flags.items()),
        )  # fmt: skip

    def _keep(self, data: bytes) -> str:
        if not data:
            return ""
        return inline(data) if len(data) <= SMALL else self._store.put_bytes(data)

    def _rows(self, mine: Execution) -> tuple[list[str], tuple[str, int]]:
        """The lines of all facts, and the blob of those among them that others may have as well.

        The line of a shared fact is made once.
        """
        have, first = mine.have, mine.first_inode
        found: list[str] = []
        common: list[str] = []
        for path, fact in mine.facts.items():
            aspects = have[path] & 0xFF
            identity = fact.identity
            # What the execution has numbered itself, by listing its directory, say, it did not find numbered.
            numbered = identity is not None and (identity[0] or 0) >= first and bool(aspects & IDENTITY)
            line = None if fact.lines is None else fact.lines.get(aspects | numbered << _NUMBERED)
            if line is None:
                line = self._row(path, fact, aspects, numbered)
            (common if fact.system and not numbered else found).append(line)
        kept = self._common.keep(common)
        return (found, kept) if kept is not None else (found + common, ("", 0))

    def _row(self, path: bytes, fact: facts.Fact, aspects: int, numbered: bool) -> str:
        if aspects & CONTENT:
            self._hash(path, fact)
        row = fact.full_row(aspects)
        if numbered and fact.identity is not None:
            row[_IDENTITY] = [None, *fact.identity[1:]]
        line = _encoded([text(path), aspects, row])
        if fact.shared:
            if fact.lines is None:
                fact.lines = {}
                fact.system = not self._tracker.kept(path) and path not in self._tracker.root.changed
            fact.lines[aspects | numbered << _NUMBERED] = line
        return line

    def _hash(self, path: bytes, fact: facts.Fact) -> None:
        """Content that has not been changed since it was looked at."""
        if fact.signature is None:
            return
        st = self._tracker.status(path)
        if st is None or facts.signature_of(st) != fact.signature:
            raise Unknown(f"{text(path)} was changed from outside")
        fact.content = self._contents.of(path, st)

    def _changes(self, mine: Execution) -> tuple[list[dict[str, Any]], set[tuple[int, int]]]:
        """What is stored of each changed path; and the real (device, inode) of those that are there."""
        names: dict[tuple[int, int], str] = {}
        places: set[tuple[int, int]] = set()
        found = []
        shared = mine.marks_of_links()
        for path in mine.changed:
            if self._tracker.m.layers.limited and not self._tracker.kept(path):
                raise Unknown("changes a file of the system")
            fact = mine.facts.get(path)
            before = (fact.kind if fact is not None else None) or ""
            looked = fact is not None and mine.have[path] & IDENTITY
            written = bool(shared.get(path, mine.have[path]) >> OWN & CONTENT)
            identity = fact.identity if fact is not None and looked else None
            change = self._change(mine, path, before, identity, written)
            if change is None:
                continue
            inode, several = change.pop("inode", None), change.pop("several", False)
            if inode is not None:
                places.add(inode)
            if several:
                first = names.setdefault(inode, change["path"])
                if first is not change["path"]:
                    change = {"path": change["path"], "do": "link", "to": first, "was": before[:1], "same": False}
            if change["do"] not in ("keep", "link", "remove") and not change["changed"]:
                raise Unknown("moves an input")  # whose time on the host is not known here
            found.append(change)
        return found, places

    def _change(
        self, mine: Execution, path: bytes, before: str, identity: list[int | None] | None, written: bool
    ) -> dict[str, Any] | None:
        kind, st = facts.kind_of(path)
        change: dict[str, Any] = {"path": text(path), "was": before[:1]}
        if st is None:
            if _several(before):
                raise Unknown("removes a name of a file with several")
            return None if before in (ABSENT, "") else {**change, "do": "remove"}
        entry = self._inodes.known(st)
        if entry is None or kind[0] not in _LETTERS:
            raise Unknown("makes a file of an unknown kind")
        # Names that came or went are marked as changed in every aspect.
        remade = bool(mine.have[path] >> OWN & LIST)
        same = (
            identity is not None and before[:1] == kind[0] and identity[0] in (entry.ino, *([] if remade else [None]))
        )
        change |= {
            "same": same, "inode": (st.st_dev, st.st_ino), "several": kind[0] != "d" and st.st_nlink > 1,
            "mode": stat.S_IMODE(st.st_mode),
            "ino": entry.ino, "owner": [entry.uid, entry.gid], "changed": entry.changed, "source": entry.source,
            "times": [entry.atime, entry.mtime, entry.ctime, entry.btime],
        }  # fmt: skip
        xattrs = facts.xattrs_of(path)
        if xattrs or mine.have[path] >> OWN & facts.XATTR:
            change["xattrs"] = {name: value.hex() for name, value in xattrs.items()}
        # Opened for writing and not written to, it keeps its time, which may be the host's.
        if same and not (written and entry.changed):
            return {**change, "do": "keep"}
        change["do"] = _LETTERS[kind[0]]
        if kind[0] == "l":
            change["text"] = text(os.readlink(path))
        elif kind[0] == "f":
            self._inodes.find_holes(entry, st, path, None)
            if entry.missing:
                raise Unknown("makes a file with holes")  # which the result would not have
            change["blob"], change["size"] = self._content(mine, path, st, entry.mtime), st.st_size
        return change

    def _content(self, mine: Execution, path: bytes, st: os.stat_result, mtime: int) -> str:
        """What a file holds; that of many is kept in blobs, which the results of those around have in common."""
        if st.st_size > SMALL or len(mine.changed) > _FEW:
            key = path, facts.signature_of(st), mtime  # see Contents.of
            known = self._contents.blobs.get(key)
            if known is None or not self._store.is_in_use(known):
                known = self._contents.blobs[key] = self._store.put_file(path)
            return known
        with open(path, "rb", buffering=0) as file:
            return inline(file.read(SMALL + 1))

    def _numbered(
        self, mine: Execution, made: set[bytes], places: set[tuple[int, int]]
    ) -> list[tuple[str | int, int]]:
        """Numbers that the execution was the first to give to inodes that it has not made.

        ``made``: paths that it has changed.  ``places``: real (device, inode) of those.
        """
        log = self._inodes.log or []
        fresh = [
            entry for entry in log[mine.inodes_from :]
            if entry.key in mine.numbers or (entry.key not in places and self._inodes.table.get(entry.key) is entry)
        ]  # fmt: skip
        paths = self._paths(mine, {entry.key for entry in fresh}.difference(mine.numbers))
        found: list[tuple[str | int, int]] = []
        for entry in fresh:
            known = paths.get(entry.key)
            if entry.key in mine.numbers:
                found.append((mine.numbers[entry.key], entry.ino))
            elif known is None:
                if entry.key[0] in self._inodes.proc_devs:
                    continue  # of a process that is gone
                raise Unknown("sees a file whose name is not known")
            elif known not in made:
                found.append((text(known), entry.ino))
        return found

    def _paths(self, mine: Execution, wanted: set[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Where what the execution has looked at is, by its real (device, inode): all that are wanted, if possible."""
        paths: dict[tuple[int, int], bytes] = {}
        if not wanted:
            return paths
        changed = self._tracker.root.changed
        for path, fact in mine.facts.items():
            if fact.place is not None and fact.place in wanted and path not in changed:
                paths.setdefault(fact.place, path)
        if paths.keys() >= wanted:
            return paths
        for path in self._looked_at(mine):
            place = self._tracker.ledger.place_of(mine, path)
            if place is None:
                st = self._tracker.status(path)
                place = (st.st_dev, st.st_ino) if st is not None else (0, 0)
            paths.setdefault(place, path)
        return paths

    def _looked_at(self, mine: Execution) -> list[bytes]:
        found = [b"/", *_DEVICES, *mine.facts, *mine.changed, *self._tracker.of_system]
        for path, have in mine.have.items():
            if (have | have >> OWN) & LIST and os.path.isdir(path):
                found += [parent_of(path), *(join(path, name) for name, _ in facts.entries_of(path))]
        return found


def _several(kind: str) -> bool:
    """Whether a KIND is that of a file with more than one name."""
    return kind[:1] == "f" and kind.rstrip("ug").rpartition(":")[2] != "1"
