"""Python's modules stay in reach of the supervisor after its root directory has changed, and out of the guest's.

What few runs need (the disassembler above all, 25 ms) is imported when it is needed.  By then the root directory is
the guest's, and nothing under it may be trusted or lead to the host.  So the directories of ``sys.path`` are kept as
detached mounts: no path leads to them, from any process.  The supervisor has their descriptors, and reaches what is
in them as ``self/fd/N/…`` below a procfs mount that has no path either.  Such a relative path is good for everything
that an import does, ``dlopen`` too, while that procfs is the working directory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    ModuleSpec,
    SourceFileLoader,
)
from types import ModuleType

from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS

_AT_FDCWD = -100 & 0xFFFFFFFF
#: OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC (include/uapi/linux/mount.h), AT_RECURSIVE
_CLONE = 1 | os.O_CLOEXEC | 0x8000
_PREFIX = "self/fd/"

#: Host path of a directory → descriptor of its detached mount.
Trees = dict[str, int]


def open_trees() -> Trees:
    """Detached mounts of each directory of ``sys.path``, and of this package's; OSError."""
    # An editable installation may find this package through a hook of its own, without an entry in sys.path.
    own = [os.path.dirname(path) for path in sys.modules["detbox"].__path__]
    found = dict.fromkeys(os.path.abspath(path or ".") for path in [*sys.path, *own])
    return {path: _open_tree(path) for path in found if os.path.isdir(path)}


def _open_tree(path: str) -> int:
    fd = _native.raw_syscall(NUMBERS["open_tree"], _AT_FDCWD, os.fsencode(path) + b"\0", _CLONE)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), path)
    return fd


def follow(trees: Trees, proc_fd: int) -> None:
    """Look for modules there, and nowhere else, from now on: called when the root has changed.

    ``proc_fd``: descriptor of a procfs mount in which ``self`` is this process.
    """

    def moved(path: str) -> str:
        top = max((old for old in trees if path == old or path.startswith(old + "/")), key=len, default=None)
        return path if top is None else f"{_PREFIX}{trees[top]}{path[len(top) :]}"

    sys.path[:] = [moved(path) for path in trees]
    for module in list(sys.modules.values()):
        paths = getattr(module, "__path__", None)
        if isinstance(paths, list):
            paths[:] = [moved(os.path.abspath(path)) for path in paths]
    sys.path_hooks[:] = [lambda path: _Finder(path, proc_fd)]
    sys.path_importer_cache.clear()
    sys.pycache_prefix = None  # compiled files lie beside their sources, or nowhere: there is no way to any other place


class _Finder:
    """Finds the modules of one directory (importlib.abc.PathEntryFinder)."""

    def __init__(self, path: str, proc_fd: int) -> None:
        if not path.startswith(_PREFIX):
            raise ImportError("not a directory of the host", path=path)
        self._path = path
        self._proc_fd = proc_fd
        with within(proc_fd):
            self._names = frozenset(os.listdir(path)) if os.path.isdir(path) else frozenset()

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        """How to load a module from here; None if it is not here."""
        name = fullname.rpartition(".")[2]
        place = f"{self._path}/{name}"
        if name in self._names:
            with within(self._proc_fd):
                inside = os.listdir(place) if os.path.isdir(place) else []
            if "__init__.py" in inside:
                return self._spec(fullname, f"{place}/__init__.py", place)
        for suffix in (*EXTENSION_SUFFIXES, *SOURCE_SUFFIXES):
            if name + suffix in self._names:
                return self._spec(fullname, place + suffix, None)
        return None

    def _spec(self, fullname: str, path: str, package: str | None) -> ModuleSpec:
        loader = (_Source if path.endswith(".py") else _Extension)(fullname, path)
        loader.proc_fd = self._proc_fd
        spec = ModuleSpec(fullname, loader, origin=path, is_package=package is not None)
        if package is not None:
            spec.submodule_search_locations = [package]
        spec.has_location = True
        return spec


class _Source(SourceFileLoader):
    proc_fd: int

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module where it and what it loads can be found.

        It is compiled once, as by any import, but not with this process's umask, which is the guest's affair.
        """
        mask = os.umask(0o022)
        try:
            with within(self.proc_fd):
                super().exec_module(module)
        finally:
            os.umask(mask)


class _Extension(ExtensionFileLoader):
    proc_fd: int

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Load the library."""
        with within(self.proc_fd):
            return super().create_module(spec)


@contextlib.contextmanager
def within(directory: int) -> Iterator[None]:
    """The descriptor's directory is the working directory for a while; the supervisor has one thread."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(directory)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
