"""Does again what an execution inside of a run has left, instead of executing it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from detbox.cache import facts, pipes
from detbox.cache.common import parsed
from detbox.cache.facts import ABSENT, IDENTITY, KIND, PYTIME
from detbox.cache.record import inlined
from detbox.cache.staging import Staging
from detbox.cache.summary import data_of
from detbox.cache.world import made, parent_of
from detbox.handlers import paths

if TYPE_CHECKING:
    from detbox.cache.common import Common
    from detbox.cache.contents import Contents
    from detbox.cache.execution import Execution
    from detbox.cache.observed import Observed
    from detbox.cache.record import Record
    from detbox.cache.store import Store
    from detbox.cache.tracker import Tracker
    from detbox.machine.inodes import VInode
    from detbox.supervisor.task import Task

#: What ways may pass through, see World.changed, as it is afterwards and as it was.
_ON_WAYS, _WAYS = frozenset(("directory", "symlink")), frozenset("dl")


class Redo:
    """For one run."""

    def __init__(self, tracker: Tracker, store: Store, common: Common, contents: Contents) -> None:
        self._tracker = tracker
        self._store = store
        self._common = common
        self._contents = contents
        self._inodes = tracker.m.inodes

    def apply(self, t: Task, mine: Execution, record: Record, observed: Observed) -> bool:
        """Put a result in place.  False, with nothing changed, if a blob is missing or a file cannot be staged."""
        tracker = self._tracker
        if not self._can_apply(t, record):
            return False
        blobs = self._contents_of(record)
        if blobs is None:
            return False
        staged = self._stage(record, blobs)
        if staged is None:
            return False
        parent = mine.parent
        assert parent is not None
        self._tell(parent, record)
        for name, aspects in record.marks.items():
            place = data_of(name)
            tracker.ledger.touch(parent, place, KIND | IDENTITY)
            tracker.ledger.settle(place)
            tracker.ledger.mark(parent, place, aspects)
        self._carry_out(record, blobs, staged)
        staged.close()
        self._number(t, record)
        # A directory that stays, and got a new time, leads where it led.
        if any(
            change["do"] in _ON_WAYS or (change["was"] in _WAYS and change["do"] != "keep") for change in record.changes
        ):
            tracker.names_change()
            paths.ways_change(tracker.m)
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

    def _tell(self, parent: Execution, record: Record) -> None:
        """What the execution looked at has been looked at by who is around it."""
        block = self._common.block(record.common[0]) if record.common[0] else None
        if block is not None and record.common[0] not in parent.told:
            parent.told.add(record.common[0])
            for path, aspects in block.asked:
                self._tracker.ledger.touch(parent, path, aspects)
        for line in record.facts:
            if line not in parent.told:
                path, aspects, _ = parsed(line)
                self._tracker.ledger.touch(parent, path, aspects)
        parent.told.update(record.facts)

    def _contents_of(self, record: Record) -> dict[str, bytes] | None:
        """Whatever is to be written, by what the result calls it; None if a blob is missing."""
        found: dict[str, bytes] = {}
        for content, _ in record.sized_contents():
            try:
                data = inlined(content)
            except ValueError:
                return None
            if data is None:
                data = self._store.open_blob(content)
            if data is None:
                return None
            found[content] = data
        return found

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
                to, origin = data_of(change["to"]), self._tracker.origin
                os.link(to, path, follow_symlinks=False)
                origin[path] = origin.get(to, to)
        for path, change in sorted(rows, key=lambda row: row[0], reverse=True):
            if change["do"] not in ("remove", "link"):
                self._describe(path, change, blobs)

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

    def _describe(self, path: bytes, change: dict[str, Any], blobs: dict[str, bytes]) -> None:
        """Modes and attributes for real; the rest is what the guest sees."""
        new = change["do"] == "file" and not change["same"]
        if "xattrs" in change:
            if not new:
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
        if new and entry.changed:
            self._contents.written(path, st, entry.mtime, blobs[change["blob"]], change["blob"])

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
