"""Python's modules stay in reach of the supervisor after its root directory has changed, and out of the guest's.

What few runs need (the disassembler above all, 25 ms) is imported when it is needed.  By then the root directory is
the guest's, and nothing under it may be trusted or lead to the host.  So all that the host has is kept as a detached
mount: no path leads to it, from any process.  The supervisor has its descriptor, and while it looks for a module or
executes one, that is its root directory.  Whatever an import does finds what it would have found before: the libraries
that an extension module needs, too, which the dynamic loader looks for by itself (ld.so(8)).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec
from types import ModuleType
from typing import Any

from detbox import bundle
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS

_AT_FDCWD = -100 & 0xFFFFFFFF
#: OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC (include/uapi/linux/mount.h), AT_RECURSIVE
_CLONE = 1 | os.O_CLOEXEC | 0x8000
#: They look at no file.
_WITHOUT_FILES = (BuiltinImporter, FrozenImporter)


def open_host() -> int:
    """The descriptor of a detached mount of the root directory, with all that is mounted below; OSError."""
    fd = _native.raw_syscall(NUMBERS["open_tree"], _AT_FDCWD, b"/\0", _CLONE)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), "/")
    return fd


def follow(host: int) -> None:
    """Look for modules there, and nowhere else, from now on: called before the root directory changes.

    ``host``: what :func:`open_host` has returned.
    """
    sys.path[:] = [os.path.abspath(path) for path in sys.path]
    for module in list(sys.modules.values()):
        paths = getattr(module, "__path__", None)
        if isinstance(paths, list):
            paths[:] = map(os.path.abspath, paths)
    sys.path_importer_cache.clear()
    bundles = [finder for finder in sys.meta_path if isinstance(finder, bundle.Finder)]
    elsewhere = [finder for finder in sys.meta_path if finder not in (*_WITHOUT_FILES, *bundles)]
    sys.meta_path[:] = [*_WITHOUT_FILES, *bundles, _Finder(elsewhere, _Host(host))]


class _Host:
    """The host's root directory, for as long as it is needed.  The supervisor has one thread."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._inside = False

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """It is the root and the working directory for a while."""
        if self._inside:
            yield
            return
        root, place = (os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in ("/", "."))
        mask = os.umask(0o022)  # what is compiled is kept as by any import; the guest's umask is 0 here
        try:
            self._inside = True
            _enter(self._fd)
            yield
        finally:
            _enter(root)
            os.fchdir(place)
            self._inside = False
            os.umask(mask)
            os.close(root)
            os.close(place)


def _enter(root: int) -> None:
    os.fchdir(root)
    os.chroot(".")


class _Finder:
    """Finds modules as others do, on the host (importlib.abc.MetaPathFinder)."""

    def __init__(self, finders: Sequence[Any], host: _Host) -> None:
        self._finders = finders
        self._host = host

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to load a module; None if it is nowhere."""
        with self._host.entered():
            for finder in self._finders:
                spec: ModuleSpec | None = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if spec.loader is not None:
                        spec.loader = _Loader(spec.loader, self._host)  # type: ignore[assignment]
                    return spec
        return None


class _Loader:
    """Loads a module as another loader does, on the host (importlib.abc.Loader)."""

    def __init__(self, loader: Any, host: _Host) -> None:
        self._loader = loader
        self._host = host

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Load the library of an extension module."""
        with self._host.entered():
            made: ModuleType | None = self._loader.create_module(spec)
            return made

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module."""
        with self._host.entered():
            self._loader.exec_module(module)
