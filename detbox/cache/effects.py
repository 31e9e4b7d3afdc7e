"""What an execution inside of a run leaves: taken down at its end, and done again for a hit."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING, Any

from detbox.cache import facts, pipes
from detbox.cache.common import parsed
from detbox.cache.execution import OWN
from detbox.cache.facts import ABSENT, CONTENT, IDENTITY, KIND, LIST, PYTIME
from detbox.cache.record import SMALL, Record, inline, inlined
from detbox.cache.staging import Staging
from detbox.cache.summary import data_of, text
from detbox.cache.world import join, made, parent_of
from detbox.machine.inodes import VInode

if TYPE_CHECKING:
    from detbox.cache.common import Common
    from detbox.cache.contents import Contents
    from detbox.cache.execution import Execution
    from detbox.cache.observed import Observed
    from detbox.cache.store import Store
    from detbox.cache.tracker import Tracker
    from detbox.supervisor.task import Process, Task

_DEVICES = [b"/dev", *(b"/dev/" + name for name in (b"null", b"zero", b"full", b"random", b"urandom"))]
_IDENTITY = 6  # its place in a row
_FEW = 8  # paths
_encoded = json.JSONEncoder(separators=(",", ":")).encode
#: Changes that ways may pass through: see World.changed.
_ON_WAYS, _WAYS = frozenset(("directory", "symlink")), frozenset("dl")
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

    # -- taking down -------------------------------------------------------------------

    def record(self, mine: Execution, process: Process, last_process: int, observed: Observed) -> Record | None:
        """The result of an execution that has just ended; None, with a reason, if it cannot be told."""
        m = self._tracker.m
        try:
            changes = self._changes(mine)
            numbered = self._numbered(mine, {data_of(change["path"]) for change in changes})
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
            line = None if fact.lines is None or numbered else fact.lines.get(aspects)
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
        if fact.shared and not numbered:
            if fact.lines is None:
                fact.lines = {}
                fact.system = not self._tracker.kept(path)
            fact.lines[aspects] = line
        return line

    def _hash(self, path: bytes, fact: facts.Fact) -> None:
        """Content that has not been changed since it was looked at."""
        if fact.signature is None:
            return
        st = self._tracker.status(path)
        if st is None or facts.signature_of(st) != fact.signature:
            raise Unknown(f"{text(path)} was changed from outside")
        fact.content = self._contents.of(path, st)

    def _changes(self, mine: Execution) -> list[dict[str, Any]]:
        names: dict[tuple[int, int], str] = {}
        found = []
        for path in mine.changed:
            if self._tracker.m.layers.limited and not self._tracker.kept(path):
                raise Unknown("changes a file of the system")
            fact = mine.facts.get(path)
            before = (fact.kind if fact is not None else None) or ""
            looked = fact is not None and mine.have[path] & IDENTITY
            change = self._change(mine, path, before, fact.identity if fact is not None and looked else None)
            if change is None:
                continue
            inode = change.pop("inode")
            if inode is not None and inode in names:
                change = {"path": change["path"], "do": "link", "to": names[inode], "was": before[:1], "same": False}
            elif inode is not None:
                names[inode] = change["path"]
            found.append(change)
        return found

    def _change(
        self, mine: Execution, path: bytes, before: str, identity: list[int | None] | None
    ) -> dict[str, Any] | None:
        kind, st = facts.kind_of(path)
        change: dict[str, Any] = {"path": text(path), "was": before[:1]}
        if st is None:
            if _several(before):
                raise Unknown("removes a name of a file with several")
            return None if before in (ABSENT, "") else {**change, "do": "remove", "inode": None}
        entry = self._inodes.known(st)
        if entry is None or kind[0] not in _LETTERS:
            raise Unknown("makes a file of an unknown kind")
        if not entry.changed and self._tracker.origin.get(path, path) != path:
            raise Unknown("moves an input")  # whose time on the host is not known here
        # Names that came or went are marked as changed in every aspect.
        remade = bool(mine.have[path] >> OWN & LIST)
        same = (
            identity is not None and before[:1] == kind[0] and identity[0] in (entry.ino, *([] if remade else [None]))
        )
        change |= {
            "same": same, "inode": (st.st_dev, st.st_ino) if kind[0] != "d" else None, "mode": stat.S_IMODE(st.st_mode),
            "ino": entry.ino, "owner": [entry.uid, entry.gid], "changed": entry.changed, "source": entry.source,
            "times": [entry.atime, entry.mtime, entry.ctime, entry.btime],
        }  # fmt: skip
        xattrs = facts.xattrs_of(path)
        if xattrs or mine.have[path] >> OWN & facts.XATTR:
            change["xattrs"] = {name: value.hex() for name, value in xattrs.items()}
        # Opened for writing and not written to, it keeps its time, which may be the host's.
        if same and not (mine.have[path] >> OWN & CONTENT and entry.changed):
            return {**change, "do": "keep"}
        change["do"] = _LETTERS[kind[0]]
        if kind[0] == "l":
            change["text"] = text(os.readlink(path))
        elif kind[0] == "f":
            change["blob"], change["size"] = self._content(mine, path, st.st_size), st.st_size
        return change

    def _content(self, mine: Execution, path: bytes, size: int) -> str:
        """What a file holds; that of many is kept in blobs, which the results of those around have in common."""
        if size > SMALL or len(mine.changed) > _FEW:
            return self._store.put_file(path)
        with open(path, "rb", buffering=0) as file:
            return inline(file.read(SMALL + 1))

    def _numbered(self, mine: Execution, made: set[bytes]) -> list[tuple[str | int, int]]:
        """Numbers that the execution was the first to give to inodes that it has not made."""
        fresh = [entry for entry in (self._inodes.log or ())[mine.inodes_from :]]
        if not fresh:
            return []
        paths: dict[tuple[int, int], bytes] = {}
        for path in self._looked_at(mine):
            place = self._tracker.ledger.place_of(mine, path)
            if place is None:
                st = self._tracker.status(path)
                place = (st.st_dev, st.st_ino) if st is not None else (0, 0)
            paths.setdefault(place, path)
        found: list[tuple[str | int, int]] = []
        for entry in fresh:
            if entry.key in mine.numbers:
                found.append((mine.numbers[entry.key], entry.ino))
            elif self._inodes.table.get(entry.key) is entry:
                known = paths.get(entry.key)
                if known is None:
                    if entry.key[0] in self._inodes.proc_devs:
                        continue  # of a process that is gone
                    raise Unknown("sees a file whose name is not known")
                if known not in made:
                    found.append((text(known), entry.ino))
        return found

    def _looked_at(self, mine: Execution) -> list[bytes]:
        found = [b"/", *_DEVICES, *mine.facts, *mine.changed, *self._tracker.of_system]
        for path, have in mine.have.items():
            if (have | have >> OWN) & LIST and os.path.isdir(path):
                found += [parent_of(path), *(join(path, name) for name, _ in facts.entries_of(path))]
        return found

    # -- doing again ---------------------------------------------------------------------

    def apply(self, t: Task, mine: Execution, record: Record, observed: Observed) -> bool:
        """Put a result in place.  False, with nothing changed, if a blob is missing or a file cannot be staged."""
        tracker = self._tracker
        if not self._can_apply(t, record):
            return False
        blobs: dict[str, bytes] = {}
        for content, _ in record.sized_contents():
            data = inlined(content)
            if data is None:
                data = self._store.open_blob(content)
            if data is None:
                return False
            blobs[content] = data
        staged = self._stage(record, blobs)
        if staged is None:
            return False
        parent = mine.parent
        assert parent is not None
        block = self._common.block(record.common[0]) if record.common[0] else None
        if block is not None and record.common[0] not in parent.told:
            parent.told.add(record.common[0])
            for path, aspects in block.asked:
                tracker.ledger.touch(parent, path, aspects)
        for line in record.facts:
            if line not in parent.told:
                path, aspects, _ = parsed(line)
                tracker.ledger.touch(parent, path, aspects)
        parent.told.update(record.facts)
        for name, aspects in record.marks.items():
            place = data_of(name)
            tracker.ledger.touch(parent, place, KIND | IDENTITY)
            tracker.ledger.settle(place)
            tracker.ledger.mark(parent, place, aspects)
        self._carry_out(record, blobs, staged)
        staged.close()
        self._number(t, record)
        if any(change["do"] in _ON_WAYS or change["was"] in _WAYS for change in record.changes):
            tracker.names_change()
        view = memoryview(blobs.get(record.output, b""))
        for stream, size in record.turns:
            tracker.m.console.write(stream, bytes(view[:size]))
            view = view[size:]
        for number, flags in record.flags:
            tracker.m.console.set_flags(number, flags)
            for one in parent.line():
                one.flags[number] = flags
        pipes.replay(t, mine, record.pipes, record.moves, blobs.get(record.moved, b""))
        return True

    def _can_apply(self, t: Task, record: Record) -> bool:
        """Whether what is named is there and may be changed: the result may be from elsewhere."""
        changes = {data_of(change["path"]): change["do"] for change in record.changes}
        read_only = [os.fsencode(mount.dst) for mount in self._tracker.m.spec.mounts if not mount.rw]
        known: dict[bytes, bool] = {b"/": True}

        def directory(path: bytes) -> bool:
            if path not in known:
                made_now = changes.get(path) == "directory"
                known[path] = (made_now or self._tracker.now(path) == "d") and directory(parent_of(path))
            return known[path]

        for change in record.changes:
            for path in (data_of(change[name]) for name in ("path", "to") if name in change):
                if made(path) or facts.below(path, read_only) or not directory(parent_of(path)):
                    return False
        return all(
            os.path.exists(f"/proc/{t.tid}/fd/{place}") if isinstance(place, int) else os.path.lexists(data_of(place))
            for place, _ in record.numbered
        )

    def _stage(self, record: Record, blobs: dict[str, bytes]) -> Staging | None:
        """The new files; None if they cannot be written."""
        staged = Staging(self._tracker.m.proc_fd)
        try:
            for change in record.changes:
                path = data_of(change["path"])
                # What lies in a directory that is still to be made is written in its place.
                if change["do"] == "file" and not change["same"] and os.path.isdir(parent_of(path)):
                    staged.write(path, blobs[change["blob"]], change["mode"])
        except OSError:
            staged.close()
            return None
        return staged

    def _carry_out(self, record: Record, blobs: dict[str, bytes], staged: Staging) -> None:
        rows = [(data_of(change["path"]), change) for change in record.changes]
        for path, change in sorted(rows, key=lambda row: row[0], reverse=True):
            stays = change["do"] in ("keep", "link") or change.get("same") or change["was"] in ("", ABSENT)
            if change["do"] == "remove" or not stays or (change["do"] == "link" and os.path.lexists(path)):
                self._remove(path)
        for path, change in sorted(rows, key=lambda row: row[0]):
            if change["do"] == "directory":
                os.mkdir(path, 0o700)
        for path, change in rows:
            self._make(path, change, blobs, staged)
        for path, change in rows:
            if change["do"] == "link":
                os.link(data_of(change["to"]), path, follow_symlinks=False)
        for path, change in sorted(rows, key=lambda row: row[0], reverse=True):
            if change["do"] not in ("remove", "link"):
                self._describe(path, change)

    def _remove(self, path: bytes) -> None:
        st = os.lstat(path)
        entry = self._inodes.known(st)
        if stat.S_ISDIR(st.st_mode):
            os.rmdir(path)
        else:
            os.unlink(path)
        if entry is not None and (st.st_nlink <= 1 or stat.S_ISDIR(st.st_mode)):
            self._inodes.unlinked(entry)

    @staticmethod
    def _make(path: bytes, change: dict[str, Any], blobs: dict[str, bytes], staged: Staging) -> None:
        kind = change["do"]
        if kind == "file":
            if not staged.place(path):
                flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_TRUNC if change["same"] else os.O_CREAT | os.O_EXCL)
                with open(os.open(path, flags, 0o600), "wb") as file:
                    file.write(blobs[change["blob"]])
        elif kind == "symlink":
            os.symlink(data_of(change["text"]), path)
        elif kind in ("fifo", "socket"):
            os.mknod(path, (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK) | 0o600)

    def _describe(self, path: bytes, change: dict[str, Any]) -> None:
        """Modes and attributes for real; the rest is what the guest sees."""
        if "xattrs" in change:
            for name in facts.xattrs_of(path).keys() - change["xattrs"].keys():
                os.removexattr(path, name, follow_symlinks=False)
            for name, value in change["xattrs"].items():
                os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
        st = os.lstat(path)
        if not stat.S_ISLNK(st.st_mode) and stat.S_IMODE(st.st_mode) != change["mode"]:
            os.chmod(path, change["mode"])
            st = os.lstat(path)
        entry = self._inodes.known(st)
        if entry is None or entry.ino != change["ino"]:
            entry = self._inodes.put(st, change["ino"])
        entry.uid, entry.gid = change["owner"]
        entry.changed, entry.source = change["changed"], change["source"]
        entry.btime = change["times"][3]
        entry.set_times(*change["times"][:3])

    def _number(self, t: Task, record: Record) -> None:
        for place, number in record.numbered:
            st = os.stat(f"/proc/{t.tid}/fd/{place}") if isinstance(place, int) else os.lstat(data_of(place))
            self._inodes.put(st, number)
        asked = [parsed(line) for line in record.facts]
        block = self._common.block(record.common[0]) if record.common[0] else None
        sources = [path for path, aspects, _ in asked if aspects & PYTIME]
        for path in sources if block is None else (*sources, *block.sources):
            self._python_source(path)

    def _python_source(self, path: bytes) -> None:
        """What stat() does for a source that it is asked about by this path."""
        try:
            st = os.stat(path)
        except OSError:
            return
        entry: VInode | None = self._inodes.known(st)
        if entry is not None and not entry.source:
            self._inodes.python_source(entry, path, None, st.st_size)


def _several(kind: str) -> bool:
    """Whether a KIND is that of a file with more than one name."""
    return kind[:1] == "f" and kind.rstrip("ug").rpartition(":")[2] != "1"
