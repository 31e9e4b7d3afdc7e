"""Results of the executions inside of jobs, from elsewhere: one bundle for all of one job, none of which is trusted.

What an execution is named follows from the job's command and environment.  So the bundle of the last run of the same
command has all that can be of use, and is fetched at once; asking for each execution would cost more than most of
them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from detbox.cache.blobs import is_digest
from detbox.cache.common import is_fact
from detbox.cache.record import Record, inlined
from detbox.cache.remote_check import HASH, is_path
from detbox.cache.summary import data_of
from detbox.cache.world import made

#: Unpacked bundles that are larger are refused.
_MOST = 512 << 20
_MOST_COUNT = 1 << 62
_ASPECTS = 0xFF
_DO = frozenset(("remove", "link", "keep", "directory", "fifo", "socket", "symlink", "file"))
_SIGNALS = 64


def pack(results: Iterable[tuple[str, bytes]]) -> bytes:
    """A bundle of (key, result)."""
    texts = (key.encode() + b" " + zlib.decompress(data) for key, data in results)
    return zlib.compress(b"\0".join(texts), 3)


def unpack(data: bytes) -> Iterator[tuple[str, bytes, Record]]:
    """The results of a bundle that have the right form: (key, its bytes in a store, the same)."""
    try:
        unpacked = zlib.decompressobj().decompress(data, _MOST)
    except zlib.error:
        return
    for each in unpacked.split(b"\0"):
        key, _, text = each.partition(b" ")
        packed = zlib.compress(text, 1)
        record = Record.from_bytes(packed)
        if record is not None and is_digest(record.key) and record.key.encode() == key and is_sound(record):
            yield record.key, packed, record


def is_sound(record: Record) -> bool:
    """Whether a result has the form that this program writes; nothing is said about any run."""
    try:
        return (
            all(is_fact(line) for line in record.facts) and _common(record)
            and all(_change(change) for change in record.changes)
            and len({change["path"] for change in record.changes}) == len(record.changes)
            and all(is_path(path) and _count(aspects, _ASPECTS) for path, aspects in record.marks.items())
            and all(_count(place) or is_path(place) for place, number in record.numbered if _count(number))
            and all(_count(number) and _count(position) for number, position in record.positions)
            and _output(record) and _pipes(record) and _counters(record)
        )  # fmt: skip
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return False


def _count(value: Any, most: int = _MOST_COUNT) -> bool:
    return type(value) is int and 0 <= value <= most


def _common(record: Record) -> bool:
    """Of the facts in the blob nothing is said: they are looked at when it is taken apart."""
    digest, size = record.common
    return _count(size) and (is_digest(digest) if size else digest == "")


def _content(content: Any, size: int) -> bool:
    """Whether it stands for so many bytes."""
    data = inlined(content) if isinstance(content, str) else None
    return is_digest(content) if data is None else len(data) == size


def _change(change: Any) -> bool:
    kind = change["do"]
    if kind not in _DO or not is_path(change["path"]) or change["path"] == "/" or made(data_of(change["path"])):
        return False
    if not isinstance(change["was"], str) or len(change["was"]) > 1:
        return False
    if kind == "remove":
        return True
    if kind == "link":
        return is_path(change["to"])
    numbers = [change["mode"], change["ino"], *change["owner"], *change["times"]]
    fit = (
        all(_count(number) for number in numbers) and change["mode"] <= 0o7777 and len(change["owner"]) == 2
        and len(change["times"]) == 4 and all(type(change[name]) is bool for name in ("same", "changed", "source"))
        and all(name.startswith("user.") and bytes.fromhex(value) is not None
                for name, value in change.get("xattrs", {}).items())
    )  # fmt: skip
    if kind == "symlink":
        return fit and isinstance(change["text"], str) and "\0" not in change["text"] and change["text"] != ""
    return fit and (kind != "file" or _count(change["size"]) and _content(change["blob"], change["size"]))


def _output(record: Record) -> bool:
    fit = all(stream in (1, 2) and _count(size) and size > 0 for stream, size in record.turns)
    streams = all(stream in (0, 1, 2) and _count(flags, 0o77777777) for stream, flags in record.flags)
    size = sum(size for _, size in record.turns)
    return fit and streams and (_content(record.output, size) if record.turns else record.output == "")


def _pipes(record: Record) -> bool:
    moved = {row[0]: 0 for row in record.pipes}
    for number, count in record.moves:
        if type(count) is not int or not count:
            return False
        moved[number] += abs(count)
    for row in record.pipes:
        reads = isinstance(row[3], str)
        fit = len(row) == 4 and _count(row[0]) and _count(row[1])
        if reads and not (fit and HASH.fullmatch(row[3]) and moved[row[0]] <= row[1]):
            return False
        if not reads and not (fit and _count(row[2]) and moved[row[0]] == row[3]):
            return False
    signs = {(number, count > 0) for number, count in record.moves}
    kinds = {(row[0], not isinstance(row[3], str)) for row in record.pipes}
    written = sum(count for _, count in record.moves if count > 0)
    blob = _content(record.moved, written) if written else record.moved == ""
    return blob and signs <= kinds and len(moved) == len(record.pipes)


def _counters(record: Record) -> bool:
    status = record.status
    ended = _count(status, 0xFFFF) and (not status & 0xFF or 0 < status <= _SIGNALS)
    names = ("clock", "next_inode", "last_process", "cpu_ns", "children_ns", "turns_taken")
    return ended and all(_count(getattr(record, name)) for name in names) and type(record.jumps) is bool
