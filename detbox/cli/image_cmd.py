"""`detbox image`: root file systems for runs, in a store."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbox.cli.helptext import HelpFormatter
from detbox.cli.messages import say
from detbox.errors import HostError, UserError

if TYPE_CHECKING:
    from detbox.images.store import Image, Store

_DESCRIPTION = """\
Makes, keeps and exchanges root file systems.  An image is known by a name and by its
digest, which depends on nothing but its content.  Use one with `detbox run --image NAME`.
"""

_EXAMPLES = """\
examples:
  detbox image build bookworm-minbase             from a recipe that comes with detbox
  detbox image build ./mine.toml --write-lock mine.lock
  detbox image build ./mine.toml --locked mine.lock
  detbox image import rootfs.tar.gz mine          a tarball, or an OCI layout
  detbox image export mine mine.tar --format oci  podman load, docker load, skopeo
  detbox image diff mine other
"""

_DAY_S = 86400
_HOST_REFUSES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def add_parser(verbs: Any) -> None:
    """Adds the verb to argparse's subparsers."""
    parser = verbs.add_parser(
        "image",
        help="make, keep and exchange root file systems",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    build = _action(actions, "build", _build, "make an image from a recipe")
    build.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe that comes with detbox")
    build.add_argument("--name", help="the image's name (default: the recipe's)")
    build.add_argument(
        "--mirror", action="append", default=[], metavar="URI", help="instead of the system's own apt sources"
    )
    build.add_argument("--locked", metavar="FILE", help="only the packages of this lock file")
    build.add_argument("--write-lock", metavar="FILE", help="write a lock file: every package, version and digest")
    _action(actions, "list", _list, "list images and the recipes that come with detbox")
    show = _action(actions, "show", _show, "say what an image is")
    show.add_argument("name", metavar="IMAGE")
    show.add_argument("--lock", action="store_true", help="print its lock file")
    show.add_argument("--files", action="store_true", help="print its manifest: every file with its metadata")
    bring = _action(actions, "import", _import, "add a tarball or an OCI layout")
    bring.add_argument("source", metavar="FILE", help="a tarball of a root file system, or an OCI layout")
    bring.add_argument("name", metavar="NAME")
    export = _action(actions, "export", _export, "write an image as a tarball or as an OCI layout")
    export.add_argument("name", metavar="IMAGE")
    export.add_argument("target", metavar="FILE", help="a new file or, for an OCI layout, also a directory")
    export.add_argument("--format", choices=("tar", "oci"), default="tar", help="(default: tar)")
    remove = _action(actions, "rm", _remove, "forget names, and remove the images that have none left")
    remove.add_argument("names", metavar="NAME", nargs="+")
    collect = _action(actions, "gc", _collect, "remove what is not used any more")
    collect.add_argument(
        "--layers", metavar="DAYS", type=float, default=30, help="build roots unused for so long (default: 30)"
    )
    diff = _action(actions, "diff", _diff, "compare two images; status 1 if they differ")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    _action(actions, "check", _check, "verify every file of the store; status 1 if something is wrong")


def _action(actions: Any, name: str, body: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.add_argument(
        "--store", metavar="DIR", help="the store (default: $DETBOX_STORE, or in the user's data directory)"
    )
    parser.set_defaults(body=lambda arguments: _guarded(body, arguments))
    return parser


def _guarded(body: Any, arguments: argparse.Namespace) -> int:
    """The action; what the host's disks and permissions refuse is no bug of detbox."""
    try:
        return int(body(_store(arguments), arguments))
    except OSError as error:
        if error.errno not in _HOST_REFUSES:
            raise
        raise HostError(f"{error.strerror}{f': {error.filename}' if error.filename else ''}") from error


def _store(arguments: argparse.Namespace) -> Store:
    from detbox.images.store import Store

    return Store(Path(arguments.store) if arguments.store else None)


def _build(store: Store, arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import ended_by_signals, phases
    from detbox.images import lock

    locked = lock.load(Path(arguments.locked)) if arguments.locked else None
    if arguments.write_lock:
        _check_target(arguments.write_lock, new=False)
    with ended_by_signals(), phases() as notice:
        image = store.build(
            arguments.recipe, arguments.name or "", mirrors=arguments.mirror, locked=locked, notice=notice
        )
    if arguments.write_lock:
        record = store.record(image.name) or {}
        Path(arguments.write_lock).write_text(record["lock"], encoding="utf-8")
    _print(_line(image))
    return 0


def _list(store: Store, arguments: argparse.Namespace) -> int:
    from detbox.images import recipe

    names = store.names()
    lines = [_line(store.resolve(name)) for name in names]
    named = {store.resolve(name).digest for name in names}
    others = [image for image in store.images() if image.digest not in named]
    if others:
        size = _size(sum(image.info["size"] for image in others))
        lines.append(f"{len(others)} without a name, {size}: build roots and the like")
    unmade = [name for name in recipe.shipped() if name not in names]
    if unmade:
        lines.append(f"recipes not built yet: {', '.join(unmade)}")
    _print(*lines)
    return 0


def _show(store: Store, arguments: argparse.Namespace) -> int:
    image = store.resolve(arguments.name)
    record = store.record(image.name) or {} if image.name else {}
    if arguments.lock:
        if not record.get("lock"):
            raise UserError(f"{arguments.name} has no lock file: it was not built from a recipe")
        sys.stdout.write(record["lock"])
        return 0
    if arguments.files:
        sys.stdout.flush()
        sys.stdout.buffer.write((image.place / "manifest").read_bytes())
        sys.stdout.buffer.flush()
        return 0
    names = [name for name in store.names() if (store.record(name) or {}).get("digest") == image.digest]
    lines = [
        f"names     {', '.join(names) or '-'}",
        f"digest    sha256:{image.digest}",
        f"root      {image.root}",
        f"size      {_size(image.info['size'])} in {image.info['files']} files",
        f"packages  {len(image.packages)}",
    ]
    if record.get("recipe"):
        lines.append(f"recipe    {record['recipe']}")
    _print(*lines, *(f"  {name} {version} {architecture}" for name, version, architecture in image.packages))
    return 0


def _import(store: Store, arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import bar, ended_by_signals

    total = os.path.getsize(arguments.source) if os.path.isfile(arguments.source) else 0
    if not os.path.exists(arguments.source):
        raise UserError(f"there is no {arguments.source}")
    with ended_by_signals(), bar("unpacking", total) as advance:
        image = store.import_tar(arguments.source, arguments.name, advance)
    _print(_line(image))
    return 0


def _export(store: Store, arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import bar, ended_by_signals
    from detbox.images import inside, oci, tarball

    image = store.resolve(arguments.name)
    target = Path(arguments.target).absolute()
    _check_target(arguments.target, new=True)
    name = image.name or image.digest[:12]

    with store.hold(image), ended_by_signals(), bar("writing", image.info["size"]) as advance:
        def write() -> None:
            if arguments.format == "oci":
                oci.write(image.entries, str(image.root), target, name, advance)
            else:
                tarball.write_file(image.entries, str(image.root), target, advance)

        inside.as_owner(write)
    return 0


def _check_target(given: str, *, new: bool) -> None:
    path = Path(given).absolute()
    if new and os.path.lexists(path):
        raise UserError(f"{given} exists already", "name a new file")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{given} cannot be written: is {path.parent} a directory of yours?")


def _remove(store: Store, arguments: argparse.Namespace) -> int:
    for name in arguments.names:
        store.resolve(name)
    for name in arguments.names:
        digest = store.resolve(name).digest
        store.remove_name(name)
        image = store.find(digest)
        if image is not None and not store.discard(image):
            say(f"the files of {name} stay for now: something else uses them (see `detbox image gc`)")
    return 0


def _collect(store: Store, arguments: argparse.Namespace) -> int:
    sizes = {image.digest: image.info["size"] for image in store.images()}
    removed, busy = store.collect(arguments.layers * _DAY_S)
    _print(f"removed {len(removed)} images, {_size(sum(sizes.get(digest, 0) for digest in removed))}")
    if busy:
        _print(f"in use and kept: {', '.join(digest[:12] for digest in busy)}")
    return 0


def _diff(store: Store, arguments: argparse.Namespace) -> int:
    from detbox.images import manifest

    a, b = store.resolve(arguments.a), store.resolve(arguments.b)
    lines = [] if a.digest == b.digest else list(manifest.differences(a.entries, b.entries))
    old = {(name, arch): version for name, version, arch in a.packages}
    new = {(name, arch): version for name, version, arch in b.packages}
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            lines.append(f"package {key[0]}: {old.get(key, 'none')} became {new.get(key, 'none')}")
    _print(*(lines or [f"identical: {a.digest}"]))
    return 1 if lines else 0


def _check(store: Store, arguments: argparse.Namespace) -> int:
    from detbox.cli.progress import phases
    from detbox.images.check import problems

    started = time.monotonic()
    with phases() as notice:
        found = list(problems(store, lambda image: notice(f"checking {image.digest[:12]}")))
    count = len(store.images())
    _print(*(found or [f"{count} images are sound ({time.monotonic() - started:.1f} s)"]))
    return 1 if found else 0


def _line(image: Image) -> str:
    size, packages = _size(image.info["size"]), len(image.packages)
    return f"{image.name:<24} sha256:{image.digest[:12]}  {size:>9}  {packages:>4} packages"


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def _print(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
    sys.stdout.flush()
