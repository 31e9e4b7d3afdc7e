"""The guard of a remote cache: what is asked, how long, how often, and what is believed."""

from __future__ import annotations

import hashlib
import json
import threading
import time

import pytest

from detbox.cache.remote import Passing, Refused, Remote, Unreachable
from detbox.errors import UserError
from detbox.values import remote_cache

KEY = "k" * 64


class Memory:
    """A remote cache in memory, with one fault for every question."""

    def __init__(self, fault: Exception | float | None = None) -> None:
        self.held: dict[str, bytes] = {}
        self.fault = fault
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is not None:
            time.sleep(self.fault)

    def get(self, name: str, most: int) -> bytes | None:
        self._ask()
        data = self.held.get(name)
        return None if data is None else data[: most + 1]

    def has(self, name: str) -> bool:
        self._ask()
        return name in self.held

    def put(self, name: str, data: bytes) -> None:
        self._ask()
        self.held[name] = data


def push(remote: Remote, manifest: bytes, blob: bytes = b"blob") -> bool:
    return remote.push(KEY, manifest, [(hashlib.sha256(blob).hexdigest(), len(blob))], lambda _: blob)


def manifests(remote: Remote) -> list[bytes | None]:
    return [remote.blob(one.digest, one.size) for one in remote.candidates(KEY)]


def test_candidates_come_newest_first_and_once() -> None:
    remote = Remote(Memory(), 5)
    assert all(push(remote, text) for text in (b"one", b"two", b"one"))
    assert manifests(remote) == [b"one", b"two"]


def test_two_writers_at_once_may_lose_a_candidate_and_nothing_else() -> None:
    memory = Memory(0.002)
    texts = [b"writer %d" % number for number in range(6)]
    threads = [threading.Thread(target=push, args=(Remote(memory, 5), text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = manifests(Remote(memory, 5))
    assert found and set(found) <= set(texts)


def test_a_dead_one_costs_one_time_out() -> None:
    memory = Memory(30.0)
    remote = Remote(memory, 0.2)
    begun = time.monotonic()
    assert remote.candidates(KEY) == []
    assert not push(remote, b"manifest")
    assert time.monotonic() - begun < 2
    assert memory.asked == 1 and "does not answer" in remote.trouble


@pytest.mark.parametrize(("fault", "asked"), [(Unreachable("gone"), 1), (Passing("busy"), 3)])
def test_it_is_left_out_after_a_failure(fault: Exception, asked: int) -> None:
    memory = Memory(fault)
    remote = Remote(memory, 5)
    assert remote.candidates(KEY) == [] and remote.candidates(KEY) == []
    assert memory.asked == asked and "left out" in remote.trouble


def test_one_that_takes_nothing_is_still_read() -> None:
    memory = Memory()
    push(Remote(memory, 5), b"manifest")
    remote = Remote(memory, 5)
    memory.put = lambda name, data: (_ for _ in ()).throw(Refused("read-only"))  # type: ignore[method-assign]
    assert not push(remote, b"another", b"other")
    assert "takes nothing" in remote.trouble and manifests(remote) == [b"manifest"]


def test_wrong_content_is_none() -> None:
    memory = Memory()
    push(Remote(memory, 5), b"manifest")
    for name in memory.held:
        if name.startswith("cas/"):
            memory.held[name] += b"!"
    assert manifests(Remote(memory, 5)) == [None]


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"7", b'{"format":1}', b'{"format":1,"candidates":[7]}', b"[" * 5000, b"x" * 100_000,
             b'{"format":1,"candidates":[{"manifest":"../x","size":1}]}', b'{"format":2,"candidates":[]}',
             json.dumps({"format": 1, "candidates": [{"manifest": "0" * 64, "size": 1 << 50}]}).encode()]
)  # fmt: skip
def test_lists_that_are_none(text: bytes) -> None:
    memory = Memory()
    memory.held[f"ac/{KEY}"] = text
    assert Remote(memory, 5).candidates(KEY) == []


def test_signatures() -> None:
    memory = Memory()
    push(Remote(memory, 5), b"unsigned")
    assert manifests(Remote(memory, 5, signature=b"key")) == []
    push(Remote(memory, 5, signature=b"key"), b"signed")
    assert manifests(Remote(memory, 5, signature=b"key")) == [b"signed"]
    assert manifests(Remote(memory, 5, signature=b"other")) == []


def test_urls() -> None:
    assert remote_cache("shared", {}, "/home") == "file:///home/shared"
    assert remote_cache(None, {b"DETBOX_CACHE_REMOTE": b"http://h/x"}, "/") == "http://h/x"
    assert remote_cache(None, {}, "/") is None
    for wrong in ("ftp://h/", "http://", "https://me:s3cret@h/"):
        with pytest.raises(UserError) as caught:
            remote_cache(wrong, {}, "/")
        assert "s3cret" not in caught.value.message
