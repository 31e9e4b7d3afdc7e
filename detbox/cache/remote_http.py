"""A remote cache behind HTTP, as Bazel's clients use it: GET, HEAD and PUT."""

from __future__ import annotations

import urllib3
from urllib3 import exceptions

from detbox.cache.remote import Passing, Refused, Unreachable

_MISSING = (404, 410)
_LATER = (408, 425, 429)
_DENIED = (401, 403, 407)


class Http:
    """One server.  ``token``: a bearer token, or user:password."""

    def __init__(self, url: str, timeout_s: float, token: str, connections: int) -> None:
        self._top = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=connections, retries=False, timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s)
        )
        self._headers = {"User-Agent": "detbox", "Accept-Encoding": "identity"}
        if ":" in token:
            self._headers.update(urllib3.make_headers(basic_auth=token))
        elif token:
            self._headers["Authorization"] = f"Bearer {token}"

    def get(self, name: str, most: int) -> bytes | None:
        """See :class:`~detbox.cache.remote.Transport`."""
        status, data = self._ask("GET", name, most=most)
        if status in _MISSING:
            return None
        self._expect(status, (200,))
        return data

    def has(self, name: str) -> bool:
        """See :class:`~detbox.cache.remote.Transport`."""
        status, _ = self._ask("HEAD", name)
        return status == 200

    def put(self, name: str, data: bytes) -> None:
        """See :class:`~detbox.cache.remote.Transport`."""
        status, _ = self._ask("PUT", name, body=data)
        if 400 <= status < 500 and status not in _LATER:
            raise Refused(f"status {status} for PUT" + _advice(status))
        self._expect(status, (200, 201, 202, 204))

    def _ask(self, method: str, name: str, *, body: bytes | None = None, most: int = 0) -> tuple[int, bytes]:
        """Status and the first ``most + 1`` bytes of the answer."""
        try:
            answer = self._pool.request(
                method, f"{self._top}/{name}", body=body, headers=self._headers, redirect=False,
                preload_content=False, decode_content=False,
            )  # fmt: skip
            data = b""
            try:
                data = answer.read(most + 1, decode_content=False) if method == "GET" else b""
            finally:
                if len(data) > most:
                    answer.close()  # what was not read makes the connection useless for the next question
                else:
                    answer.drain_conn()
                    answer.release_conn()
        except exceptions.TimeoutError:
            raise Unreachable("it does not answer in time") from None
        except (exceptions.NewConnectionError, exceptions.LocationParseError):
            raise Unreachable("it cannot be reached") from None
        except exceptions.SSLError as error:
            raise Unreachable(f"its certificate or encryption is not accepted: {error}") from None
        except exceptions.HTTPError as error:
            raise Passing(f"its answer breaks off ({type(error).__name__})") from None
        return answer.status, data

    @staticmethod
    def _expect(status: int, wanted: tuple[int, ...]) -> None:
        if status in wanted:
            return
        if status >= 500 or status in _LATER:
            raise Passing(f"it answers with status {status}")
        raise Unreachable(f"it answers with status {status}" + _advice(status))


def _advice(status: int) -> str:
    return " (is DETBOX_CACHE_TOKEN right?)" if status in _DENIED else ""
