"""The frozen description of one run: everything that may influence it, validated.

:func:`make_spec` turns raw option values (from the command line, a
configuration file or Python) into a :class:`RunSpec`.  After it nobody reads the
environment or ``argv``.  Command and environment are bytes, because the guest's
are; host paths are ``str`` as the ``os`` functions of this process take them.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping, Sequence
from typing import Any

from detbox import values
from detbox.errors import CommandNotFound, UserError
from detbox.records import NamedTuple

#: Where the work directory is in the guest, whatever its path on the host.
GUEST_WORKDIR = "/work"
HOSTNAME = "detbox"
DEFAULT_EPOCH_NS = 1_767_225_600 * 1_000_000_000  # 2026-01-01T00:00:00Z
DEFAULT_CPUS = 4
MAX_CPUS = 256
CPU_MODELS = ("x86-64-v3", "x86-64-v2")
CPUID_BACKENDS = ("auto", "patch")
NETWORKS = ("loopback", "none")
#: What a run may do with the cache: use results, keep them, or both.
CACHE_MODES = ("read", "write", "both")
DEFAULT_CACHE_BYTES = 10 << 30
DEFAULT_REMOTE_TIMEOUT_S = 10.0
#: Format of :meth:`RunSpec.to_json`; a supervisor of another version refuses it.
JSON_VERSION = 1

#: The guest's environment before what is declared.  The host's is never used.
BASE_ENV: Mapping[bytes, bytes] = {
    b"GOMP_SPINCOUNT": b"0",  # OpenMP's threads are to wait in the kernel: a spin that counts
    b"HOME": b"/root",
    b"LANG": b"C.UTF-8",
    b"LOGNAME": b"root",
    b"OMP_WAIT_POLICY": b"passive",  # its turns depends on the machine's speed
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"PWD": os.fsencode(GUEST_WORKDIR),
    b"SHELL": b"/bin/sh",
    b"TERM": b"dumb",
    b"USER": b"root",
}

# Guest paths that the container makes itself: nothing can be mounted on them or below them.
_RESERVED = ("/proc", "/sys", "/dev")
# A user name as useradd(8) takes it, or UID, or UID:GID.
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}|\d{1,10}(:\d{1,10})?")
# Fields of a run description that hold host paths.
_PATHS = ("workdir", "workdir_alias", "image", "stdin", "site_cache", "cache_dir", "record", "record_times")


class Mount(NamedTuple):
    """An input (``rw`` false) or a kept directory (``rw`` true): host path ``src`` at guest path ``dst``."""

    src: str
    dst: str
    rw: bool = False


class RunSpec(NamedTuple):
    """All that one run depends on, apart from the content of what it names.

    Times are in nanoseconds where the name ends in ``_ns`` and in seconds where
    it ends in ``_s``; sizes are in bytes.
    """

    command: tuple[bytes, ...]
    workdir: str  # absolute host path
    guest_workdir: str = GUEST_WORKDIR
    #: Host path that the command line uses for the work directory; the guest
    #: gets it as a symbolic link to ``guest_workdir``.  None if it uses none.
    workdir_alias: str | None = None
    image: str | None = None  # absolute host path of a directory or tarball; None: the host's own root
    mounts: tuple[Mount, ...] = ()
    env: Mapping[bytes, bytes] = BASE_ENV  # complete; sorted by name
    epoch_ns: int = DEFAULT_EPOCH_NS
    seed: int = 0
    cpus: int = DEFAULT_CPUS
    cpu_model: str = CPU_MODELS[0]
    cpuid_backend: str = CPUID_BACKENDS[0]  # "patch": as on a host without CPUID faulting
    site_cache: str | None = None  # host directory of what is known about files; only speed depends on it
    user: str = "root"  # NAME, UID or UID:GID
    network: str = NETWORKS[0]
    hostname: str = HOSTNAME
    stdin: str | None = None  # host path; None: detbox's own standard input
    stdin_closed: bool = False  # detbox was started without one (and no path is given)
    timeout_s: float | None = None
    memory_bytes: int | None = None
    strict: bool = False
    stats: bool = False
    verbose: int = 0
    dry_run: bool = False
    record: str | None = None  # host path of the trace that is written
    record_times: str | None = None  # host path of the file with the processes' real times
    record_results: bool = False  # the trace tells results of calls that the kernel executes
    cache: str = ""  # one of CACHE_MODES, or "": without
    cache_dir: str | None = None  # host directory of the cache; None without one
    cache_max_bytes: int = DEFAULT_CACHE_BYTES  # a larger cache loses what was used least recently
    cache_remote: str | None = None  # URL of a cache that is shared with others
    cache_remote_read_only: bool = False
    cache_remote_timeout_s: float = DEFAULT_REMOTE_TIMEOUT_S
    cache_verify: int = 0  # how many percent of the hits are run all the same, and compared
    cache_base: str = ""  # what the configuration adds to the keys of executions inside; "": they are not noted
    observe_fd: int = -1  # descriptor that takes what the run observed and changed; -1: nothing is noted
    stdin_head: bytes = b""  # the beginning of standard input, if somebody has read it already
    leak: str = ""  # for tests of `verify`: a call that is let through to the kernel as it is

    def to_json(self) -> str:
        """The spec as one line of JSON.  Bytes that are not UTF-8 survive (as lone surrogates)."""
        import json

        out: dict[str, Any] = {"version": JSON_VERSION, **self._asdict()}
        out["command"] = [_text(word) for word in self.command]
        out["env"] = {_text(key): _text(value) for key, value in self.env.items()}
        out["mounts"] = [[_path_text(m.src), _path_text(m.dst), m.rw] for m in self.mounts]
        out["stdin_head"] = _text(self.stdin_head)
        for name in _PATHS:
            out[name] = None if out[name] is None else _path_text(out[name])
        return json.dumps(out, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """The inverse of :meth:`to_json`; ValueError for another version's text."""
        import json

        raw = json.loads(text)
        version = raw.pop("version", None)
        if version != JSON_VERSION:
            raise ValueError(f"run description of version {version}, expected {JSON_VERSION}")
        raw["command"] = tuple(_bytes(word) for word in raw["command"])
        raw["env"] = {_bytes(key): _bytes(value) for key, value in raw["env"].items()}
        raw["mounts"] = tuple(Mount(_path(src), _path(dst), rw) for src, dst, rw in raw["mounts"])
        raw["stdin_head"] = _bytes(raw["stdin_head"])
        for name in _PATHS:
            raw[name] = None if raw[name] is None else _path(raw[name])
        return cls(**raw)

    def with_changes(self, **changes: Any) -> RunSpec:
        """A copy with some fields replaced (not validated again)."""
        return self._replace(**changes)


