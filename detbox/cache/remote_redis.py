"""A remote cache in Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import redis

from detbox.cache.remote import Passing, Refused, Unreachable

T = TypeVar("T")


class Redis:
    """One data base; names begin with ``detbox/``.  ``token``: a password, or user:password."""

    def __init__(self, url: str, timeout_s: float, token: str) -> None:
        user, colon, password = token.rpartition(":")
        self._server = redis.Redis.from_url(
            url, username=user if colon else None, password=password or None,
            socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=None,
        )  # fmt: skip

    def get(self, name: str, most: int) -> bytes | None:
        """See :class:`~detbox.cache.remote.Transport`."""
        # One byte more than wanted: a value that is too long is known by that.  Nothing has no length.
        data = self._guarded(lambda: self._server.getrange(f"detbox/{name}", 0, most))
        return bytes(data) if data or self.has(name) else None  # type: ignore[arg-type]

    def has(self, name: str) -> bool:
        """See :class:`~detbox.cache.remote.Transport`."""
        return bool(self._guarded(lambda: self._server.exists(f"detbox/{name}")))

    def put(self, name: str, data: bytes) -> None:
        """See :class:`~detbox.cache.remote.Transport`."""
        self._guarded(lambda: self._server.set(f"detbox/{name}", data))

    @staticmethod
    def _guarded(question: Callable[[], T]) -> T:
        try:
            return question()
        except redis.exceptions.TimeoutError:
            raise Unreachable("it does not answer in time") from None
        except (redis.exceptions.AuthenticationError, redis.exceptions.AuthorizationError):
            raise Unreachable("it refuses access (is DETBOX_CACHE_TOKEN right?)") from None
        except redis.exceptions.BusyLoadingError:
            raise Passing("it is still loading") from None
        except redis.exceptions.ConnectionError:
            raise Unreachable("it cannot be reached") from None
        except redis.exceptions.ResponseError as error:
            # "OOM command not allowed", "READONLY You can't write", "NOPERM", "NOAUTH": the first word tells.
            word = str(error).split(" ", 1)[0]
            if word in ("OOM", "READONLY", "NOPERM", "MISCONF"):
                raise Refused(f"Redis says {word}") from None
            raise Unreachable(f"Redis says {word}") from None
        except redis.exceptions.RedisError as error:
            raise Passing(f"its answer cannot be read ({type(error).__name__})") from None
