"""How option values are spelt: numbers, sizes, durations, dates and choices."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from detbox.errors import UserError

_NS = 1_000_000_000
#: The last moment whose nanoseconds since 1970 fit into the kernel's ktime_t with room for a long run.
MAX_EPOCH_S = 7_258_118_400  # 2200-01-01T00:00:00Z
_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TIME_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
#: Less than this cannot hold a dynamically linked shell and its libraries.
MIN_MEMORY_BYTES = 4 * 2**20
#: Kinds of remote caches.
REMOTE_SCHEMES = ("file", "http", "https", "redis", "rediss", "unix")


def number(given: Any, option: str, low: int, high: int, *, default: int) -> int:
    """An integer between ``low`` and ``high``; ``default`` for None."""
    if given is None:
        return default
    try:
        value = int(given) if isinstance(given, int) else int(str(given), 0)
    except ValueError:
        raise UserError(f"{option} {given}: not a whole number") from None
    if not low <= value <= high:
        raise UserError(f"{option} {given}: must be between {low} and {high}")
    return value


def memory(given: Any, option: str) -> int | None:
    """An amount of memory in bytes; see :func:`size`."""
    value = size(given, option)
    if value is not None and value < MIN_MEMORY_BYTES:
        raise UserError(f"{option} {given}: less than {MIN_MEMORY_BYTES} bytes cannot hold any program")
    return value


def size(given: Any, option: str) -> int | None:
    """A size in bytes, spelt as bytes or with K, M, G, T (powers of 1024)."""
    if given is None:
        return None
    match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", str(given), re.IGNORECASE)
    if match is None:
        raise UserError(f"{option} {given}: not a size", f"write bytes, or {option} 512M, {option} 4G")
    return int(match[1]) * _SIZE_UNITS[match[2].upper()]


def duration_s(given: Any, option: str) -> float | None:
    """A positive time in seconds, spelt as seconds or with s, m, h, d."""
    if given is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smhd]?)", str(given))
    value = float(match[1]) * _TIME_UNITS[match[2]] if match else 0.0
    if match is None or value <= 0 or not math.isfinite(value):
        raise UserError(f"{option} {given}: not a positive time", f"write seconds, or {option} 5m")
    return value


def moment_ns(given: str, option: str) -> int:
    """A moment in nanoseconds since 1970: seconds (``@N`` too) or a date; without a zone it is UTC."""
    text = given.strip()
    seconds = re.fullmatch(r"@?(\d{1,12})(?:\.(\d{1,9}))?", text)
    if seconds:
        moment = int(seconds[1]) * _NS + int((seconds[2] or "").ljust(9, "0"))
    else:
        moment = _date_ns(text, given, option)
    if not 0 <= moment <= MAX_EPOCH_S * _NS:
        raise UserError(f"{option} {given}: outside of the years 1970 to 2200")
    return moment


def _date_ns(text: str, given: str, option: str) -> int:
    import datetime

    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{option} {given}: neither seconds since 1970 nor a date",
            f"write {option} 1767225600 or {option} 2026-01-01T00:00:00Z",
        ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    since = when - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (since.days * 86400 + since.seconds) * _NS + since.microseconds * 1000


def remote_cache(given: Any, host_env: Mapping[bytes, bytes], cwd: str) -> str | None:
    """The URL of a remote cache; a directory may be given by its path.  Raises UserError."""
    option = "--cache-remote" if given is not None else "DETBOX_CACHE_REMOTE"
    text = os.fsdecode(host_env.get(b"DETBOX_CACHE_REMOTE", b"")) if given is None else str(given)
    if not text:
        return None
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "file://" + os.path.abspath(os.path.join(cwd, text))
    if scheme not in REMOTE_SCHEMES:
        raise UserError(f"{option}: {scheme}:// is not a remote cache", f"known: {', '.join(REMOTE_SCHEMES)}")
    if "@" in rest.split("/")[0]:
        # The text is not repeated here: it holds a password.
        raise UserError(
            f"{option}: a URL with a password would be seen by every user of this machine",
            "put the token, or user:password, into the environment as DETBOX_CACHE_TOKEN",
        )
    if not rest.strip("/"):
        raise UserError(f"{option} {text}: names no place")
    return text


#: By kind of a user's files: the variable with their directory, and where it is below the home without one.
_OWN = {"cache": (b"XDG_CACHE_HOME", ".cache"), "data": (b"XDG_DATA_HOME", ".local/share")}


def own_directory(kind: str, host_env: Mapping[bytes, bytes]) -> str:
    """The absolute path of detbox's own directory among a user's files of ``kind``: "cache" or "data"."""
    variable, default = _OWN[kind]
    base = os.fsdecode(host_env.get(variable, b""))
    # The base directory specification says that a relative path is to be ignored.
    return os.path.join(base if base.startswith("/") else os.path.join(home(host_env), default), "detbox")


def home(host_env: Mapping[bytes, bytes]) -> str:
    """The user's home: what HOME says, else the user database; / if neither does."""
    import pwd

    declared = host_env.get(b"HOME")
    if declared:
        return os.fsdecode(declared)
    try:
        return pwd.getpwuid(os.getuid()).pw_dir or "/"
    except KeyError:
        return "/"


def cache_directory(given: Any, host_env: Mapping[bytes, bytes], cwd: str) -> str:
    """The absolute path of the cache's directory."""
    if given is None:
        declared = os.fsdecode(host_env.get(b"DETBOX_CACHE", b""))
        given = declared if "/" in declared else os.path.join(own_directory("cache", host_env), "results")
    return os.path.abspath(os.path.join(cwd, os.fsdecode(given)))


def cache_place(host_env: Mapping[bytes, bytes]) -> str | None:
    """detbox's own directory for what only makes it faster; None if there is no place."""
    declared = host_env.get(b"XDG_CACHE_HOME", b"").startswith(b"/")
    # A home that does not exist is a way to say that there is none.
    if not declared and not os.path.isdir(host_env.get(b"HOME", b"")):
        return None
    return own_directory("cache", host_env)


def site_directory(host_env: Mapping[bytes, bytes]) -> str | None:
    """Where sites of files are remembered; None if there is no place."""
    place = cache_place(host_env)
    return None if place is None else os.path.join(place, "sites")


def choice(given: Any, option: str, known: Sequence[str]) -> str:
    """One of ``known``; the first for None."""
    if given is None:
        return known[0]
    if given not in known:
        raise UserError(
            f"{option} {given}: unknown", f"known: {', '.join(known)}{suggestion(str(given), known)}"
        )
    return str(given)


def suggestion(word: str, known: Sequence[str]) -> str:
    """``; did you mean X?`` if some known word is near, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
