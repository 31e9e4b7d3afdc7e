"""A remote cache in a directory, on a network's file system perhaps: no locks, names that change at once."""

from __future__ import annotations

import contextlib
import os
import secrets

from detbox.cache.remote import Passing, Refused, Unreachable


class Directory:
    """The layout is that of a web server's cache, so that one may serve the same directory."""

    def __init__(self, path: str) -> None:
        self._top = path

    def get(self, name: str, most: int) -> bytes | None:
        """See :class:`~detbox.cache.remote.Transport`."""
        try:
            with open(os.path.join(self._top, name), "rb") as file:
                return file.read(most + 1)
        except FileNotFoundError:
            self._there()
            return None
        except OSError as error:
            raise self._failure(error) from None

    def has(self, name: str) -> bool:
        """See :class:`~detbox.cache.remote.Transport`."""
        try:
            os.stat(os.path.join(self._top, name))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._failure(error) from None
        return True

    def put(self, name: str, data: bytes) -> None:
        """See :class:`~detbox.cache.remote.Transport`."""
        self._there()
        final = os.path.join(self._top, name)
        temporary = os.path.join(os.path.dirname(final), f".new-{secrets.token_hex(12)}")
        try:
            os.makedirs(os.path.dirname(final), exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
            os.rename(temporary, final)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise Refused(error.strerror) from None

    def _there(self) -> None:
        if not os.path.isdir(self._top):
            raise Unreachable(f"the directory {self._top} does not exist")

    @staticmethod
    def _failure(error: OSError) -> Exception:
        # ESTALE: another client of the network's file system has replaced the file; the next try finds the new one.
        return Passing(error.strerror)
