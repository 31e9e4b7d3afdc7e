"""All of detbox's modules in one file: finding and reading 190 files is a third of the time that their import takes.

It lies beside the other compiled files of the package, and is made at the end of the first command that finds it
missing or out of date, by whoever may write there.  What is in it counts as long as the source has the size and the
time of modification that it had then, as with any compiled file (PEP 552).  The other modules are imported as always.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_INIT = "__init__.py"
#: Of a module: the path of its source, the second of that file's last change and its size, and where the code is.
_Entry = tuple[str, int, int, int, int]
_LENGTH_BYTES = 8


class Finder:
    """Finds modules in the bundle (importlib.abc.MetaPathFinder).  It looks at no file any more.

    ``entries``: by the modules' names.  ``code``: theirs, compiled, as :mod:`marshal` writes it.
    """

    def __init__(self, entries: dict[str, _Entry], code: memoryview) -> None:
        self._entries = entries
        self._code = code

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How to load a module; None if it is not in the bundle."""
        entry = self._entries.get(fullname)
        if entry is None:
            return None
        place, _, _, start, length = entry
        spec = ModuleSpec(fullname, _Loader(fullname, place, self._code[start : start + length]), origin=place)
        spec.has_location = True
        if place.endswith(_INIT):
            spec.submodule_search_locations = [os.path.dirname(place)]
        return spec


class _Loader(SourceFileLoader):
    """Loads a module whose code is known, and is otherwise what loads a module from a file."""

    def __init__(self, fullname: str, path: str, code: memoryview) -> None:
        super().__init__(fullname, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        made: CodeType = marshal.loads(self._code)
        return made


def use() -> None:
    """Import detbox's modules from the bundle from now on, as far as it is up to date."""
    global _wanting
    entries, code = _read()
    for name, (path, changed, size, *_) in list(entries.items()):
        try:
            source = os.stat(path)
        except OSError:
            source = None
        if source is None or source.st_size != size or int(source.st_mtime) != changed:
            del entries[name]
            _wanting = True
    sys.meta_path.insert(0, Finder(entries, code))


def renew() -> None:
    """Make the bundle if modules were not in it, where Python may keep compiled files."""
    place = _place()
    if _wanting and place is not None and not sys.dont_write_bytecode and os.access(os.path.dirname(place), os.W_OK):
        with contextlib.suppress(OSError, SyntaxError):  # then it is done without
            make()


def make() -> None:
    """Make the bundle.  Raises OSError; SyntaxError if a module is none."""
    place = _place()
    if place is not None:
        _write(place, _bundled())


_wanting = False


def _place() -> str | None:
    """Where the bundle is; None if there are no compiled files."""
    return __spec__.cached and os.path.splitext(__spec__.cached)[0] + ".all"


def _read() -> tuple[dict[str, _Entry], memoryview]:
    """What the bundle has; nothing if there is none for this Python and this place."""
    global _wanting
    try:
        with open(_place() or "", "rb") as file:
            if file.fileno() <= 2:  # a standard stream is closed, and a mapping has a descriptor of its own, too
                return {}, memoryview(b"")
            content = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
        version, package, entries = marshal.loads(content[_LENGTH_BYTES:start])
        if (version, package) == (sys.version, _PACKAGE):
            return entries, content[start:]
    except (OSError, EOFError, ValueError, TypeError):
        pass
    _wanting = True
    return {}, memoryview(b"")


def _bundled() -> bytes:
    """The content of the bundle."""
    entries: dict[str, _Entry] = {}
    parts: list[bytes] = []
    start = 0
    for name, path in _modules(_PACKAGE, __package__ or ""):
        source = os.stat(path)  # before it is read: what is changed meanwhile is out of date
        part = marshal.dumps(SourceFileLoader(name, path).get_code(name))
        entries[name] = path, int(source.st_mtime), source.st_size, start, len(part)
        parts.append(part)
        start += len(part)
    head = marshal.dumps((sys.version, _PACKAGE, entries))
    return b"".join([len(head).to_bytes(_LENGTH_BYTES, "little"), head, *parts])


def _modules(directory: str, package: str) -> Iterator[tuple[str, str]]:
    """The names of the modules of a package, and their paths."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        name, suffix = os.path.splitext(entry.name)
        if entry.name == _INIT:
            yield package, entry.path
        elif suffix == ".py":
            yield f"{package}.{name}", entry.path
        elif os.path.exists(os.path.join(entry.path, _INIT)):
            yield from _modules(entry.path, f"{package}.{name}")


def _write(place: str, content: bytes) -> None:
    """Put a new file in its place, as a whole: it has no name before, so that nothing is left if this is interrupted.

    Raises OSError, also on file systems that have no such files (open(2), O_TMPFILE).
    """
    with open(os.open(os.path.dirname(place), os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), os.stat(__file__).st_mode & 0o666)  # as Python does with compiled files
        file.flush()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
        # The path is absolute; that a directory is given makes os.link() follow its last part (linkat(2)).
        os.link(f"/proc/self/fd/{file.fileno()}", place, src_dir_fd=file.fileno())
