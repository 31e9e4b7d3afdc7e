"""The supervisor's questions are answered by the keeper."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from detbox.cpu import service
from detbox.cpu.sitecache import SiteCache
from detbox.cpu.siteindex import SiteIndex
from detbox.cpu.sites import find_sites
from detbox.cpu.trampoline import displacements

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


@pytest.fixture
def finder(tmp_path: Path) -> Iterator[service.Finder]:
    keeper, supervisor = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def serve() -> None:
        cache, index = SiteCache(tmp_path), SiteIndex(tmp_path)
        while True:
            word, fds, _, _ = socket.recv_fds(keeper, 1, 1)
            if not word:
                return
            service.answer(keeper, word, fds[0], cache, index)
            os.close(fds[0])

    thread = threading.Thread(target=serve)
    thread.start()
    yield service.Finder(supervisor.fileno(), SiteIndex(tmp_path))
    supervisor.close()
    thread.join()
    keeper.close()


def test_sites_and_displacements(finder: service.Finder) -> None:
    data = LOADER.read_bytes()
    fd = os.open(LOADER, os.O_RDONLY)
    try:
        assert finder.sites(fd) == find_sites(data)
        assert finder.displacements(fd) == displacements(data, find_sites(data))
        assert finder.sites(fd) == find_sites(data)
    finally:
        os.close(fd)


def test_what_cannot_be_read_has_nothing(finder: service.Finder, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert finder.sites(fd) == []
    finally:
        os.close(fd)