def make_spec(
    command: Sequence[str | bytes], options: Mapping[str, Any], host_env: Mapping[bytes, bytes], cwd: str
) -> RunSpec:
    """Validate raw option values and freeze them.

    ``options``: by the names of ``detbox.options``, as identifiers; missing or
    None means the default.  ``host_env``: where ``--env K`` takes its value from.
    ``cwd``: what relative paths are relative to.  Raises UserError.
    """
    get = options.get
    words = _command(command)
    declared = _declared_env(get("env") or (), host_env)
    given_workdir = os.path.join(cwd, os.fsdecode(get("workdir") or "."))
    workdir = _directory(given_workdir, "the work directory", "give another one with -C DIR")
    if workdir == "/":
        raise UserError("the work directory cannot be /", "give another one with -C DIR")
    mounts = tuple(
        [_mount(text, False, cwd) for text in get("ro") or ()]
        + [_mount(text, True, cwd) for text in get("rw") or ()]
    )
    _check_mounts(mounts, workdir)
    user = _user(get("user"))
    cache, cache_dir = _cache(get("cache"), get("cache_dir"), host_env, cwd)
    stdin = _stdin(get("stdin"), cwd)
    return RunSpec(
        command=words,
        workdir=workdir,
        workdir_alias=_alias(words, given_workdir, workdir),
        image=_image(get("image"), cwd, host_env),
        mounts=mounts,
        env=dict(sorted({**BASE_ENV, **_user_env(user), **declared}.items())),
        epoch_ns=_epoch(get("epoch"), declared),
        seed=values.number(get("seed"), "--seed", 0, 2**64 - 1, default=0),
        cpus=values.number(get("cpus"), "--cpus", 1, MAX_CPUS, default=DEFAULT_CPUS),
        cpu_model=values.choice(get("cpu_model"), "--cpu-model", CPU_MODELS),
        cpuid_backend=values.choice(get("cpuid_backend"), "--cpuid-backend", CPUID_BACKENDS),
        site_cache=values.site_directory(host_env),
        user=user,
        network=values.choice(get("network"), "--network", NETWORKS),
        stdin=stdin,
        stdin_closed=stdin is None and bool(get("stdin_closed")),
        timeout_s=values.duration_s(get("timeout"), "--timeout"),
        memory_bytes=values.memory(get("memory"), "--memory"),
        strict=bool(get("strict")),
        cache=cache,
        cache_dir=cache_dir,
        cache_max_bytes=values.size(get("cache_max_size"), "--cache-max-size") or DEFAULT_CACHE_BYTES,
        cache_remote=values.remote_cache(get("cache_remote"), host_env, cwd) if cache else None,
        cache_remote_read_only=bool(get("cache_remote_read_only")),
        cache_remote_timeout_s=values.duration_s(get("cache_remote_timeout"), "--cache-remote-timeout")
        or DEFAULT_REMOTE_TIMEOUT_S,
        cache_verify=values.number(get("cache_verify"), "--cache-verify", 0, 100, default=0),
        stats=bool(get("stats")),
        verbose=int(get("verbose") or 0),
        dry_run=bool(get("dry_run")),
    )


