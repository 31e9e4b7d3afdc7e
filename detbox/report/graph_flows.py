"""What went from one process to another: files that one wrote and another read, pipes, and pairs of sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detbox.recorder.files import PAIR, PIPE, Files, Use, other_end

if TYPE_CHECKING:
    from detbox.report.graph import Node

_COMMON = (b"/dev/", b"/proc/", b"/sys/")
_STREAMS = (b"stdin", b"stdout", b"stderr")


@dataclass(frozen=True)
class Flow:
    """Files that one row has written and another read, and pipes (and pairs of sockets) between them."""

    source: Node
    target: Node
    paths: tuple[str, ...]
    pipes: tuple[str, ...]


def flows(files: Files, roots: list[Node]) -> list[Flow]:
    """All flows between different rows."""
    row_of = {lineage: node for root in roots for node, _ in root.walk() for lineage in node.lineages}
    between: dict[tuple[int, int], tuple[Node, Node, dict[str, None], dict[str, None]]] = {}
    for name, writer, reader in sorted(_connections(files)):
        source, target = _row(row_of, writer), _row(row_of, reader)
        if source is not None and target is not None and source is not target:
            _, _, paths, pipes = between.setdefault((id(source), id(target)), (source, target, {}, {}))
            (pipes if name.startswith((PIPE, PAIR)) else paths)[os.fsdecode(name)] = None
    return [Flow(source, target, tuple(names), tuple(ends)) for source, target, names, ends in between.values()]


def _connections(files: Files) -> Iterator[tuple[bytes, str, str]]:
    """Name, lineage of a writer, lineage of a reader: each once."""
    writers: dict[bytes, list[tuple[str, Use]]] = {}
    readers: dict[bytes, list[tuple[str, Use]]] = {}
    for (lineage, path), use in files.uses.items():
        if path.startswith(_COMMON) or path in _STREAMS:
            continue
        if use.written:
            writers.setdefault(other_end(path), []).append((lineage, use))
        if use.read:
            readers.setdefault(path, []).append((lineage, use))
    for path in writers.keys() & readers.keys():
        through = path.startswith((PIPE, PAIR))
        for reader, use in readers[path]:
            if through and not use.bytes_read:
                continue
            last = use.last_read if through else use.first_read
            before = [(made.first_written, writer) for writer, made in writers[path] if made.first_written < last]
            others = sorted(entry for entry in before if entry[1] != reader)
            # What is in a pipe is from everybody who wrote there, a file's content from the last one.
            yield from ((path, writer, reader) for _, writer in (others if through else others[-1:]))


def _row(row_of: dict[str, Node], lineage: str) -> Node | None:
    """The row of a process, or of the nearest one above that is shown."""
    while lineage:
        if lineage in row_of:
            return row_of[lineage]
        lineage = lineage.rpartition(".")[0]
    return None
