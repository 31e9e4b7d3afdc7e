"""Verifies a store: every file of every image against its manifest, and every name and layer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from detbox.errors import DetboxError
from detbox.images import inside, manifest, tree
from detbox.images.store import Image, Store


def problems(store: Store, notice: Callable[[Image], None] = lambda image: None) -> Iterator[str]:
    """What is wrong with the store, one line each; nothing if it is sound."""
    for image in store.images():
        notice(image)
        with store.hold(image):
            for problem in inside.as_owner(lambda image=image: list(_image(image))):  # type: ignore[misc]
                yield f"image {image.digest[:12]}: {problem}"
    for name in store.names():
        record = store.record(name) or {}
        if not (store.path / "images" / record.get("digest", "?") / "manifest").exists():
            yield f"name {name}: its image {record.get('digest')} is missing"
    layers = store.path / "layers"
    for path in sorted(layers.glob("*.json")) if layers.is_dir() else []:
        digest = json.loads(path.read_text()).get("digest", "?")
        if not (store.path / "images" / digest / "manifest").exists():
            yield f"layer {path.stem[:12]}: its image {digest} is missing"


def _image(image: Image) -> Iterator[str]:
    text = (image.place / "manifest").read_bytes()
    if manifest.digest_of(text) != image.digest:
        yield "the manifest is not the one that the digest names"
        return
    try:
        listed = image.entries
    except DetboxError as error:
        yield error.message
        return
    owners = [[os.fsdecode(path), *owner] for path, owner in sorted(manifest.foreign_owners(listed).items())]
    if json.loads((image.place / "owners").read_text()) != owners:
        yield "the list of owners is not the manifest's"
    # On disk all files are the user's own, and attributes that an ordinary user cannot set are in the manifest only.
    want = [replace(entry, uid=0, gid=0, xattrs=()) for entry in listed]
    found = [replace(entry, uid=0, gid=0, xattrs=()) for entry in tree.read(str(image.root))]
    yield from manifest.differences(want, found)

