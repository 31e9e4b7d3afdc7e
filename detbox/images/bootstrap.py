"""Makes an image from a recipe with mmdebstrap, Debian's own tool for it, whose tar stream goes into the store.

As root mmdebstrap works in a chroot, as an ordinary user in a user namespace with subordinate ids; both give
the same image.  Steps of a recipe (``run``) are carried out afterwards by :func:`detbox.images.inside.run`.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from detbox.errors import UserError
from detbox.images import inside, lock, pool, sources, tarball, tidy, tree
from detbox.images.lock import Lock
from detbox.images.manifest import Entry
from detbox.images.recipe import Recipe
from detbox.images.store import Image, Store, remove_all
from detbox.images.tools import check_tools, environment, failure
from detbox.kernel import _native

Notice = Callable[[str], None]
#: A file that the image does not keep: the archive's description of all packages, as far as a lock needs it.
_INDEX = b".detbox-index"
_INDEX_HOOK = (
    "grep -h -E '^(Package|Version|Architecture|SHA256|Size): |^$' \"$1\"/var/lib/apt/lists/*_Packages"
    f' > "$1/{_INDEX.decode()}" || true'
)
_CONTAINED = "unshare --mount --propagation private --pid --fork --kill-child --mount-proc"
_LOCAL_HOOKS = "/usr/share/mmdebstrap/hooks/file-mirror-automount"


def build(
    store: Store,
    recipe: Recipe,
    name: str,
    *,
    mirrors: Sequence[str] = (),
    locked: Lock | None = None,
    notice: Notice = lambda phase: None,
) -> Image:
    """Makes the recipe's image and names it.  ``notice`` hears what is being done.

    ``locked``: only these packages, and the image has to be the one that was locked.  Raises UserError, HostError.
    """
    store.check_name(name)
    check_tools()
    if locked is not None and locked.recipe != recipe.digest:
        raise UserError(
            f"the recipe {recipe.name} is not the one that the lock file was written for",
            "write a new one: detbox image build RECIPE --write-lock FILE",
        )
    archive = sources.for_suite(recipe.suite, recipe.components, mirrors)
    with workspace(store) as work:
        if locked is not None:
            archive = pool.fetch(locked.packages, recipe.suite, archive, work, notice)
        index: list[bytes] = []
        image = store.add_tree(
            None, lambda root: _bootstrap(recipe, archive, root, work, index, notice), made="build"
        )
    made = image
    if recipe.run:
        made = store.derive(image, lambda root: _steps(recipe, root, notice))
        if made.digest != image.digest:
            store.discard(image)
    known = lock.known_packages(index[0].decode(errors="replace") if index else "")
    written = Lock(recipe.digest, made.digest, tuple(lock.choose(made.packages, known)))
    if locked is not None and made.digest != locked.image:
        raise UserError(
            f"the image has the digest {made.digest}, not the locked one, {locked.image}",
            f"compare them: detbox image diff {locked.image[:12]} {made.digest[:12]}",
        )
    store.set_name(name, made.digest, made="build", recipe=recipe.name, lock=written.text())
    return store.resolve(name)


@contextlib.contextmanager
def workspace(store: Store) -> Iterator[Path]:
    """A directory that mmdebstrap's users may enter; the store is closed to them.

    The store's work place knows of it, so that a later use of the store removes it if this process is killed.
    """
    with store.workplace() as place:
        work = tempfile.mkdtemp(prefix="detbox-image-")
        os.chmod(work, 0o755)
        os.symlink(work, place / "outside")
        try:
            yield Path(work)
        finally:
            remove_all(work)


def _bootstrap(
    recipe: Recipe, archive: Sequence[str], root: Path, work: Path, index: list[bytes], notice: Notice
) -> list[Entry]:
    builder = tree.Builder(str(root))
    process = _start(recipe, archive, work)
    heard: list[str] = []
    listener = threading.Thread(target=_listen, args=(process, heard, notice), daemon=True)
    listener.start()
    try:
        assert process.stdout is not None
        _receive(process.stdout, builder, index)
        status = process.wait()
    except BaseException:
        # mmdebstrap would wait for its tar, which waits for somebody to read.  Its mounts end with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        listener.join()  # the last of its processes has closed its standard error
        process.wait()
        if any(line.startswith("E: ") for line in heard):
            raise failure(heard) from None  # a stream that ends early is not the cause
        raise
    listener.join()
    if status:
        raise failure(heard)
    for file in recipe.files:
        entry = Entry(file.path.encode(), "f", file.mode, file.uid, file.gid, tree.NEWEST)
        builder.file(entry, io.BytesIO(file.content))
    notice("unpacking the image")
    return builder.finish()


def _start(recipe: Recipe, archive: Sequence[str], work: Path) -> subprocess.Popen[bytes]:
    # With root's first process all others go, and with them the mounts, however detbox ends.
    command = [] if os.geteuid() else _CONTAINED.split()
    command += [
        "mmdebstrap",
        f"--mode={'root' if os.geteuid() == 0 else 'unshare'}",
        f"--variant={recipe.variant}",
        "--format=tar",
        f"--components={','.join(recipe.components)}",
        f"--customize-hook={_INDEX_HOOK}",
        "--skip=output/dev",
    ]
    if recipe.packages:
        command.append(f"--include={','.join(recipe.packages)}")
    if recipe.variant == "extract":  # the hook that would undo the mounts does not run
        archive = [line.replace(" file:", " copy:") for line in archive]
    elif any(" file:" in line for line in archive):
        command.append(f"--hook-dir={_LOCAL_HOOKS}")  # apt runs in the chroot: a local archive must be there too
    command += [recipe.suite, "-", "-"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(work), preexec_fn=_before_exec, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stream:
        stream.write("".join(line + "\n" for line in archive).encode())
    return process


def _before_exec() -> None:
    """In the child: it ends with its caller."""
    os.umask(0o022)
    _native.prctl(inside.PR_SET_PDEATHSIG, signal.SIGKILL)


def _receive(stream: IO[bytes], builder: tree.Builder, index: list[bytes]) -> None:
    def divert(path: bytes, directory: bool, content: IO[bytes] | None) -> bool:
        if path == _INDEX and content is not None:
            index.append(content.read())
            return True
        return tidy.left_out(path, directory)

    with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as tar:
        tarball.unpack(tar, builder, "mmdebstrap's output", divert=divert)


_PHASES = ("I: running apt", "I: downl", "I: extr", "I: inst", "I: cleaning", "I: creating", "I: removing")


def _listen(process: subprocess.Popen[bytes], heard: list[str], notice: Notice) -> None:
    """Passes on what mmdebstrap says it does; keeps everything for the case that it fails."""
    assert process.stderr is not None
    for raw in process.stderr:
        line = raw.decode(errors="replace").rstrip()
        heard.append(line.rpartition("\r")[2])
        if line.startswith(_PHASES):
            notice(line[3:].rstrip("."))


def _steps(recipe: Recipe, root: Path, notice: Notice) -> None:
    for step in recipe.run:
        notice(f"running {step}")
        done = inside.run(root, ["/bin/sh", "-ec", step], env={"SOURCE_DATE_EPOCH": str(tree.NEWEST)})
        if done.returncode:
            text = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise UserError(f"the recipe's step {step!r} ended with status {done.returncode}:\n{text}")

