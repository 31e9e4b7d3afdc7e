"""A cache that is shared with others, and is not trusted: what it gives is verified, what it costs is bounded.

Names are those of Bazel's HTTP caches: ``cas/<sha256>`` for content, ``ac/<64 hexadecimal digits>`` for what a key
leads to, here a list of candidate manifests.  Several writers of one list may lose each other's candidates; nothing
else can happen, since a candidate is the name of its content.

The first answer that does not come in time, or at all, is the last question of the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from detbox.cache.blobs import is_digest
from detbox.cache.store import MOST_CANDIDATES
from detbox.errors import UserError

FORMAT = 1
#: How many requests are under way at once.
PARALLEL = 4
_TRIES = 3
_PAUSE_S = 0.1
#: A slower transfer than this counts as none.
_LEAST_RATE = 64 << 10
_MOST_LIST = 64 << 10
#: Larger manifests and blobs are not shared.
MOST_MANIFEST = 64 << 20
MOST_BLOB = 256 << 20
#: So much wrong content is too much.
_MOST_LIES = 3

T = TypeVar("T")


class Unreachable(Exception):
    """The remote cache does not work; it is left out from now on."""


class Passing(Exception):
    """It did not work this time."""


class Refused(Exception):
    """It takes nothing from us."""


class Transport(Protocol):
    """How content gets to and fro.  Each method raises Unreachable, Passing or Refused."""

    def get(self, name: str, most: int) -> bytes | None:
        """What is called ``name``, or its first ``most + 1`` bytes; None if there is nothing."""

    def has(self, name: str) -> bool:
        """Whether something is called ``name``."""

    def put(self, name: str, data: bytes) -> None:
        """Call ``data`` so, instead of what was called so."""


@dataclass(frozen=True)
class Access:
    """Secrets of the environment: ``token`` for the server, ``signature`` with which candidates must be signed."""

    token: str = ""
    signature: bytes = b""


@dataclass(frozen=True)
class Candidate:
    """A manifest: the digest and the size of its bytes."""

    digest: str
    size: int


def connect(url: str, timeout_s: float, access: Access) -> Transport:
    """The transport for a URL.  Raises UserError."""
    scheme, _, place = url.partition("://")
    if scheme == "file":
        from detbox.cache.remote_directory import Directory

        return Directory(place)
    if scheme in ("http", "https"):
        from detbox.cache.remote_http import Http

        return Http(url, timeout_s, access.token, PARALLEL)
    if scheme in ("redis", "rediss", "unix"):
        from detbox.cache.remote_redis import Redis

        return Redis(url, timeout_s, access.token)
    raise UserError(f"{scheme}:// is not a remote cache")


class Remote:
    """A transport behind a guard.  ``trouble`` says why it is left out, or takes nothing; "" while all is well."""

    def __init__(
        self, transport: Transport, timeout_s: float, *, writable: bool = True, signature: bytes = b""
    ) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._signature = signature
        self._alive = True
        self._lies = 0
        self.writable = writable
        self.trouble = ""
        self.received = 0
        self.sent = 0

    # -- reading -----------------------------------------------------------------------

    def candidates(self, key: str) -> list[Candidate]:
        """What a key leads to."""
        data = self._ask(lambda: self._transport.get(f"ac/{key}", _MOST_LIST), _MOST_LIST)
        return self._listed(key, data)

    def blob(self, digest: str, size: int) -> bytes | None:
        """Content by its digest; None if the remote cache does not have exactly this."""
        if not is_digest(digest) or not 0 <= size <= MOST_BLOB:
            return None
        data = self._ask(lambda: self._transport.get(f"cas/{digest}", size), size)
        if data is None:
            return None
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            self._lied()
            return None
        self.received += size
        return data

    def blobs(self, wanted: Iterable[tuple[str, int]]) -> Iterable[tuple[str, bytes | None]]:
        """The same for many, several at a time."""
        rows = list(wanted)
        with ThreadPoolExecutor(PARALLEL) as pool:
            for (digest, _), data in zip(rows, pool.map(lambda row: self.blob(*row), rows), strict=True):
                yield digest, data

    def _listed(self, key: str, data: bytes | None) -> list[Candidate]:
        try:
            raw = json.loads(data) if data and len(data) <= _MOST_LIST else {}
            rows = raw["candidates"] if raw and raw["format"] == FORMAT else []
            return [Candidate(row["manifest"], row["size"]) for row in rows[:MOST_CANDIDATES] if self._sound(key, row)]
        except (ValueError, TypeError, KeyError, RecursionError):
            self._lied()
            return []

    def _sound(self, key: str, row: Any) -> bool:
        if not is_digest(row["manifest"]) or type(row["size"]) is not int or not 0 < row["size"] <= MOST_MANIFEST:
            return False
        proof = row.get("proof", "")
        return not self._signature or isinstance(proof, str) and hmac.compare_digest(
            proof.encode(errors="replace"), self._proof(key, row["manifest"]).encode()
        )  # fmt: skip

    def _proof(self, key: str, digest: str) -> str:
        return hmac.new(self._signature, f"{key} {digest}".encode(), hashlib.sha256).hexdigest()

    # -- writing -----------------------------------------------------------------------

    def push(
        self, key: str, manifest: bytes, blobs: Iterable[tuple[str, int]], content: Callable[[str], bytes | None]
    ) -> bool:
        """Give a result away: its blobs, its manifest, then its place among the key's candidates."""
        rows = list(dict(blobs).items())
        if not self.writable or len(manifest) > MOST_MANIFEST or any(size > MOST_BLOB for _, size in rows):
            return False
        with ThreadPoolExecutor(PARALLEL) as pool:
            if not all(pool.map(lambda row: self._give(row[0], row[1], content), rows)):
                return False
        digest = hashlib.sha256(manifest).hexdigest()
        if not self._give(digest, len(manifest), lambda _: manifest):
            return False
        others = [one for one in self.candidates(key) if one.digest != digest]
        listed = [self._row(key, one) for one in [Candidate(digest, len(manifest)), *others][:MOST_CANDIDATES]]
        data = json.dumps({"format": FORMAT, "candidates": listed}).encode()
        return self._put(f"ac/{key}", data)

    def _row(self, key: str, candidate: Candidate) -> dict[str, Any]:
        row: dict[str, Any] = {"manifest": candidate.digest, "size": candidate.size}
        return {**row, "proof": self._proof(key, candidate.digest)} if self._signature else row

    def _give(self, digest: str, size: int, content: Callable[[str], bytes | None]) -> bool:
        # A cache that has given wrong content is not believed to have the right one.
        if not self._lies and self._ask(lambda: self._transport.has(f"cas/{digest}"), 0):
            return True
        data = content(digest) if self._alive else None
        if data is None or not self._put(f"cas/{digest}", data):
            return False
        self.sent += size
        return True

    def _put(self, name: str, data: bytes) -> bool:
        def question() -> bool:
            self._transport.put(name, data)
            return True

        return self._ask(question, len(data)) is True

    # -- the guard -----------------------------------------------------------------------

    def _lied(self) -> None:
        self._lies += 1
        if self._lies >= _MOST_LIES:
            self._end("it gives wrong content")

    def _end(self, why: str) -> None:
        if self._alive:
            self._alive = self.writable = False
            self.trouble = f"{why}; it is left out of this run"

    def _ask(self, question: Callable[[], T], size: int) -> T | None:
        """The answer; None if there is none, or the remote cache is left out."""
        for turn in range(_TRIES):
            if not self._alive:
                return None
            if turn:
                time.sleep(_PAUSE_S * 2**turn)
            try:
                return self._in_time(question, self._timeout_s + size / _LEAST_RATE)
            except Passing as failure:
                why = str(failure)
            except Refused as failure:
                self.writable = False
                self.trouble = f"it takes nothing: {failure}"
                return None
            except Unreachable as failure:
                self._end(str(failure))
                return None
        self._end(why)
        return None

    @staticmethod
    def _in_time(question: Callable[[], T], limit_s: float) -> T:
        """Time-outs of sockets do not bound names that are looked up, files on a dead server, or bytes that drip:
        a thread asks, and is left behind when it takes too long."""
        answers: list[T] = []
        failures: list[Exception] = []

        def ask() -> None:
            try:
                answers.append(question())
            except Exception as error:  # raised again by the one who waits
                failures.append(error)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(limit_s)
        if answers:
            return answers[0]
        if failures:
            with contextlib.suppress(IndexError):
                raise failures[0]
        raise Unreachable(f"it does not answer within {limit_s:.3g} s")
