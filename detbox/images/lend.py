"""A copy of a store's image for another user, who may not enter the store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from detbox.images import tree
from detbox.images.place import place_of


def lend(image: str, target: Path, uid: int, gid: int) -> str:
    """Copies the image with this root into the empty directory ``target``; everything belongs to the user then.

    Returns the copy's root.  Only root can do it.
    """
    place = place_of(image)
    assert place is not None
    owners = {path: (uid, gid) for path, _ in tree.walk(os.fsencode(image))}
    tree.copy(image, str(target / "root"), owners)
    for name in ("manifest", "owners", "info.json"):
        shutil.copyfile(f"{place}/{name}", target / name)
        os.chown(target / name, uid, gid)
    os.chown(target, uid, gid)
    return str(target / "root")
