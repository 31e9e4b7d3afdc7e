"""The actions of `detbox cache` on the stored results: look at them, remove them, carry them elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from detbox import values
from detbox.errors import HostError, UserError

if TYPE_CHECKING:
    from detbox.cache.store import Entry, Store

_SHORT = 12


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


@dataclass(frozen=True)
class Action:
    """One action: ``body`` gives a value, ``text`` shows it (None: as a table)."""

    name: str
    help: str
    body: Callable[[Store, argparse.Namespace], Any]
    add_arguments: Callable[[argparse.ArgumentParser], None] = _nothing
    text: Callable[[Any], str] | None = None


# -- looking -------------------------------------------------------------------------------


def _list(store: Store, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    sizes = {digest: st.st_size for digest, st in store.blobs()}
    rows = [_row(entry, sizes) for entry in reversed(store.entries())]
    return [row for row in rows if arguments.all or row["kind"] == "job"]


def _row(entry: Entry, sizes: dict[str, int]) -> dict[str, Any]:
    from detbox.cache.manifest import Manifest

    manifest = Manifest.from_bytes(entry.manifest)
    size = len(entry.manifest) + sum(sizes.get(digest, 0) for digest in set(entry.blobs))
    row: dict[str, Any] = {"key": entry.key, "kind": "part of a job", "bytes": size, "made": entry.made,
                           "used": entry.used, "complete": all(digest in sizes for digest in entry.blobs)}  # fmt: skip
    if manifest is not None:
        row.update(kind="job", command=manifest.command, seconds=round(manifest.seconds, 3), status=manifest.status)
    return row


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="parts of jobs as well")


def _list_text(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'key':<{_SHORT}}  {'last used':<19}  {'size':>8}  {'took':>9}  command"]
    for row in rows:
        used = datetime.fromtimestamp(row["used"]).isoformat(" ", "seconds")
        took = f"{row['seconds']:.2f} s" if "seconds" in row else ""
        command = " ".join(row["command"]) if "command" in row else f"({row['kind']})"
        lines.append(f"{row['key'][:_SHORT]:<{_SHORT}}  {used}  {_size(row['bytes']):>8}  {took:>9}  {command[:80]}")
    return "\n".join(lines) if rows else "the cache holds no result"


def _show(store: Store, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from detbox.cache.manifest import Manifest

    sizes = {digest: st.st_size for digest, st in store.blobs()}
    found = []
    for entry in _chosen(store, [arguments.key]):
        row = _row(entry, sizes)
        manifest = Manifest.from_bytes(entry.manifest)
        if manifest is not None:
            row.update(facts=manifest.facts, changes=manifest.changes, stdin=manifest.stdin)
        found.append(row)
    return found


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="the first digits of a key, as `list` shows it")


def _show_text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        facts, changes = row.pop("facts", {}), row.pop("changes", [])
        lines += [f"{name:<12} {value}" for name, value in row.items()]
        lines += ["facts:", *(f"  {path}  {' '.join(map(str, fact))}" for path, fact in facts.items())]
        lines += ["changes:", *(f"  {change['do']:<9} {change['path']}" for change in changes), ""]
    return "\n".join(lines)


def _check(store: Store, arguments: argparse.Namespace) -> dict[str, Any]:
    from detbox.cache.gc import check

    return check(store)


# -- removing ------------------------------------------------------------------------------


def _gc(store: Store, arguments: argparse.Namespace) -> dict[str, int]:
    from detbox.cache.gc import collect

    _must_be_writable(store)
    most = values.size(arguments.max_size, "--max-size")
    return collect(store, most, values.duration_s(arguments.max_age, "--max-age"))


def _gc_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-size", metavar="SIZE", help="keep at most so much: bytes, or 512M, 4G")
    parser.add_argument("--max-age", metavar="TIME", help="forget what was not used for so long: 12h, 30d")


def _rm(store: Store, arguments: argparse.Namespace) -> dict[str, int]:
    from detbox.cache.gc import collect

    _must_be_writable(store)
    if bool(arguments.keys) == arguments.all:
        raise UserError("say which results to remove", "give their keys (see: detbox cache list), or --all")
    return collect(store, chosen=[entry.number for entry in _chosen(store, arguments.keys)])


def _rm_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("keys", nargs="*", metavar="KEY", help="the first digits of keys, as `list` shows them")
    parser.add_argument("--all", action="store_true", help="everything")


# -- carrying ------------------------------------------------------------------------------


def _export(store: Store, arguments: argparse.Namespace) -> dict[str, int]:
    from detbox.cache.exchange import export

    entries = _chosen(store, arguments.keys)
    try:
        if arguments.file == "-":
            return export(store, entries, sys.stdout.buffer)
        with open(arguments.file, "wb") as file:
            return export(store, entries, file)
    except OSError as error:
        raise UserError(f"{arguments.file}: {error.strerror}") from None


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a tar archive; - is standard output")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="only these results (default: all)")


def _import(store: Store, arguments: argparse.Namespace) -> dict[str, int]:
    from detbox.cache.exchange import take_in

    _must_be_writable(store)
    try:
        if arguments.file == "-":
            return take_in(store, sys.stdin.buffer)
        with open(arguments.file, "rb") as file:
            return take_in(store, file)
    except OSError as error:
        raise UserError(f"{arguments.file}: {error.strerror or error}") from None


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="what `export` has written; - is standard input")


def _chosen(store: Store, keys: Iterable[str]) -> list[Entry]:
    """The results whose keys begin so; all of them if no key is given."""
    wanted = tuple(keys)
    entries = store.entries()
    for key in wanted:
        if not any(entry.key.startswith(key) for entry in entries):
            raise UserError(f"the cache has no result {key}", "see: detbox cache list")
    return [entry for entry in entries if not wanted or entry.key.startswith(wanted)]


def _must_be_writable(store: Store) -> None:
    if not store.writable:
        raise HostError(f"the cache {store.directory} is read-only", "give another --cache-dir")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


ACTIONS = (
    Action("list", "the results that are kept, the one used last first", _list, _list_arguments, _list_text),
    Action("show", "all that is known of one result: its facts and its changes", _show, _show_arguments, _show_text),
    Action("check", "read everything and verify its checksums; remove what is damaged (status 1 if something was)",
           _check),
    Action("gc", "remove what was used least recently, and what belongs to nothing; safe while others run", _gc,
           _gc_arguments),
    Action("rm", "remove results", _rm, _rm_arguments),
    Action("export", "write results to an archive for another machine", _export, _export_arguments),
    Action("import", "take results in from an archive", _import, _import_arguments),
)  # fmt: skip
