"""Finds sites for the supervisor, which cannot: from inside the container neither the disassembler nor the
cache is in reach, except for the index that it has opened before.

The supervisor sends one byte and a descriptor to the keeper, which stays outside, and gets JSON back, with
its length before it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

from detbox.cpu.sitecache import SiteCache
from detbox.cpu.siteindex import SiteIndex
from detbox.cpu.sites import Site
from detbox.cpu.trampoline import Displacement

SITES, DISPLACEMENTS = b"s", b"t"
_LENGTH = struct.Struct("<I")


def answer(sock: socket.socket, word: bytes, fd: int, cache: SiteCache, index: SiteIndex) -> None:
    """Serve one request in the keeper; a file that cannot be read has nothing in it."""
    rows: list[list[object]] = []
    try:
        # Before it is read: a change meanwhile makes it another file for the index.
        st = os.fstat(fd)
        if word == SITES:
            sites = cache.sites(fd)
            index.note(st, Site, sites)
            rows = [site.to_row() for site in sites]
        else:
            moves = cache.displacements(fd)
            index.note(st, Displacement, moves)
            rows = [moved.to_row() for moved in moves]
    except (OSError, ValueError):
        pass
    send(sock, rows)


def send(sock: socket.socket, value: object) -> None:
    """The keeper's answer to one request."""
    body = json.dumps(value).encode()
    sock.sendall(_LENGTH.pack(len(body)) + body)


def receive(sock: socket.socket) -> Any:
    """What the keeper answered.  Raises EOFError if it is gone."""
    (length,) = _LENGTH.unpack(_receive(sock, _LENGTH.size))
    return json.loads(_receive(sock, length))


class Finder:
    """The supervisor's side; ``requests``: descriptor of its end of the socket pair."""

    def __init__(self, requests: int, index: SiteIndex) -> None:
        self._requests = requests
        self._index = index

    def sites(self, fd: int) -> list[Site]:
        """The sites of an open file."""
        noted = self._index.find(os.fstat(fd), Site)
        return [Site.from_row(row) for row in self._ask(SITES, fd)] if noted is None else noted

    def displacements(self, fd: int) -> list[Displacement]:
        """What can be moved in an open file to make room for jumps."""
        noted = self._index.find(os.fstat(fd), Displacement)
        return [Displacement.from_row(row) for row in self._ask(DISPLACEMENTS, fd)] if noted is None else noted

    def _ask(self, word: bytes, fd: int) -> list[list[object]]:
        with socket.socket(fileno=self._requests) as sock:
            try:
                socket.send_fds(sock, [word], [fd])
                rows: list[list[object]] = receive(sock)
            finally:
                sock.detach()
        return rows


def _receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise EOFError("the keeper is gone")
        data += part
    return data
