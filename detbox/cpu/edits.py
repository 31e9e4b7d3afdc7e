"""Changes to code in memory, joined so that each page is written once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from detbox.records import NamedTuple

_PAGE = 4096


class Edit(NamedTuple):
    """At ``address`` there have to be the bytes ``old``; ``new``, of the same length, replaces them."""

    address: int
    old: bytes
    new: bytes


def join(patches: Iterable[tuple[int, bytes]], original: Callable[[int, int], bytes]) -> list[Edit]:
    """One edit for all patches (address, bytes) of a page.  ``original(address, length)``: what is there now.

    A later patch wins where two overlap.
    """
    groups: list[list[tuple[int, bytes]]] = []
    end = -1
    for address, new in sorted(patches, key=lambda patch: patch[0]):
        if groups and address // _PAGE <= (end - 1) // _PAGE:
            groups[-1].append((address, new))
        else:
            groups.append([(address, new)])
        end = max(end, address + len(new))
    edits = []
    for group in groups:
        start = group[0][0]
        old = original(start, max(address + len(new) for address, new in group) - start)
        text = bytearray(old)
        for address, new in group:
            text[address - start : address - start + len(new)] = new
        edits.append(Edit(start, old, bytes(text)))
    return edits
