"""What a run needs to know of an image in a store: its owners, and that it stays (see detbox.images.store)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator

from detbox.errors import UserError
from detbox.images.place import place_of


def owners(image: str) -> dict[bytes, tuple[int, int]]:
    """(uid, gid) of the files that are not root's, by absolute path in the image; empty for another directory."""
    place = place_of(image)
    if place is None:
        return {}
    with open(f"{place}/owners", encoding="utf-8") as file:
        return {b"/" + os.fsencode(path): (uid, gid) for path, uid, gid in json.load(file)}


def own(image: str) -> bool:
    """Whether all its files belong to the caller, as those of a store do."""
    st = os.stat(image)
    return place_of(image) is not None and (st.st_uid, st.st_gid) == (os.geteuid(), os.getegid())


@contextlib.contextmanager
def held(image: str | None) -> Iterator[None]:
    """Keeps a store's image from being removed meanwhile.  Raises UserError if that has happened already."""
    place = place_of(image) if image is not None else None
    if place is None:
        yield
        return
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not os.path.exists(f"{place}/manifest"):
            raise UserError(f"the image {image} has been removed")
        yield
    finally:
        os.close(fd)