def _command(command: Sequence[str | bytes]) -> tuple[bytes, ...]:
    words = tuple(os.fsencode(word) for word in command)
    if not words:
        raise UserError("no command was given", "write it after the options: … -- CMD ARG…")
    if not words[0]:
        raise CommandNotFound("the command's name is empty")
    if any(b"\0" in word for word in words):
        raise UserError("the command line has a NUL byte")
    return words


def _declared_env(entries: Sequence[str | bytes], host_env: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    declared: dict[bytes, bytes] = {}
    for entry in map(os.fsencode, entries):
        key, equals, value = entry.partition(b"=")
        if not key or b"\0" in entry:
            raise UserError(f"--env {_shown(entry)}: not a variable", "write --env NAME=VALUE or --env NAME")
        if equals:
            declared[key] = value
        elif key in host_env:
            declared[key] = host_env[key]
    return declared


def _epoch(given: Any, declared: Mapping[bytes, bytes]) -> int:
    if given is not None:
        return values.moment_ns(str(given), "--epoch")
    source = declared.get(b"SOURCE_DATE_EPOCH")
    if source:
        if not re.fullmatch(rb"\d+", source):
            raise UserError(
                f"SOURCE_DATE_EPOCH={_shown(source)}: not a number of seconds since 1970",
                "declare a number, or give --epoch",
            )
        return values.moment_ns(source.decode(), "SOURCE_DATE_EPOCH")
    return DEFAULT_EPOCH_NS


def _cache(
    mode: Any, directory: Any, host_env: Mapping[bytes, bytes], cwd: str
) -> tuple[str, str | None]:
    """What a run may do with the cache, and the cache's directory.

    The variable DETBOX_CACHE is a mode, or a directory (which has a slash in it); the options win over it.
    """
    declared = os.fsdecode(host_env.get(b"DETBOX_CACHE", b""))
    if "/" in declared:
        directory, declared = directory or declared, "both"
    chosen = str(mode if mode is not None else declared or "off")
    if chosen not in (*CACHE_MODES, "off"):
        where = "--cache" if mode is not None else "DETBOX_CACHE"
        raise UserError(f"{where}={chosen}: not a way to use the cache", f"write one of {', '.join(CACHE_MODES)}, off")
    if chosen == "off":
        return "", None
    return chosen, values.cache_directory(directory, host_env, cwd)


def _user(given: Any) -> str:
    user = "root" if given is None else str(given)
    if not _USER.fullmatch(user):
        raise UserError(f"--user {user!r}: not a user", "write a user name, UID or UID:GID")
    if any(int(part) >= 2**32 - 1 for part in user.split(":") if part.isdigit()):
        raise UserError(f"--user {user}: user and group numbers end at {2**32 - 2}")
    return user


def _user_env(user: str) -> dict[bytes, bytes]:
    """What differs from the base for another user than root: root's home is closed to it."""
    if user in ("root", "0", "0:0"):
        return {}
    name = os.fsencode(user.partition(":")[0])
    return {b"HOME": b"/tmp", b"USER": name, b"LOGNAME": name}


def _mount(given: str | bytes, rw: bool, cwd: str) -> Mount:
    """``SRC[:DST]``; the last colon that is followed by a slash separates the two."""
    text = os.fsdecode(given)
    flag = "--rw" if rw else "--ro"
    src, colon, dst = text.rpartition(":")
    if not colon or (not dst.startswith("/") and os.path.lexists(os.path.join(cwd, text))):
        src, dst = text, os.path.abspath(os.path.join(cwd, text))
    if not src:
        raise UserError(f"{flag} {text!r}: no source", f"write {flag} SRC or {flag} SRC:DST")
    if not dst.startswith("/"):
        raise UserError(
            f"{flag} {text!r}: the path in the guest, {dst!r}, is not absolute", f"write {flag} {src}:/{dst}"
        )
    source = _existing(os.path.join(cwd, src), f"{flag} {src}")
    _demand_files(source, f"{flag} {src}", "copy what is needed to a file")
    return Mount(source, os.path.normpath(dst), rw)


def _check_mounts(mounts: Sequence[Mount], workdir: str) -> None:
    for index, mount in enumerate(mounts):
        if mount.dst.rstrip("/") in ("", GUEST_WORKDIR):
            raise UserError(
                f"{mount.src} cannot be mounted on {mount.dst}",
                "give the work directory with -C DIR and a root file system with --image",
            )
        for reserved in _RESERVED:
            if _within(mount.dst, reserved):
                raise UserError(f"{mount.src} cannot be mounted on {mount.dst}: {reserved} is detbox's own")
        if _within(mount.dst, GUEST_WORKDIR):
            _check_mount_point(mount, workdir)
        for other in mounts[:index]:
            if _within(mount.dst, other.dst) or _within(other.dst, mount.dst):
                raise UserError(
                    f"the mounts on {other.dst} and {mount.dst} overlap",
                    "give one of them another path: SRC:DST",
                )


def _check_mount_point(mount: Mount, workdir: str) -> None:
    """A mount below the work directory needs a place that exists: making one would change the host."""
    below = os.path.join(workdir, os.path.relpath(mount.dst, GUEST_WORKDIR))
    if not os.path.lexists(below):
        raise UserError(
            f"{mount.src} cannot be mounted on {mount.dst}: the work directory {workdir} has no such entry",
            f"give it another path in the guest: {mount.src}:/input",
        )


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(top.rstrip("/") + "/")


def _existing(path: str, what: str) -> str:
    path = os.path.abspath(path)
    try:
        os.stat(path)
    except OSError as error:
        raise UserError(f"{what}: {path}: {error.strerror}") from None
    return os.path.realpath(path)


def _directory(path: str, what: str, remedy: str) -> str:
    try:
        found = os.stat(path)
    except OSError as error:
        raise UserError(f"{what} {os.path.abspath(path)}: {error.strerror}", remedy) from None
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{what} {os.path.abspath(path)} is not a directory", remedy)
    if found.st_uid != os.geteuid() and not os.access(path, os.X_OK):
        raise UserError(f"{what} {os.path.abspath(path)}: {os.strerror(errno.EACCES)}", remedy)
    resolved = os.path.realpath(path)
    _demand_files(resolved, f"{what} {resolved}", remedy)
    return resolved


def _demand_files(path: str, what: str, remedy: str) -> None:
    for top in ("/proc", "/sys"):
        if _within(path, top):
            raise UserError(f"{what}: what is in {top} differs from moment to moment and is no input", remedy)


def _image(given: str | bytes | None, cwd: str, host_env: Mapping[bytes, bytes]) -> str | None:
    """A path is what has a slash or is there; a name in the store goes before a file that is called so."""
    if given is None:
        return None
    name = os.fsdecode(given)
    if "/" not in name:
        from detbox.images.store import Store, default_path

        store = Store(default_path(host_env))
        image = store.find(name)
        if image is not None:
            return str(image.root)
        if not os.path.lexists(os.path.join(cwd, name)):
            store.resolve(name)  # says which there are
    path = _existing(os.path.join(cwd, os.fsdecode(given)), "--image")
    mode = os.stat(path).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UserError(f"--image {path}: neither a directory nor a tarball")
    return path


def _stdin(given: str | bytes | None, cwd: str) -> str | None:
    if given is None:
        return None
    path = _existing(os.path.join(cwd, os.fsdecode(given)), "--stdin")
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise UserError(f"--stdin {path}: is a directory", "name a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"--stdin {path}: cannot be read")
    return path


def _alias(command: Sequence[bytes], given: str, real: str) -> str | None:
    """The host path of the work directory, if some argument of ``command`` spells it (or a path below it).

    The command line is a declared input, so a path in it may show in the guest.
    A top-level directory (/tmp, /usr) has no alias: the guest needs its own.
    """
    for path in dict.fromkeys((os.path.abspath(given), real)):
        spelled = re.compile(re.escape(os.fsencode(path)) + rb"(?![\w.+-])")
        if path.count("/") < 2 or _within(path, GUEST_WORKDIR):
            continue
        if any(spelled.search(word) for word in command):
            return path
    return None


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _path_text(path: str) -> str:
    return _text(os.fsencode(path))


def _path(text: str) -> str:
    return os.fsdecode(_bytes(text))


def _shown(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")
