"""The Python interface: ``detbox.run`` runs a command in a container and returns its result.

Each run is a fresh process that executes the command line, never a fork of the
caller: that is what makes it safe in a program with threads and inside pytest.
The result comes back over a pipe of its own, so that the guest's standard output
and error arrive untouched.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detbox import errors
from detbox.options import OPTIONS, Kind

StrPath = str | os.PathLike[str]

#: How long a child that was asked to end gets before it is killed, in seconds.  (Killing detbox is
#: safe at any moment: no process and no mount stays behind.)
_GRACE_S = 2.0

# What the fresh interpreter executes.  It takes detbox from where this module came from, whether that is
# installed or not, and not from the current directory.
_START = "import sys; sys.path.insert(0, {root!r}); from detbox.cli.main import program; program()"


@dataclass(frozen=True)
class Result:
    """What a run left.

    ``status``: the guest's exit status, 128+N if signal N killed it.
    ``changed_files``: host paths, sorted, of what was created, changed or removed
    in the work directory and the writable mounts.
    ``stats``: counts and times of the run (not deterministic: for people).
    ``doubts``: why the run may not be repeatable; empty for a clean run.
    """

    status: int
    stdout: bytes
    stderr: bytes
    changed_files: tuple[str, ...] = ()
    stats: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


def run(
    command: Sequence[str | bytes],
    *,
    workdir: StrPath | None = None,
    image: StrPath | None = None,
    ro: Iterable[StrPath] = (),
    rw: Iterable[StrPath] = (),
    env: Mapping[str, str] | Iterable[str] = (),
    epoch: int | str | None = None,
    seed: int | None = None,
    cpus: int | None = None,
    cpu_model: str | None = None,
    user: str | int | None = None,
    network: str | None = None,
    stdin: bytes | StrPath | None = None,
    timeout: float | str | None = None,
    memory: int | str | None = None,
    strict: bool = False,
    cache: str | bool | None = None,
    cache_dir: StrPath | None = None,
    cache_verify: int | None = None,
    cache_remote: str | None = None,
    cache_remote_read_only: bool = False,
    cache_remote_timeout: float | str | None = None,
    cache_max_size: int | str | None = None,
    config: StrPath | None = None,
) -> Result:
    """Runs ``command`` deterministically, as ``detbox run`` does, and waits for its end.

    The options are those of the command line.  ``env`` is a mapping, or a list of
    ``K=V`` and ``K`` (passed through).  ``stdin`` is the input itself as bytes,
    or the path of a file; None means an empty input.

    A guest that fails is a result with its status; a run that fails raises a
    subclass of ``detbox.errors.DetboxError``.  Safe to call from several threads
    at once.  If the caller is interrupted (KeyboardInterrupt), the run is ended first.
    """
    given: dict[str, Any] = {
        "workdir": workdir, "image": image, "ro": list(ro), "rw": list(rw), "env": _env(env),
        "epoch": epoch, "seed": seed, "cpus": cpus, "cpu_model": cpu_model, "user": user,
        "network": network, "timeout": timeout, "memory": memory, "strict": strict,
        "cache": _mode(cache), "cache_dir": cache_dir, "cache_verify": cache_verify,
        "cache_remote": cache_remote, "cache_remote_read_only": cache_remote_read_only,
        "cache_remote_timeout": cache_remote_timeout, "cache_max_size": cache_max_size,
        "stdin": None if isinstance(stdin, bytes) else stdin,
    }  # fmt: skip
    options: list[str | bytes] = [] if config is None else ["--config", os.fspath(config)]
    for option in OPTIONS:
        options += _words(option.name, option.kind, given.get(option.key))
    kept = [os.fspath(workdir or "."), *(_source(entry) for entry in given["rw"])]
    before = _snapshot(kept)
    answer, stdout, stderr = _execute(options, command, stdin if isinstance(stdin, bytes) else b"")
    if "error" in answer:
        error = errors.by_name(answer["error"])(answer["message"], answer["remedy"])
        error.stats = answer.get("stats", {})
        raise error
    return Result(
        status=answer["status"],
        stdout=stdout,
        stderr=stderr,
        changed_files=_changes(before, _snapshot(kept)),
        stats=answer["stats"],
        doubts=tuple(answer["doubts"]),
    )


def _mode(cache: str | bool | None) -> str | None:
    return cache if isinstance(cache, str) or cache is None else "both" if cache else "off"


def _env(env: Mapping[str, str] | Iterable[str]) -> list[str]:
    if isinstance(env, Mapping):
        return [f"{name}={value}" for name, value in env.items()]
    return list(env)


def _words(name: str, kind: Kind, value: Any) -> list[str | bytes]:
    """One option as command-line words.  ``--name=value``, because a value may begin with a dash."""
    if value is None or value is False:
        return []
    if kind is Kind.SWITCH:
        return [f"--{name}"]
    values = value if kind in (Kind.PATHS, Kind.ENV) else [value]
    return [f"--{name}={os.fspath(v) if isinstance(v, os.PathLike) else v}" for v in values]


def _execute(
    options: Sequence[str | bytes], command: Sequence[str | bytes], stdin: bytes
) -> tuple[dict[str, Any], bytes, bytes]:
    """Runs the command line in a fresh process: (its JSON answer, stdout, stderr)."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    reader, writer = os.pipe()  # not inheritable; pass_fds makes the child's copy so
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START.format(root=root), "run", f"--result-fd={writer}"]
            + [*options, "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(writer,),
            # Ctrl-C reaches the caller alone, who decides; see _end.
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    answer = _Collector(reader)
    try:
        stdout, stderr = process.communicate(stdin)
    except BaseException:
        _end(process)
        raise
    finally:
        text = answer.text()
    if not text:
        raise errors.InternalError(
            f"the run ended without an answer, with status {process.returncode}:\n"
            + stderr.decode("utf-8", "replace")
        )
    return json.loads(text), stdout, stderr


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a run: politely, then not."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


class _Collector:
    """Reads a descriptor to its end in a thread, so that a long answer cannot block its writer."""

    def __init__(self, fd: int) -> None:
        self._text = b""
        self._thread = threading.Thread(target=self._read, args=(fd,), daemon=True)
        self._thread.start()

    def _read(self, fd: int) -> None:
        with open(fd, "rb") as file:
            self._text = file.read()

    def text(self) -> bytes:
        """All that was written, once every writer has closed."""
        self._thread.join()
        return self._text


def _source(entry: StrPath) -> str:
    """The host path of ``SRC[:DST]``."""
    text = os.fspath(entry)
    return text.rpartition(":/")[0] if ":/" in text else text


#: Enough to notice every change: the change time moves with content and metadata alike.
_State = tuple[int, int, int, int]


def _snapshot(tops: Iterable[str]) -> dict[str, _State]:
    """The state of every file below ``tops``, which are not themselves included, by absolute path."""
    found: dict[str, _State] = {}
    for top in tops:
        if os.path.realpath(top) == "/":
            continue  # the run itself refuses it; to look at everything would take minutes
        _look(os.path.abspath(top), os.path.abspath(top), None, found)
    return found


def _look(path: str, name: str, at: int | None, found: dict[str, _State]) -> None:
    """Add what is below one directory; by descriptors, since a guest can make paths longer than a path may be."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    except OSError:
        return  # vanished, or not a directory, or not readable: the run itself will say so
    try:
        for entry in os.scandir(fd):
            with contextlib.suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                below = f"{path}/{entry.name}"
                found[below] = (info.st_ino, info.st_ctime_ns, info.st_size, info.st_mode)
                if stat.S_ISDIR(info.st_mode):
                    _look(below, entry.name, fd, found)
    finally:
        os.close(fd)


def _changes(before: Mapping[str, _State], after: Mapping[str, _State]) -> tuple[str, ...]:
    return tuple(sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path)))
